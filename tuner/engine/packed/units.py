"""What one optimizer step learns from: prompts with the answers that share them, and how they are shared out among rows and
processes. Pure Python and numpy; no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.data.encode import MASKED

Ints = NDArray[np.int32]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float32]
STRAY_IDS = "KL_completion_ids"
"""The field of a KTO row that holds an answer to another prompt; spelt as TRL's collator reads it."""


@dataclass(frozen=True)
class Unit:
    """A prompt and the answers that share it, with its share of the optimizer step's mean.

    `group` is the micro-batch that the unit would have been in; `label` is KTO's (1 desirable, 0 not). `learnt` says,
    per answer, which of its tokens are predicted; None where all are. With `ends` no token is predicted: one number is
    read where each answer ends, as a place in prompt and answer. `values` [channels, predicted tokens] of each answer are
    numbers that the loss wants beside its tokens. `images` are the files of pictures whose tokens stand in the prompt, or
    in the one answer of a unit without prompt, in their order.
    """

    prompt: Ints
    answers: tuple[Ints, ...]
    weight: float = 1.0
    group: int = 0
    label: float = 1.0
    learnt: tuple[Flags, ...] | None = None
    ends: tuple[int, ...] | None = None
    values: tuple[Floats, ...] | None = None
    images: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """How many numbers stand beside each predicted token."""
        return len(self.values[0]) if self.values else 0

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def scored(self) -> int:
        """How many answer tokens are predicted; the very first token of a text without prompt is not."""
        return sum(len(self.places(k)) for k in range(len(self.answers)))

    def places(self, answer: int) -> NDArray[np.int64]:
        """Where in the prompt and an answer the tokens stand that are scored from."""
        if self.ends is not None:
            return np.array([self.ends[answer]])
        return len(self.prompt) + self.predicted(answer) - 1

    def targets(self, answer: int) -> Ints:
        """The tokens predicted from those places; zeros where there are none."""
        return _ids([0]) if self.ends is not None else self.answers[answer][self.predicted(answer)]

    def predicted(self, answer: int) -> NDArray[np.int64]:
        """Where in an answer the tokens stand that are predicted."""
        first = int(len(self.prompt) == 0)
        if self.learnt is None:
            return np.arange(first, len(self.answers[answer]))
        return np.flatnonzero(self.learnt[answer][first:]) + first

    def answer_keys(self, ld_alpha: float | None) -> list[bytes]:
        """One content key (16 bytes) per answer: what its reference log-prob depends on besides the
        weights."""
        shared = min(map(len, self.answers)) if ld_alpha is not None else 0
        head = np.array([len(self.prompt), shared], dtype=np.int32).tobytes()
        head += np.float64(1.0 if ld_alpha is None else ld_alpha).tobytes() + self.prompt.tobytes()
        head += b"".join(map(_content, self.images))
        return [blake2b(head + a.tobytes(), digest_size=16).digest() for a in self.answers]


def _content(path: str) -> bytes:
    file = Path(path).stat()
    return _digest(path, file.st_size, file.st_mtime_ns)


@lru_cache(maxsize=1 << 20)
def _digest(path: str, size: int, changed: int) -> bytes:
    """16 bytes of what a file holds, read once for as long as it stays as it is."""
    return blake2b(Path(path).read_bytes(), digest_size=16).digest()


def units_of_tokens(examples: Sequence[Mapping[str, object]]) -> list[Unit]:
    """The units of one optimizer step that learns tokens: a text each, whose loss is a mean over the whole step.

    Examples hold `input_ids` and `labels`, -100 where nothing is learned, and `seq_lengths` where several texts share
    a row; `images`, and then `image_counts` of each text, where they have pictures. A text of which nothing is learned is left out.
    """
    texts = [text for example in examples for text in _texts(example)]
    learned = sum(int(flags[1:].sum()) for _, flags, _ in texts)
    kept = [text for text in texts if text[1][1:].any()] or texts[:1]
    return [
        Unit(_ids([]), (ids,), 1.0 / max(learned, 1), learnt=(flags,), images=images)
        for ids, flags, images in kept
    ]


def _texts(example: Mapping[str, Any]) -> list[tuple[Ints, Flags, tuple[str, ...]]]:
    ids, flags = _ids(example["input_ids"]), _ids(example["labels"]) != MASKED
    ends = np.cumsum(example.get("seq_lengths") or [len(ids)])[:-1]
    images = tuple(example.get("images", ()))
    last = np.cumsum(example.get("image_counts") or [len(images)]).tolist()
    own = [images[first:end] for first, end in zip([0, *last], last, strict=False)]
    if len(own) < len(ends) + 1:  # no text has one
        own = [()] * (len(ends) + 1)
    return list(zip(np.split(ids, ends), np.split(flags, ends), own, strict=True))


def units_of_step(examples: Sequence[Mapping[str, object]], micro_batch: int) -> list[Unit]:
    """The units of one optimizer step.

    Examples hold `prompt_ids`, `chosen_ids`, `rejected_ids`, or for KTO `prompt_ids`, `completion_ids`,
    `label` and the mismatched answer STRAY_IDS: the row brings it, for a micro-batch of one row has none.
    Every micro-batch of `micro_batch` examples has the same say in the mean, as gradient accumulation has it.
    """
    groups = -(-len(examples) // micro_batch)
    units = []
    for g in range(groups):
        part = examples[g * micro_batch : (g + 1) * micro_batch]
        weight = 1.0 / (groups * len(part))
        for example in part:
            answers, label = _answers(example)
            images: Any = example.get("images", ())
            units.append(Unit(_ids(example["prompt_ids"]), answers, weight, g, label, images=tuple(images)))
    return units


def units_of_scores(
    examples: Sequence[Mapping[str, object]], micro_batch: int, pad_id: int | None
) -> list[Unit]:
    """The units of one optimizer step that learns scores: pairs read at their last token that is not `pad_id`, which is
    where transformers' sequence classification reads them."""
    return [
        replace(
            unit, ends=tuple(_end(np.concatenate([unit.prompt, answer]), pad_id) for answer in unit.answers)
        )
        for unit in units_of_step(examples, micro_batch)
    ]


def _end(ids: Ints, pad_id: int | None) -> int:
    kept = np.arange(len(ids)) if pad_id is None else np.flatnonzero(ids != pad_id)
    return int(kept[-1]) if len(kept) else 0


def _answers(example: Mapping[str, object]) -> tuple[tuple[Ints, ...], float]:
    if "chosen_ids" in example:
        return (_ids(example["chosen_ids"]), _ids(example["rejected_ids"])), 1.0
    label = float(bool(example["label"]))
    return (_ids(example["completion_ids"]), _ids(example[STRAY_IDS])), label


def _ids(values: object) -> Ints:
    return np.asarray(values, dtype=np.int32).reshape(-1)


def _blocks(units: Sequence[Unit], keep_groups: bool) -> list[tuple[int, list[Unit]]]:
    """(tokens, units) of what stays together: each unit, or with `keep_groups` each micro-batch; longest first."""
    blocks: dict[int, list[Unit]] = {}
    for i, unit in enumerate(units):
        blocks.setdefault(unit.group if keep_groups else i, []).append(unit)
    sized = [(sum(u.tokens for u in block), block) for block in blocks.values()]
    return sorted(sized, key=lambda b: -b[0])


def deal(units: Sequence[Unit], count: int, keep_groups: bool) -> list[list[Unit]]:
    """`count` shares of about as many tokens each, in the order given: the longest block goes to the emptiest share.

    With fewer blocks than shares some have none. Longest first is at most 4/3 of the best (Graham, 1969).
    """
    if count == 1:
        return [list(units)]
    shares: list[list[Unit]] = [[] for _ in range(count)]
    loads = [0] * count
    for size, block in _blocks(units, keep_groups):
        least = loads.index(min(loads))
        shares[least] += block
        loads[least] += size
    place = {id(unit): i for i, unit in enumerate(units)}
    return [sorted(share, key=lambda u: place[id(u)]) for share in shares]


def split_units(units: Sequence[Unit], budget: int, keep_groups: bool) -> list[list[Unit]]:
    """Rows of at most `budget` tokens, as few and as even as a greedy pass makes them.

    A unit (or, with `keep_groups`, a micro-batch) longer than the budget gets a row of its own.
    """
    rows: list[list[Unit]] = []
    loads: list[int] = []
    for size, block in _blocks(units, keep_groups):
        fits = [i for i, load in enumerate(loads) if load + size <= budget]
        if fits:
            i = min(fits, key=lambda j: loads[j])
            rows[i] += block
            loads[i] += size
        else:
            rows.append(list(block))
            loads.append(size)
    return rows
