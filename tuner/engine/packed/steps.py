"""One optimizer step's worth of units, run as packed rows: losses, gradients and metrics, without waiting."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner.engine.packed.bucket_sizes import Level, level_shape
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.graphs import RowGraphs
from tuner.engine.packed.objective import Objective, answer_sums, loss_and_grad
from tuner.engine.packed.policy import Policy
from tuner.engine.packed.rows import Row, Unit, exact_shape, pack_row, split_units

logger = logging.getLogger(__name__)


@dataclass
class StepResult:
    """Device scalars and vector of one step: loss, metric sums (see `objective.finish_metrics`), tokens
    computed."""

    loss: Tensor
    metrics: Tensor
    tokens: int


class StepRunner:
    """Runs steps of a policy under a token budget; `graphs` replays rows from CUDA graphs where it can.

    `levels` are the sizes that the rows of training are padded to.
    """

    def __init__(
        self, policy: Policy, objective: Objective, device: torch.device, budget: int, graphs: bool
    ) -> None:
        self.levels: Sequence[Level] = ()
        self.policy, self.objective, self.device, self.budget = policy, objective, device, budget
        self.capacity = 1
        self.bucketed = graphs and policy.capturable
        self.graphs = RowGraphs(self._train_row, device, enabled=self.bucketed)

    def train(self, units: Sequence[Unit], references: NDArray[np.float32] | None) -> StepResult:
        """Gradients of the units' mean loss into the policy's buffer, which is cleared first."""
        self.policy.gradients.flat.zero_()
        self.policy.refresh()
        loss: Any = None
        metrics: Any = None
        tokens = 0
        for row in self._rows(units, references, self.levels):
            row_loss, row_metrics = self.graphs(row)
            # a replay overwrites its outputs, so sums are taken out of the graph's memory
            loss = row_loss.clone() if loss is None else loss + row_loss
            metrics = row_metrics.clone() if metrics is None else metrics + row_metrics
            tokens += row.tokens
        return StepResult(loss, metrics, tokens)

    @torch.no_grad()
    def evaluate(self, units: Sequence[Unit], references: NDArray[np.float32] | None) -> StepResult:
        """The same without gradients."""
        self.policy.refresh()
        loss: Any = 0.0
        metrics: Any = 0.0
        tokens = 0
        for row in self._rows(units, references):
            device_row = DeviceRow(row, self.device)
            scores, _ = self.policy.forward(device_row, keep=False, measure=self.objective.measures)
            row_loss, row_metrics = self.objective(scores, device_row, train=False)
            loss, metrics, tokens = loss + row_loss, metrics + row_metrics, tokens + row.tokens
        return StepResult(loss, metrics, tokens)

    @torch.no_grad()
    def score(self, units: list[Unit]) -> NDArray[np.float32]:
        """Reference log-probs [units * answers] of one row's units, adapters off."""
        row = pack_row(units, shape=exact_shape(units, self.policy.blocks), ld_alpha=self.objective.ld_alpha)
        device_row = DeviceRow(row, self.device)
        with self.policy.reference():
            scores, _ = self.policy.forward(device_row, keep=False)
        found: NDArray[np.float32] = answer_sums(scores[0], device_row).cpu().numpy()
        return found

    def save_memory(self) -> str:
        """After running out of memory: half the budget, recompute every layer, start graphs anew."""
        self.graphs.clear()
        self.levels = ()  # they were for rows of the old budget
        self.budget = max(256, self.budget // 2)
        self.policy.recompute = self.policy.layers
        return f"token budget {self.budget}, every layer recomputed"

    def _rows(
        self, units: Sequence[Unit], references: NDArray[np.float32] | None, levels: Sequence[Level] = ()
    ) -> list[Row]:
        place = {id(unit): i for i, unit in enumerate(units)}
        rows = []
        for part in split_units(units, self.budget, self.objective.keep_groups):
            part.sort(key=lambda u: place[id(u)])
            if self.bucketed:
                self.capacity = max(self.capacity, len(units))
                shape = level_shape(part, self.capacity, levels)
            else:
                shape = exact_shape(part, self.policy.blocks)
            chosen = None
            if references is not None:
                chosen = references.reshape(len(units), -1)[[place[id(u)] for u in part]].reshape(-1)
            rows.append(pack_row(part, chosen, shape, self.objective.ld_alpha))
        return rows

    def _train_row(self, row: DeviceRow) -> tuple[Tensor, Tensor]:
        scores, context = self.policy.forward(row, keep=True, measure=self.objective.measures)
        loss, grad, metrics = loss_and_grad(self.objective, scores, row, train=True)
        self.policy.backward(grad, row, context)
        return loss, metrics
