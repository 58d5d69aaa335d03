"""Typed questions on packed rows: a record is a unit, the questions are its answers, and behind each its labels are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner.data.decision_rows import WHOLE
from tuner.data.decisions import LABELS
from tuner.engine.decision_losses import MEASURED, figures, losses, masks, sums
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.objective import Baseline
from tuner.engine.packed.units import Floats, Unit

_TYPE, _SIZE = len(LABELS), len(LABELS) + 1
"""Where, behind the shares of its labels, a question's type and number of options stand in the values of a row."""


def units_of_decisions(examples: Sequence[Mapping[str, Any]]) -> list[Unit]:
    """The units of one optimizer step: every question has the same say in its mean. `examples` as `decision_rows` has them."""
    weight = 1.0 / max(sum(len(example["types"]) for example in examples), 1)
    return [_unit(example, weight) for example in examples]


def _unit(example: Mapping[str, Any], weight: float) -> Unit:
    prompt = np.asarray(example["prompt_ids"], dtype=np.int32)
    ids = np.asarray(example["question_ids"], dtype=np.int32)
    parts = tuple(np.split(ids, np.cumsum(example["question_sizes"])[:-1]))
    ends = tuple(len(prompt) + len(part) - 1 for part in parts)
    return Unit(prompt, parts, weight, ends=ends, values=_values(example))


def _values(example: Mapping[str, Any]) -> tuple[Floats, ...]:
    """[channels, 1] of each question: the share of each of LABELS, its type and how many options it has."""
    found, at = [], 0
    for kind, size in zip(example["types"], example["option_sizes"], strict=True):
        column = np.zeros((_SIZE + 1, 1), dtype=np.float32)
        first = 2 if kind else 0
        column[first : first + size, 0] = np.asarray(example["targets"][at : at + size]) / WHOLE
        column[_TYPE], column[_SIZE] = kind, size
        found.append(column)
        at += size
    return tuple(found)


class DecisionObjective:
    """`decision_losses.losses` of every question, a mean over the questions of the step; scores are [28, N]."""

    measures, needs_reference, keep_groups = False, False, False
    ld_alpha: float | None = None
    baseline: Baseline | None = None
    metric_names = MEASURED

    def __init__(self, how: str, smoothing: float = 0.0) -> None:
        self.how, self.smoothing = how, smoothing

    def units(self, examples: Sequence[Mapping[str, Any]], micro_batch: int) -> list[Unit]:
        return units_of_decisions(examples)

    def __call__(self, scores: Tensor, row: DeviceRow, train: bool) -> tuple[Tensor, Tensor]:
        logits, values = scores.t(), row["token_values"].t()
        targets, types, sizes = values[:, : len(LABELS)], values[:, _TYPE].long(), values[:, _SIZE].long()
        mask, unit = masks(types, sizes), _units(row)
        weights = torch.cat([row["weights"], row["weights"].new_zeros(1)])
        weight = weights[unit]
        each = losses(logits, targets, mask, types, self.how, self.smoothing)
        found = figures(logits, targets, mask, types) | {"loss": each.detach()}
        wrong = torch.zeros_like(weights).index_add_(0, unit, 1 - found["right"])
        real = (weights > 0).float()
        records = torch.stack([real.sum(), (real * (wrong == 0)).sum()])
        return (each * weight).sum(), torch.cat([sums(found, types, (weight > 0).float()), records])


def _units(row: DeviceRow) -> Tensor:
    """The unit [N] that each scored token belongs to; the number of units for padding."""
    answers, size = row.shape.answers, row.shape.sequences
    places = torch.arange(size + 1, device=row["counts"].device) // answers
    return torch.repeat_interleave(places, row["counts"].long(), output_size=row.shape.scored)
