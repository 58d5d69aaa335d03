"""Means of what a loss measures, between two log lines: sums stay on the device until somebody reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from tuner.engine import group


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

    def add(self, training: bool, values: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Add one micro-batch: each value is a tensor with one number an example, of any shape. One whose share is 0
        only kept the other processes company."""
        if not share:
            return
        mode = "train" if training else "eval"
        for name, value in values.items():
            self._sums[mode].setdefault(name, []).append(value.detach().float().sum())
            self._seen[mode][name] += value.numel()

    def take(self, training: bool, logs: Mapping[str, float] | None = None) -> dict[str, float]:
        """The means since the last call, over every process, named as the evaluation that `logs` tells of names its own."""
        mode, prefix = ("train", "") if training else ("eval", measured_as(logs or {}) or "eval_")
        sums = {name: float(torch.stack(parts).sum()) for name, parts in self._sums[mode].items()}
        # Not every process has seen everything: of a batch of KTO one may have good answers alone.
        of_all = group.gathered({name: (total, self._seen[mode][name]) for name, total in sums.items()})
        self._sums[mode].clear()
        self._seen[mode].clear()
        means = {}
        for name in sorted({name for one in of_all for name in one}):
            pairs = [one[name] for one in of_all if name in one]
            if count := sum(seen for _, seen in pairs):
                means[prefix + name] = sum(total for total, _ in pairs) / count
        return means
