"""Means of what a loss measures, between two log lines: sums stay on the device until somebody reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


class Means:
    """Weighted means by mode ("train", "eval") and name; exact over examples, not means of means."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, list[Tensor]]] = {"train": {}, "eval": {}}
        self._seen: dict[str, defaultdict[str, int]] = {"train": defaultdict(int), "eval": defaultdict(int)}

    def add(self, training: bool, values: Mapping[str, Tensor]) -> None:
        """Add one micro-batch: each value is a tensor with one number an example, of any shape."""
        mode = "train" if training else "eval"
        for name, value in values.items():
            self._sums[mode].setdefault(name, []).append(value.detach().float().sum())
            self._seen[mode][name] += value.numel()

    def take(self, training: bool, accelerator: Accelerator) -> dict[str, float]:
        """The means since the last call, over every process; eval names begin with eval_."""
        mode, prefix = ("train", "") if training else ("eval", "eval_")
        means = {}
        for name, parts in sorted(self._sums[mode].items()):
            pair = torch.stack([torch.stack(parts).sum(), parts[0].new_tensor(self._seen[mode][name])])
            total, count = accelerator.reduce(pair, "sum").tolist()
            if count:
                means[prefix + name] = total / count
        self._sums[mode].clear()
        self._seen[mode].clear()
        return means
