"""One optimizer step's worth of units, run as packed rows: losses, gradients and metrics, without waiting."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner.engine.packed.bucket_sizes import Level, level_shape
from tuner.engine.packed.device_row import Beside, DeviceRow
from tuner.engine.packed.graphs import RowGraphs
from tuner.engine.packed.objective import Objective, answer_sums, loss_and_grad
from tuner.engine.packed.policy import Policy
from tuner.engine.packed.ranks import ALONE, Ranks
from tuner.engine.packed.rows import Row, exact_shape, pack_row
from tuner.engine.packed.units import Unit, split_units

logger = logging.getLogger(__name__)


@dataclass
class StepResult:
    """Device scalars and vector of one step: loss, metric sums (see `objective.finish_metrics`), tokens
    computed; all of them the whole step's, whoever computed it."""

    loss: Tensor
    metrics: Tensor
    tokens: int


class StepRunner:
    """Runs steps of a policy under a token budget; `graphs` replays rows from CUDA graphs where it can.

    `levels` are the sizes that the rows of training are padded to, `ranks` the processes that share a step, `beside`
    lays out what a row has beside its numbers.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        device: torch.device,
        budget: int,
        graphs: bool,
        ranks: Ranks = ALONE,
        beside: Beside | None = None,
    ) -> None:
        self.beside = beside
        self.levels: Sequence[Level] = ()
        self.ranks = ranks
        self.policy, self.objective, self.device, self.budget = policy, objective, device, budget
        self.capacity = 1
        self.bucketed = graphs and policy.capturable
        self.graphs = RowGraphs(self._train_row, device, enabled=self.bucketed, beside=beside)

    def train(self, units: Sequence[Unit], references: NDArray[np.float32] | None) -> StepResult:
        """Gradients of the units' mean loss into the policy's buffer, which is cleared first.

        Running out of memory is raised before other processes are asked anything: the step may be tried again.
        """
        self.policy.gradients.flat.zero_()
        self.policy.refresh()
        loss, metrics = self._nothing()
        for row in self._rows(units, references, self.levels):
            # a replay overwrites its outputs, so sums are taken out of the graph's memory
            row_loss, row_metrics = self.graphs(row)
            loss, metrics = loss + row_loss, metrics + row_metrics
        return StepResult(loss, metrics, sum(unit.tokens for unit in units))

    def add_up(self, result: StepResult) -> None:
        """The gradients and the result of this process's share become those of the whole step."""
        self.ranks.add(self.policy.gradients.flat, result.loss, result.metrics)

    @torch.no_grad()
    def evaluate(self, units: Sequence[Unit], references: NDArray[np.float32] | None) -> StepResult:
        """The same without gradients, added up."""
        self.policy.refresh()
        loss, metrics = self._nothing()
        for row in self._rows(units, references):
            device_row = DeviceRow(row, self.device, beside=self.beside)
            scores, _ = self.policy.forward(device_row, keep=False, measure=self.objective.measures)
            row_loss, row_metrics = self.objective(scores, device_row, train=False)
            loss, metrics = loss + row_loss, metrics + row_metrics
        self.ranks.add(loss, metrics)
        return StepResult(loss, metrics, sum(unit.tokens for unit in units))

    def _nothing(self) -> tuple[Tensor, Tensor]:
        """Loss and metric sums of no rows."""
        names = self.objective.metric_names
        zeros = torch.zeros(1 + len(names), device=self.device)
        return zeros[0], zeros[1:]

    @torch.no_grad()
    def score(self, units: list[Unit]) -> NDArray[np.float32]:
        """Reference log-probs [units * answers] of one row's units, adapters off."""
        row = pack_row(units, shape=exact_shape(units, self.policy.blocks), ld_alpha=self.objective.ld_alpha)
        device_row = DeviceRow(row, self.device, beside=self.beside)
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
        own = self.ranks.share(units, self.objective.keep_groups)
        for part in split_units(own, self.budget, self.objective.keep_groups):
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
