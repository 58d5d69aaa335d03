"""Reference log-probabilities: computed once per answer, kept by content, shared by runs through a file.

The key of a value is the content of prompt and answer; the file's name is a fingerprint of the weights and of what is
computed with them. So
a resumed run, a second epoch and another run over the same model and data find them there.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tuner.engine.packed.ranks import ALONE, Ranks
from tuner.engine.packed.units import Unit, split_units
from tuner.models.llama_family import causal_lm
from tuner.models.vision import Sight
from tuner.runs.files import replacing

logger = logging.getLogger(__name__)
Scorer = Callable[[list[Unit]], NDArray[np.float32]]


class ReferenceCache:
    """Content key -> summed reference log-prob; `score` computes [units * answers] values for one row of
    units. Processes that share a run (`ranks`) each compute a part and know all; the first writes the file."""

    def __init__(
        self,
        score: Scorer,
        budget: int,
        ld_alpha: float | None,
        path: Path | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.score, self.budget, self.ld_alpha, self.path = score, budget, ld_alpha, path
        self.ranks = ranks
        self.unsaved = 0
        self.values = ranks.of_first({} if ranks.rank else self._load())

    def get(self, units: Sequence[Unit], ahead: Iterable[Unit] = ()) -> NDArray[np.float32]:
        """Values [units * answers] in unit order; if some are missing, those of `ahead` are computed with
        them."""
        keys = [key for unit in units for key in unit.answer_keys(self.ld_alpha)]
        if any(key not in self.values for key in keys):
            self.compute([*units, *ahead])
        return np.array([self.values[key] for key in keys], dtype=np.float32)

    def compute(self, units: Iterable[Unit]) -> None:
        """Score the units that are not known yet, in rows of similar length."""
        missing: dict[tuple[bytes, ...], Unit] = {}
        for unit in units:
            keys = tuple(unit.answer_keys(self.ld_alpha))
            if any(key not in self.values for key in keys):
                missing[keys] = unit
        units, flat = list(missing.values()), [key for keys in missing for key in keys]
        self.values.update(zip(flat, self._scored(units).tolist(), strict=True))
        self.unsaved += len(flat)

    def _scored(self, units: Sequence[Unit]) -> NDArray[np.float32]:
        """Values [units * answers] in the order given, this process's part computed here."""
        if not units:
            return np.zeros(0, dtype=np.float32)
        place = {id(unit): i for i, unit in enumerate(units)}
        found = np.zeros((len(units), len(units[0].answers)), dtype=np.float32)
        for row in split_units(self.ranks.share(units, False), self.budget, keep_groups=False):
            found[[place[id(unit)] for unit in row]] = self.score(row).reshape(len(row), -1)
        return self.ranks.add_values(found.reshape(-1))

    def save(self) -> None:
        """Write the values if some are new; a half-written file can never be read."""
        if self.path is None or not self.unsaved or self.ranks.rank:
            return
        self.path.parent.mkdir(exist_ok=True)  # not its parents: a studio that was deleted must stay so
        keys = np.frombuffer(b"".join(self.values), dtype=np.uint8).reshape(-1, 16)
        values = np.fromiter(self.values.values(), dtype=np.float32)
        with replacing(self.path) as part, part.open("wb") as file:
            np.savez(file, keys=keys, values=values)
        self.unsaved = 0

    def _load(self) -> dict[bytes, float]:
        if self.path is None or not self.path.is_file():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                keys, values = stored["keys"], stored["values"]
            return {k.tobytes(): float(v) for k, v in zip(keys, values, strict=True)}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("The reference cache %s cannot be read and is made anew: %s", self.path, error)
            return {}


_SAYS_NOTHING = frozenset(
    {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"}
    | {"quantization_config", "pad_token_id", "bos_token_id", "eos_token_id"}
)
"""Of a model's config: what does not change its numbers, or is seen in its weights."""


def _computed(model: nn.Module) -> str:
    """What a model does with its weights, as its config says it: positions, windows, caps."""
    config: dict[str, object] = causal_lm(model).config.to_dict()
    told = {name: value for name, value in config.items() if name not in _SAYS_NOTHING}
    return json.dumps(told, sort_keys=True, default=str)


def weights_fingerprint(
    model: nn.Module, compute_dtype: torch.dtype, sight: Sight | None = None, float8: bool = False
) -> str:
    """A short name for a model without its adapters: what it computes and in which numbers, how pictures are shown to it, and its frozen weights,
    from integer sums over their bits (exact on any device)."""
    sums, names = [], []
    for name, p in model.named_parameters():
        if p.requires_grad or "lora_" in name:
            continue
        bits = p.data.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[p.element_size()])
        rows = bits.reshape(-1, bits.shape[-1]) if bits.ndim > 1 else bits[None]
        by_column = rows.sum(0, dtype=torch.int64)
        place = torch.arange(1, len(by_column) + 1, device=by_column.device)
        by_row = rows.sum(1, dtype=torch.int64) * torch.arange(1, len(rows) + 1, device=rows.device)
        sums.append(torch.stack([(by_column * place).sum(), by_row.sum()]))
        names.append(f"{name.replace('.base_layer', '')} {tuple(p.shape)} {p.dtype}")
    shown = "" if sight is None else f" {sight.min_pixels} {sight.max_pixels} {dict(sight.options)}"
    digest = blake2b(
        f"{compute_dtype} {_computed(model)}{shown}{' float8' * float8}".encode(), digest_size=12
    )
    for name, pair in zip(names, torch.stack(sums).cpu().numpy(), strict=True):
        digest.update(name.encode() + pair.tobytes())
    return digest.hexdigest()
