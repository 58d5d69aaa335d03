"""From the scores of tokens (`logps.py`) to the loss of a row and its metrics; pure tensors, safe to capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tuner.config.kinds import LABELLED
from tuner.engine.decision_losses import MEASURED as DECISION_METRICS
from tuner.engine.decision_losses import finish
from tuner.engine.losses import (
    LossSettings,
    canonical_name,
    kto_loss,
    needs_reference,
    preference_loss,
    running_baseline,
)
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.units import Unit, units_of_scores, units_of_step, units_of_tokens
from tuner.engine.token_losses import dft, nll

# Sums over what was measured and, behind them, how many that were; `finish_metrics` divides.
SCORE_METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "pairs")
TOKEN_METRICS = ("mean_token_accuracy", "entropy", "accuracy", "tokens", "texts")
PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "pairs",
)
KTO_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
    "chosen",
    "rejected",
    "kl",
    "micro_batches",
)


@dataclass
class Baseline:
    """BCO's running mean of the rewards and how many micro-batches it has seen (float32 scalars)."""

    mean: Tensor
    count: Tensor


def segment_sums(values: Tensor, row: DeviceRow) -> Tensor:
    """Per-sequence sums [S] of token values [N]; deterministic, and without what padding adds."""
    return torch.segment_reduce(values, "sum", lengths=row["counts"].long(), unsafe=True)[:-1]


def answer_sums(token_logps: Tensor, row: DeviceRow) -> Tensor:
    """Log-prob [S] of every answer; under LD-DPO the row's weights let its tail count less."""
    return segment_sums(token_logps * row["token_weights"], row)


class Objective(Protocol):
    """Loss of a row and vector of metrics, named by `metric_names`.

    A call takes scores and gives (loss scalar, metrics vector); the row's weights make the losses of a step's rows add
    up to the step's loss. `units` makes the units of one step's examples. `measures` asks for measured scores,
    `keep_groups` is whether the loss looks across a micro-batch, which then has to stay in one row, and `baseline` is
    what the loss remembers from step to step.
    """

    measures: bool
    needs_reference: bool
    ld_alpha: float | None

    @property
    def baseline(self) -> Baseline | None: ...
    @property
    def keep_groups(self) -> bool: ...
    @property
    def metric_names(self) -> tuple[str, ...]: ...
    def units(self, examples: Sequence[Mapping[str, Any]], micro_batch: int) -> list[Unit]: ...
    def __call__(self, scores: Tensor, row: DeviceRow, train: bool) -> tuple[Tensor, Tensor]: ...


def loss_and_grad(
    objective: Objective, scores: Tensor, row: DeviceRow, train: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss scalar, d loss / d log-probs [N], metrics vector) of a row; of all scores [4, N] where values are among them."""
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        loss, metrics = objective(leaf, row, train)
        (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad if len(grad) > 3 else grad[0], metrics.detach()


class TokenObjective:
    """Cross-entropy of learned tokens, or with `dynamic` that of dynamic fine-tuning: a mean over the step's tokens."""

    measures, needs_reference, keep_groups = True, False, False
    ld_alpha: float | None = None
    baseline: Baseline | None = None
    metric_names = TOKEN_METRICS

    def __init__(self, dynamic: bool = False) -> None:
        self.loss = dft if dynamic else nll

    def units(self, examples: Sequence[Mapping[str, Any]], micro_batch: int) -> list[Unit]:
        return units_of_tokens(examples)

    def __call__(self, scores: Tensor, row: DeviceRow, train: bool) -> tuple[Tensor, Tensor]:
        logps, hits, entropy = scores.unbind()
        counts, weights = row["counts"].long(), row["weights"]
        each = torch.cat([weights, weights.new_zeros(1)])  # the last is padding's
        each = torch.repeat_interleave(each, counts, output_size=logps.shape[0])
        real, learned = (each > 0).float(), counts[:-1]
        accuracy = segment_sums(hits.detach(), row) / learned.clamp(min=1)
        sums = ((hits * real).sum(), (entropy * real).sum(), (accuracy * (learned > 0)).sum(), real.sum())
        return (self.loss(logps) * each).sum(), torch.stack([*sums, (learned > 0).float().sum()])


class RewardObjective:
    """-log sigmoid(chosen - rejected) (Bradley-Terry) of the numbers read at the ends of a pair's answers."""

    measures, needs_reference, keep_groups = False, False, False
    ld_alpha: float | None = None
    baseline: Baseline | None = None
    metric_names = SCORE_METRICS

    def __init__(self, pad_id: int | None) -> None:
        self.pad_id = pad_id

    def units(self, examples: Sequence[Mapping[str, Any]], micro_batch: int) -> list[Unit]:
        return units_of_scores(examples, micro_batch, self.pad_id)

    def __call__(self, scores: Tensor, row: DeviceRow, train: bool) -> tuple[Tensor, Tensor]:
        chosen, rejected = answer_sums(scores[0], row).view(-1, 2).unbind(1)
        weights, margins = row["weights"], chosen - rejected
        real = (weights > 0).float()
        logged = (chosen, rejected, (margins > 0).float(), margins)
        sums = [(m.detach() * real).sum() for m in logged]
        return -(F.logsigmoid(margins) * weights).sum(), torch.stack([*sums, real.sum()])


class PreferenceObjective:
    """The preference losses and KTO for one set of loss settings."""

    measures = False

    def __init__(self, settings: LossSettings, device: torch.device) -> None:
        self.settings = settings
        self.name = canonical_name(settings.pref_loss)
        self.labelled = self.name in LABELLED
        self.needs_reference = self.labelled or needs_reference(self.name)
        self.ld_alpha = settings.ld_alpha
        zero = torch.zeros((), dtype=torch.float32, device=device)
        self.baseline = Baseline(zero.clone(), zero.clone())

    @property
    def metric_names(self) -> tuple[str, ...]:
        return KTO_METRICS if self.labelled else PAIR_METRICS

    @property
    def keep_groups(self) -> bool:
        return self.labelled or self.settings.pref_bco_weight > 1e-6

    def units(self, examples: Sequence[Mapping[str, Any]], micro_batch: int) -> list[Unit]:
        return units_of_step(examples, micro_batch)

    def __call__(self, scores: Tensor, row: DeviceRow, train: bool) -> tuple[Tensor, Tensor]:
        return self._kto(scores[0], row) if self.labelled else self._pairs(scores[0], row, train)

    def _pairs(self, token_logps: Tensor, row: DeviceRow, train: bool) -> tuple[Tensor, Tensor]:
        policy = answer_sums(token_logps, row).view(-1, 2)
        ref, lengths, weights = row["references"].view(-1, 2), row["lengths"].view(-1, 2), row["weights"]
        losses, chosen, rejected = preference_loss(
            self.name,
            policy[:, 0],
            policy[:, 1],
            ref[:, 0],
            ref[:, 1],
            lengths[:, 0],
            lengths[:, 1],
            self.settings,
            bco_delta=self._bco_delta(policy.detach() - ref, row, train),
            chosen_nll=self._chosen_nll(token_logps, lengths, row),
        )
        logged = (
            chosen,
            rejected,
            (chosen > rejected).float(),
            chosen - rejected,
            *policy.detach().unbind(1),
        )
        real = (weights > 0).float()
        return (losses * weights).sum(), torch.stack([(m * real).sum() for m in (*logged, real)])

    def _chosen_nll(self, token_logps: Tensor, lengths: Tensor, row: DeviceRow) -> Tensor | None:
        """Mean negative log-likelihood per chosen answer, free of LD-DPO's weights; None if nobody needs
        it."""
        if self.settings.pref_ftx <= 1e-6 or self.settings.ld_alpha is None:
            return None
        plain = segment_sums(token_logps, row).view(-1, 2)[:, 0]
        return -plain / lengths[:, 0].clamp(min=1)

    def _bco_delta(self, ratios: Tensor, row: DeviceRow, train: bool) -> Tensor | None:
        """The baseline per pair [U]; it moves on in training only."""
        if self.settings.pref_bco_weight <= 1e-6:
            return None
        groups, state = row["groups"], self.baseline
        valid = (groups.sum(1) > 0).float()
        means = groups @ (self.settings.pref_beta * ratios).mean(1)
        deltas, mean, count = running_baseline(means, valid, state.mean, state.count)
        if train:
            state.mean.copy_(mean)
            state.count.copy_(count)
        return (groups > 0).float().t() @ deltas

    def _kto(self, token_logps: Tensor, row: DeviceRow) -> tuple[Tensor, Tensor]:
        policy, ref = answer_sums(token_logps, row).view(-1, 2), row["references"].view(-1, 2)
        groups, weights, labels = row["groups"], row["weights"], row["labels"]
        kl = (groups @ (policy.detach() - ref)[:, 1]).clamp(min=0)
        per_unit = (groups > 0).float().t() @ kl
        losses, rewards = kto_loss(policy[:, 0], ref[:, 0], labels, per_unit, self.settings)
        if self.settings.pref_ftx > 1e-6:
            lengths = row["lengths"].view(-1, 2)[:, 0].clamp(min=1)
            losses = losses - self.settings.pref_ftx * labels * policy[:, 0] / lengths
        real = (weights > 0).float()
        good, bad = labels * real, (1 - labels) * real
        logps = policy[:, 0].detach()
        filled = (groups.sum(1) > 0).float()
        parts = [rewards * good, rewards * bad, logps * good, logps * bad, good, bad, kl * filled, filled]
        return (losses * weights).sum(), torch.stack([p.sum() for p in parts])


def finish_metrics(names: tuple[str, ...], totals: list[float]) -> dict[str, float]:
    """Logged values from metric vectors added up over optimizer steps: means over pairs, over learned tokens (accuracy:
    over texts), and for KTO over the answers of each side; its kl is the mean over micro-batches."""
    if names == DECISION_METRICS:
        return finish(totals)
    value = dict(zip(names, totals, strict=True))
    if "texts" in value:
        tokens, texts = max(value.pop("tokens"), 1.0), max(value.pop("texts"), 1.0)
        return {name: total / (texts if name == "accuracy" else tokens) for name, total in value.items()}
    if "kl" not in value:
        pairs = max(value.pop("pairs"), 1.0)
        return {name: total / pairs for name, total in value.items()}
    out = {"kl": value["kl"] / max(value["micro_batches"], 1.0)}
    for side in ("chosen", "rejected"):
        if value[side] > 0:
            out[f"rewards/{side}"] = value[f"rewards/{side}"] / value[side]
            out[f"logps/{side}"] = value[f"logps/{side}"] / value[side]
    if "rewards/chosen" in out and "rewards/rejected" in out:
        out["rewards/margins"] = out["rewards/chosen"] - out["rewards/rejected"]
    return out
