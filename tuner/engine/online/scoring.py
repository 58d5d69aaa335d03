"""Log-probabilities of answers before they are learnt from, and what a batch of answers is measured by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from tuner.engine import group
from tuner.engine.online.advantages import spread, without_signal
from tuner.engine.online.experience import Experience
from tuner.engine.online.padded_policy import PaddedPolicy
from tuner.engine.online.references import Reference
from tuner.engine.online.rollouts import Rollouts
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.rows import exact_shape, pack_row
from tuner.engine.packed.steps import StepRunner
from tuner.engine.packed.units import Floats, split_units
from tuner.rewards.reward import Reward

ALONE = 1
"""Tokens of a prompt's answers that lie side by side where each answer gets the prompt anew: one answer alone."""


def log_probs(
    runner: StepRunner, learnt: Experience, together: int, reference: Reference | None = None
) -> list[Floats]:
    """Each answer's log-probs token by token, by the policy as it is or by its reference."""
    return [scores[0] for scores in token_scores(runner, learnt, together, reference)]


@torch.no_grad()
def token_scores(
    runner: StepRunner, learnt: Experience, together: int, reference: Reference | None = None
) -> list[Floats]:
    """All that the policy or its reference says of each answer's tokens, [1 or more, T]; the first are log-probs. Each
    process of the run asks for its share, and all get all."""
    found: dict[int, Floats] = {}
    runner.policy.refresh()
    with nullcontext(runner.policy) if reference is None else reference.here(runner.policy) as policy:
        budget = runner.budget
        if reference is not None and isinstance(policy, PaddedPolicy):
            budget, together = policy.most(budget), ALONE
        placed = list(learnt.placed(most=together))
        numbers = {id(unit): answers for unit, answers in placed}
        own = runner.ranks.share([unit for unit, _ in placed], keep_groups=False)
        for part in split_units(own, budget, keep_groups=False):
            row = pack_row(part, shape=exact_shape(part, policy.blocks))
            scores, _ = policy.forward(DeviceRow(row, runner.device), keep=False)
            order = [answer for unit in part for answer in numbers[id(unit)]]
            ends = np.cumsum([len(learnt.answers[answer]) for answer in order])
            for answer, said in zip(order, np.split(scores.cpu().numpy(), ends, axis=1), strict=False):
                found[answer] = said
    of_all = {answer: said for part in group.gathered(found) for answer, said in part.items()}
    return [of_all[answer] for answer in range(len(learnt.answers))]


def measured(made: Rollouts, grouped: Tensor, rewards: Sequence[Reward]) -> dict[str, float]:
    """A batch of answers by TRL's names. `grouped` are the rewards [P, G] that advantages are made of."""
    total = torch.from_numpy(made.rewards)
    tokens = [one.tokens for one in made.completions]
    found = {
        "reward": float(total.nanmean()),
        "reward_std": float(spread(total)),
        "completions/mean_length": sum(tokens) / len(tokens),
        "completions/max_length": float(max(tokens)),
        "completions/clipped_ratio": sum(not one.finished for one in made.completions) / len(tokens),
    }
    if grouped.shape[1] > 1:
        found["frac_reward_zero_std"] = float(without_signal(grouped).float().mean())
    for reward in rewards:
        part = torch.from_numpy(made.part(reward.name))
        found |= {
            f"rewards/{reward.name}/mean": float(part.nanmean()),
            f"rewards/{reward.name}/std": float(spread(part)),
        }
    return {name: value for name, value in found.items() if not math.isnan(value)}
