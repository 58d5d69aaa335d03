"""How strongly PPO holds a model to its reference: a weight that follows the distance (arXiv 1909.08593)."""

from __future__ import annotations

from dataclasses import dataclass

HORIZON = 10_000
"""Answers in which the weight may change by about e to the power of the clipped error."""
CLIPPED = 0.2


@dataclass
class AdaptiveWeight:
    """The weight of the distance to the reference. Where the distance is beyond `target` nats an answer it grows, where it
    is nearer it shrinks."""

    target: float
    value: float = 0.2

    def update(self, distance: float, answers: int) -> None:
        """Take in the mean distance of so many answers."""
        error = min(max(distance / self.target - 1, -CLIPPED), CLIPPED)
        self.value *= 1 + error * answers / HORIZON
