"""How much better an answer is than what was to be expected: from rewards to advantages, in pure tensors.

A reward that is not a number says nothing of its answer: it enters no mean, and the answer teaches nothing.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]
EPSILON = 1e-4
"""What is added to a standard deviation before it divides, as TRL has it."""


def spread(values: Tensor, dim: int = -1) -> Tensor:
    """The standard deviation of the numbers along a dimension (of n - 1 degrees of freedom); no number where there are
    fewer than two."""
    there = ~values.isnan()
    count = there.sum(dim)
    off = (values - values.nanmean(dim, keepdim=True)).nan_to_num(0.0)
    variance = off.square().sum(dim) / (count - 1)
    return torch.where(count > 1, variance, torch.nan).sqrt()


def of_group(rewards: Tensor, scale: Scale) -> Tensor:
    """GRPO's advantages [P, G] from the rewards of G answers to each of P prompts (arXiv 2402.03300): less the mean of the
    group, over its spread (`group`), over that of all rewards (`batch`, arXiv 2508.08221), or as it is (`none`, Dr. GRPO,
    arXiv 2503.20783)."""
    better = rewards - rewards.nanmean(1, keepdim=True)
    if scale == "group":
        better = better / (spread(rewards)[:, None] + EPSILON)
    elif scale == "batch":
        better = better / (spread(rewards.flatten()) + EPSILON)
    return better.nan_to_num(0.0)


def leave_one_out(rewards: Tensor, normalize: bool = False) -> Tensor:
    """RLOO's advantages [P, G] (arXiv 2402.14740): a reward less the mean of the others to the same prompt. `normalize`
    brings all of them to mean 0 and spread 1."""
    others = (~rewards.isnan()).sum(1, keepdim=True) - 1
    better = rewards - (rewards.nansum(1, keepdim=True) - rewards) / others
    if normalize:
        flat = better.flatten()
        better = (better - flat.nanmean()) / (spread(flat.masked_fill(flat.isinf(), torch.nan)) + EPSILON)
    return better.nan_to_num(0.0, posinf=0.0, neginf=0.0)


def without_signal(rewards: Tensor) -> Tensor:
    """Which groups [P] have nothing to teach: all of their answers that were scored got the same reward, or fewer than two
    were scored."""
    return torch.isclose(spread(rewards).nan_to_num(0.0), rewards.new_zeros(()))


# --- PPO


def of_future(rewards: Tensor, values: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalized advantage estimates [T] of one answer (arXiv 1506.02438), from its tokens' rewards and values [T].

    delta_t = r_t + gamma V_t+1 - V_t, and A_t = delta_t + gamma lam A_t+1; behind the last token there is nothing.
    """
    found = torch.zeros_like(rewards)
    later, next_value = rewards.new_zeros(()), rewards.new_zeros(())
    for t in range(len(rewards) - 1, -1, -1):
        later = rewards[t] + gamma * next_value - values[t] + gamma * lam * later
        found[t], next_value = later, values[t]
    return found


def whitened(values: Tensor, shift: bool = True) -> Tensor:
    """Values [N] with variance 1 (of n degrees of freedom) and, with `shift`, mean 0."""
    mean = values.mean()
    white = (values - mean) * torch.rsqrt(values.var(unbiased=False) + 1e-8)
    return white if shift else white + mean
