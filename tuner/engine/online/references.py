"""What a model is held to while it learns from rewards: the model as it was before the run, or another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import nn

from tuner.engine.packed.policy import Policy


class Reference(Protocol):
    """Makes a policy score as the reference does."""

    def here(self, policy: Policy) -> AbstractContextManager[Policy]: ...

    def is_model(self, model: nn.Module) -> bool:
        """Whether the model that learns is its reference still: their distance is 0 then, and what is computed of it is
        rounding, of which Adam would make whole steps."""


class AdapterOff:
    """The base model, under an adapter that began as nothing."""

    @contextmanager
    def here(self, policy: Policy) -> Iterator[Policy]:
        """Inside, the policy is the reference."""
        with policy.reference():
            yield policy

    def is_model(self, model: nn.Module) -> bool:
        """It is while every B is 0."""
        return not any(p.any() for name, p in model.named_parameters() if "lora_B" in name)


class FirstWeights:
    """The trained weights as they were when this was made: of an adapter that is gone on with, or of a whole model. Inside
    `here` the present ones are kept instead."""

    def __init__(self, model: nn.Module):
        self.kept = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]

    @contextmanager
    def here(self, policy: Policy) -> Iterator[Policy]:
        """Inside, the policy is the reference."""
        self._exchange(policy)
        try:
            yield policy
        finally:
            self._exchange(policy)

    def is_model(self, model: nn.Module) -> bool:
        """It is while no weight has changed."""
        return all(torch.equal(p, other) for p, other in self.kept)

    def _exchange(self, policy: Policy) -> None:
        """The weights of then and of now in each other's place, one after the other: there is no third copy of all."""
        with torch.no_grad():
            for p, other in self.kept:
                before = p.detach().clone()
                p.data.copy_(other)
                other.copy_(before)
        policy.refresh()


class AnotherModel:
    """A model of its own."""

    def __init__(self, policy: Policy):
        self.policy = policy

    @contextmanager
    def here(self, policy: Policy) -> Iterator[Policy]:
        """Inside, scores come from that model."""
        yield self.policy

    def is_model(self, model: nn.Module) -> bool:
        """It never is."""
        return False
