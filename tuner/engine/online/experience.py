"""What a model answered and how good that was: from which units of packed rows are made, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tuner.config.kinds import GroupLoss
from tuner.engine.online.objective import CHANNELS
from tuner.engine.packed.units import Floats, Ints, Unit
from tuner.runs.files import replacing

NAME = "experience.npz"
"""What a checkpoint keeps of answers that are not all learnt from yet."""
BY_TOKENS, BY_ANSWERS, BY_LENGTH, BY_BATCH = get_args(GroupLoss)
"""What a token's loss is divided by: the tokens of all answers, those of its own and then the answers, the longest that there
could be, the tokens of its micro-batch."""


@dataclass
class Experience:
    """The answers [P * G] to P prompts, those of a prompt side by side.

    `kept` says which answers are learnt from, `order` in which order, cut into micro-batches. `old` and `reference` are
    log-probs of each answer's tokens, empty where nobody needs them.
    """

    prompts: list[Ints]
    answers: list[Ints]
    kept: NDArray[np.bool_]
    order: NDArray[np.int64]
    advantages: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    old: list[Floats] = field(default_factory=list)
    reference: list[Floats] = field(default_factory=list)

    @property
    def generations(self) -> int:
        """Answers to each prompt."""
        return len(self.answers) // len(self.prompts)

    def learnt(self, answer: int) -> int:
        """How many tokens of an answer count in the loss."""
        return len(self.answers[answer]) if self.kept[answer] else 0

    def weights(self, micro_batches: NDArray[np.int64], normalizer: GroupLoss, longest: int) -> Floats:
        """What each token of an answer counts for in the loss of one optimizer step, [P * G]; 0 for answers of other steps.

        `micro_batches` [accumulated, size] are the answers of the step; `longest` the most tokens that one may have.
        """
        found = np.zeros(len(self.answers), np.float32)
        parts, size = micro_batches.shape
        everything = sum(map(self.learnt, range(len(self.answers))))
        share = micro_batches.size / len(self.answers)  # of the generated answers, in this step
        for batch in micro_batches:
            tokens = [self.learnt(i) for i in batch]
            for i, own in zip(batch, tokens, strict=True):
                whole = {
                    BY_ANSWERS: max(own, 1) * size * parts,
                    BY_BATCH: max(sum(tokens), 1) * parts,
                    BY_LENGTH: size * longest * parts,
                    BY_TOKENS: max(everything, 1) * share,
                }[normalizer]
                found[i] = 1.0 / whole if own else 0.0
        return found

    def units(self, weights: Floats | None = None, most: int = 1 << 30) -> list[Unit]:
        """Prompts with the answers that have a weight (all without `weights`), at most `most` tokens of answers together:
        what attends to one prompt is one square of numbers on a CPU."""
        return [unit for unit, _ in self.placed(weights, most)]

    def placed(self, weights: Floats | None = None, most: int = 1 << 30) -> Iterator[tuple[Unit, list[int]]]:
        """The same, each with the numbers of its answers."""
        for p, prompt in enumerate(self.prompts):
            own = range(p * self.generations, (p + 1) * self.generations)
            for part in _together([i for i in own if weights is None or weights[i] > 0], self.answers, most):
                values = None if weights is None else tuple(self._values(i, weights[i]) for i in part)
                yield Unit(prompt, tuple(self.answers[i] for i in part), values=values), part

    def _values(self, answer: int, weight: float) -> Floats:
        found = np.zeros((CHANNELS, len(self.answers[answer])), np.float32)
        found[0], found[1] = weight, self.advantages[answer]
        for channel, logps in ((2, self.old), (3, self.reference)):
            if logps:
                found[channel] = logps[answer]
        return found

    # --- in a checkpoint

    def save(self, folder: Path) -> None:
        """Write it there, in arrays that hold no objects."""
        arrays = {
            "prompts": _flat(self.prompts, np.int32),
            "answers": _flat(self.answers, np.int32),
            "old": _flat(self.old, np.float32),
            "reference": _flat(self.reference, np.float32),
            "prompt_sizes": _sizes(self.prompts),
            "answer_sizes": _sizes(self.answers),
            "kept": self.kept,
            "order": self.order,
            "advantages": self.advantages,
        }
        with replacing(folder / NAME) as part, part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def saved(cls, folder: Path) -> Experience | None:
        """What `save` wrote; None where there is nothing."""
        if not (folder / NAME).is_file():
            return None
        with np.load(folder / NAME, allow_pickle=False) as f:
            answers = _cut(f["answers"], f["answer_sizes"])
            old, reference = (
                _cut(f[n], f["answer_sizes"]) if len(f[n]) else [] for n in ("old", "reference")
            )
            prompts = _cut(f["prompts"], f["prompt_sizes"])
            return cls(prompts, answers, f["kept"], f["order"], f["advantages"], old, reference)


def _together(answers: Sequence[int], ids: Sequence[Ints], most: int) -> Iterator[list[int]]:
    part: list[int] = []
    for i in answers:
        if part and sum(len(ids[j]) for j in (*part, i)) > most:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _flat(parts: Sequence[NDArray[np.generic]], kind: type) -> NDArray[np.generic]:
    return np.concatenate(parts) if parts else np.zeros(0, kind)


def _sizes(parts: Sequence[NDArray[np.generic]]) -> NDArray[np.int64]:
    return np.array([len(part) for part in parts], np.int64)


def _cut(flat: Any, sizes: NDArray[np.int64]) -> list[Any]:
    return np.split(flat, np.cumsum(sizes)[:-1])
