"""Means of what a loss measures, between two log lines: sums stay on the device until somebody reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


def measured_as(logs: Mapping[str, float]) -> str | None:
    """What the names of an evaluation begin with: eval_, or eval_<set>_ where each set is measured by itself. None for
    logs of training."""
    found = (n for n in logs if n.startswith("eval_") and n.endswith("_loss"))
    return next((n.removesuffix("loss") for n in found), None)


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

    def take(
        self, training: bool, accelerator: Accelerator, logs: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """The means since the last call, over every process, named as the evaluation that `logs` tells of names its own."""
        mode, prefix = ("train", "") if training else ("eval", measured_as(logs or {}) or "eval_")
        means = {}
        for name, parts in sorted(self._sums[mode].items()):
            pair = torch.stack([torch.stack(parts).sum(), parts[0].new_tensor(self._seen[mode][name])])
            total, count = accelerator.reduce(pair, "sum").tolist()
            if count:
                means[prefix + name] = total / count
        self._sums[mode].clear()
        self._seen[mode].clear()
        return means
