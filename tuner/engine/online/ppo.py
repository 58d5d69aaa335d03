"""PPO (arXiv 1707.06347) as it is used on answers (arXiv 1909.08593): a value learnt beside the policy says what was to be
expected of each token, and the distance to the reference is taken off the reward, token by token.

The order of things is that of the trainer which LLaMA-Factory was written for, TRL's of version 0.9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tuner.engine.online.advantages import of_future, whitened
from tuner.engine.online.objective import Clipping, policy_loss
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.objective import Baseline
from tuner.engine.packed.units import Unit

GAMMA, LAMBDA = 1.0, 0.95
VALUE_CLIP, VALUE_WEIGHT = 0.2, 0.1
"""How far a value may move in a round, and what its loss counts for."""
WEIGHT, ADVANTAGE, OLD, OLD_VALUE, RETURN = range(5)
"""What stands beside each token of an answer."""
NAMES = ("policy_loss", "value_loss", "entropy", "clip_ratio/region_mean", "ratio")


@dataclass
class Round:
    """Advantages and returns of each answer's tokens, and the mean distance to the reference in nats an answer."""

    advantages: list[Tensor]
    returns: list[Tensor]
    distance: float


def token_rewards(score: float, logps: Tensor, reference: Tensor, weight: float) -> Tensor:
    """Rewards [T] of an answer's tokens: less the weighted distance to the reference, and the answer's score at the last."""
    rewards = -weight * (logps - reference)
    rewards[-1] += score
    return rewards


def round_of(
    scores: Sequence[float],
    logps: Sequence[Tensor],
    references: Sequence[Tensor],
    values: Sequence[Tensor],
    weight: float,
    whiten: bool,
) -> Round:
    """What a batch of answers teaches. `weight` is that of the distance, `whiten` brings rewards to variance 1."""
    rewards = [
        token_rewards(score, own, other, weight)
        for score, own, other in zip(scores, logps, references, strict=True)
    ]
    sizes = [len(one) for one in rewards]
    if whiten:
        rewards = list(whitened(torch.cat(rewards), shift=False).split(sizes))
    better = [of_future(reward, value, GAMMA, LAMBDA) for reward, value in zip(rewards, values, strict=True)]
    returns = [advantage + value for advantage, value in zip(better, values, strict=True)]
    white = list(whitened(torch.cat(better)).split(sizes))
    apart = [float((own - other).sum()) for own, other in zip(logps, references, strict=True)]
    return Round(white, returns, sum(apart) / len(apart))


def value_loss(value: Tensor, old: Tensor, wanted: Tensor) -> Tensor:
    """Half of the squared error of each value, or of the one that stays near the old one, whichever is worse."""
    near = torch.clamp(value, old - VALUE_CLIP, old + VALUE_CLIP)
    return 0.5 * torch.maximum((value - wanted).square(), (near - wanted).square())


class PpoObjective:
    """The clipped loss of the policy and of its values, means over the tokens of a step."""

    measures, needs_reference, keep_groups = True, False, False
    ld_alpha: float | None = None
    baseline: Baseline | None = None
    metric_names = (*NAMES, "tokens")

    def __init__(self, clipping: Clipping | None = None) -> None:
        self.clipping = clipping or Clipping()

    def units(self, examples: Sequence[Mapping[str, Any]], micro_batch: int) -> list[Unit]:
        """Rows of prompts are no examples: answers come from the model."""
        raise NotImplementedError

    def __call__(self, scores: Tensor, row: DeviceRow, train: bool) -> tuple[Tensor, Tensor]:
        logps, _, entropy, value = scores.unbind()
        weight, advantage, old, old_value, wanted = row["token_values"].unbind()
        ratio = (logps - old).exp()
        policy, of_value = policy_loss(ratio, advantage, self.clipping), value_loss(value, old_value, wanted)
        limit = ratio.clamp(1 - self.clipping.low, 1 + self.clipping.high)
        clipped = ratio * advantage > limit * advantage
        real = (weight > 0).float()
        measured = [policy * real, of_value * real, entropy * real, clipped * real, ratio * real, real]
        loss = ((policy + VALUE_WEIGHT * of_value) * weight).sum()
        return loss, torch.stack([m.detach().sum() for m in measured])


def finished(totals: Sequence[float]) -> dict[str, float]:
    """Means from sums over the tokens of a step."""
    *sums, tokens = totals
    return {name: total / max(tokens, 1.0) for name, total in zip(NAMES, sums, strict=True)}


@dataclass
class RunningSpread:
    """Mean and variance of all scores so far, by which they are normed (`ppo_score_norm`)."""

    mean: float = 0.0
    variance: float = 1.0
    count: float = 1e-24

    def norm(self, scores: Tensor) -> Tensor:
        """Take scores in; they come back with the mean taken off and over the spread of all so far."""
        size, mean = len(scores), float(scores.mean())
        off, total = mean - self.mean, self.count + len(scores)
        squares = (
            float(scores.var(unbiased=False)) * size
            + self.variance * self.count
            + off**2 * self.count * size / total
        )
        self.mean, self.count, self.variance = self.mean + off * size / total, total, squares / total
        spread = (self.variance * total / (total - 1)) ** 0.5
        return (scores - self.mean) / (spread + 1e-8)
