"""From log-probabilities to the loss of GRPO and its relatives, for a packed row; pure tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.objective import Baseline, segment_sums
from tuner.engine.packed.units import Unit

WEIGHT, ADVANTAGE, OLD, REFERENCE = range(4)
"""What stands beside each token of an answer: its weight in the step's loss, its answer's advantage, and its log-prob by
the model that wrote it and by the reference."""
CHANNELS = 4
METRICS = ("entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
Level = Literal["token", "sequence", "sum"]


@dataclass(frozen=True)
class Clipping:
    """How far a model may move from the one that wrote the answers: the ratio of their probabilities stays within
    1 - `low` and 1 + `high`. It is that of a token, of a whole answer (`sum`), or of an answer per token (`sequence`,
    GSPO, arXiv 2507.18071)."""

    low: float = 0.2
    high: float = 0.2
    level: Level = "token"


def policy_loss(ratio: Tensor, advantage: Tensor, clipping: Clipping) -> Tensor:
    """PPO's loss (arXiv 1707.06347) of each ratio: the worse of the plain and of the clipped one."""
    clipped = ratio.clamp(1 - clipping.low, 1 + clipping.high)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def distance(logps: Tensor, reference: Tensor) -> Tensor:
    """An estimate of each token's KL divergence from the reference that is never negative (k3 of Schulman's)."""
    further = reference - logps
    return further.exp() - further - 1


class OnlineObjective:
    """GRPO's loss, and RLOO's where `clipping.level` is sum. `beta` weighs the distance to the reference in the loss;
    `on_policy` says that the model which wrote the answers is the one that learns, so that nothing has to be kept of it."""

    measures, needs_reference, keep_groups = True, False, False
    ld_alpha: float | None = None
    baseline: Baseline | None = None
    metric_names = (*METRICS, "clip_count", "tokens")

    def __init__(self, clipping: Clipping, beta: float = 0.0, on_policy: bool = True) -> None:
        self.clipping, self.beta, self.on_policy = clipping, beta, on_policy

    def units(self, examples: Sequence[Mapping[str, Any]], micro_batch: int) -> list[Unit]:
        """Rows of prompts are no examples: answers come from the model."""
        raise NotImplementedError

    def __call__(self, scores: Tensor, row: DeviceRow, train: bool) -> tuple[Tensor, Tensor]:
        logps, _, entropy = scores.unbind()
        weight, advantage, old, reference = row["token_values"].unbind()
        real = (weight > 0).float()
        shift, share = self._shift(logps - (logps.detach() if self.on_policy else old), real, row)
        ratio = shift.exp()
        loss = policy_loss(ratio, advantage, self.clipping)
        apart = torch.zeros_like(logps)
        if self.beta:
            # times the ratio, which is 1 at first and has a gradient: it makes the distance's the true one, as in TRL
            apart = distance(logps, reference) * ratio
            loss = loss + self.beta * apart
        low = ((ratio < 1 - self.clipping.low) & (advantage < 0)).float() * share
        high = ((ratio > 1 + self.clipping.high) & (advantage > 0)).float() * share
        measured = [entropy * real, apart * real, low, high, low + high, share, real]
        return (loss * weight).sum(), torch.stack([m.detach().sum() for m in measured])

    def _shift(self, change: Tensor, real: Tensor, row: DeviceRow) -> tuple[Tensor, Tensor]:
        """The logarithm of each token's ratio, and what it counts for where ratios are counted: all of one answer's tokens
        have one ratio, unless each has its own."""
        if self.clipping.level == "token":
            return change, real
        counts = row["counts"].long()
        sizes = segment_sums(real, row).clamp(min=1)
        whole = segment_sums(change * real, row)
        whole = whole / sizes if self.clipping.level == "sequence" else whole
        return _each(whole, counts, len(change)), real / _each(sizes, counts, len(change)).clamp(min=1)


def _each(of_answer: Tensor, counts: Tensor, tokens: int) -> Tensor:
    """An answer's number [S] for each of its tokens [N]; 0 for padding."""
    values = torch.cat([of_answer, of_answer.new_zeros(1)])
    return torch.repeat_interleave(values, counts, output_size=tokens)


def finished(totals: Sequence[float]) -> dict[str, float]:
    """Means from sums over the tokens of a step: see `OnlineObjective.metric_names`."""
    *sums, ratios, tokens = totals
    found = dict(zip(METRICS, sums, strict=True))
    return {
        name: total / max(ratios if name.startswith("clip") else tokens, 1.0) for name, total in found.items()
    }
