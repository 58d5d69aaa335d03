"""Losses and figures of typed questions as pure functions of the logits of their labels; deterministic, safe to capture.

Tensors are [Q, 28], a column for each of `LABELS`. A question may use some of them, which its mask says; the others have
the logit LOWEST and the probability 0. `targets` are shares that add up to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tuner.data.decisions import LABELS, TYPES

LOWEST = -1e9
"""The logit of a label that is no option: finite, so that a row of padding has no NaN."""
BINS = 10
"""Of confidence, all as wide, between which the calibration error is measured."""
RPS_SHARE = 0.5
"""What the ranked probability score of a level adds to cross-entropy."""
_NOUL, _CHOICE, _SCORE = range(3)
_SUMS = ("questions", "right", "brier", "kl", "loss")
MEASURED = (
    *(f"{name}/{kind}" for kind in TYPES for name in _SUMS),
    "distance",
    *(f"{name}/{place}" for place in range(BINS) for name in ("held", "sure", "true")),
    "records",
    "records_right",
)
"""What is added up over questions; `finish` divides."""


def masks(types: Tensor, sizes: Tensor) -> Tensor:
    """Which labels each question has [Q, 28], from its type's place in TYPES [Q] and how many options it has [Q]."""
    first = torch.where(types == _NOUL, 0, 2)[:, None]
    places = torch.arange(len(LABELS), device=types.device)[None]
    return (places >= first) & (places < first + sizes[:, None])


def option_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits with those of labels that are no options at LOWEST."""
    return logits.masked_fill(~mask, LOWEST)


def losses(
    logits: Tensor, targets: Tensor, mask: Tensor, types: Tensor, how: str, smoothing: float = 0.0
) -> Tensor:
    """The loss of each question [Q] in nats.

    `ce` is cross-entropy with the shares; `ce_rps` adds to it, for levels, the ranked probability score (Epstein, 1969;
    0 to 1), which is smaller for near misses; `brier` is the squared distance of the shares (Brier, 1950). All three are
    least where the model says the shares themselves. `smoothing` moves so much of them to all options alike.
    """
    if smoothing:
        targets = (1 - smoothing) * targets + smoothing * mask / mask.sum(1, keepdim=True).clamp(min=1)
    logps = F.log_softmax(option_logits(logits, mask), -1)
    if how == "brier":
        return ((logps.exp() - targets) * mask).square().sum(1)
    found = -(targets * logps * mask).sum(1)
    if how == "ce_rps":
        found = found + RPS_SHARE * ranked(logps.exp(), targets, mask) * (types == _SCORE)
    return found


def ranked(shares: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """The ranked probability score [Q]: squared distance of the sums up to each level, over the levels but the last."""
    apart = ((shares - targets) * mask).cumsum(1) * mask
    return apart.square().sum(1) / (mask.sum(1) - 1).clamp(min=1)


def figures(logits: Tensor, targets: Tensor, mask: Tensor, types: Tensor) -> dict[str, Tensor]:
    """What each question shows [Q]: right, brier, kl (target to answer) in nats, sure (the largest share) and distance (of the
    mean levels)."""
    logps = F.log_softmax(option_logits(logits.detach(), mask), -1)
    shares = logps.exp() * mask
    best = shares.argmax(1, keepdim=True)
    levels = torch.arange(len(LABELS), device=logits.device, dtype=torch.float32) - 2
    return {
        "right": (targets.gather(1, best)[:, 0] >= targets.amax(1) - 1e-6).float(),
        "brier": (shares - targets).square().sum(1),
        "kl": (torch.xlogy(targets, targets) - targets * logps * mask).sum(1),
        "sure": shares.amax(1),
        "distance": ((shares - targets) @ levels).abs() * (types == _SCORE),
    }


def sums(found: Mapping[str, Tensor], types: Tensor, real: Tensor) -> Tensor:
    """The figures and `loss` added up, named by MEASURED but for its last two; `real` [Q] is 0 for a question that only fills a row."""
    ones = torch.ones_like(found["loss"])
    parts = []
    for kind in range(len(TYPES)):
        own = real * (types == kind)
        parts += [(value * own).sum() for value in (ones, *(found[name] for name in _SUMS[1:]))]
    parts.append((found["distance"] * real).sum())
    place = (found["sure"] * BINS).long().clamp(max=BINS - 1)
    for number in range(BINS):
        own = real * (place == number)
        parts += [own.sum(), (found["sure"] * own).sum(), (found["right"] * own).sum()]
    return torch.stack(parts)


def in_training(found: Mapping[str, float]) -> dict[str, float]:
    """Of what `finish` found, what a log line of training tells: types are told apart in evaluations, and its loss it has."""
    return {name: value for name, value in found.items() if "/" not in name and name != "loss"}


def finish(totals: Sequence[float]) -> dict[str, float]:
    """Means by the names that a chart has: over questions, over records, and by type."""
    value = dict(zip(MEASURED, totals, strict=True))
    asked = {kind: value[f"questions/{kind}"] for kind in TYPES}
    every = max(sum(asked.values()), 1.0)
    found = {"loss": sum(value[f"loss/{kind}"] for kind in TYPES) / every}
    for name, column in (("accuracy", "right"), ("brier", "brier"), ("kl", "kl")):
        found[name] = sum(value[f"{column}/{kind}"] for kind in TYPES) / every
        found |= {f"{name}/{k}": value[f"{column}/{k}"] / n for k, n in asked.items() if n}
    found["calibration_error"] = (
        sum(abs(value[f"sure/{b}"] - value[f"true/{b}"]) for b in range(BINS)) / every
    )
    if asked[TYPES[_SCORE]]:
        found["score_distance"] = value["distance"] / asked[TYPES[_SCORE]]
    if value["records"]:
        found["record_accuracy"] = value["records_right"] / value["records"]
    return found
