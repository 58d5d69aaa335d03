"""From the log-probs of answer tokens to the loss of a row and its metrics; pure tensors, safe to capture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tuner.config.kinds import LABELLED
from tuner.engine.losses import (
    LossSettings,
    canonical_name,
    kto_loss,
    needs_reference,
    preference_loss,
    running_baseline,
)
from tuner.engine.packed.device_row import DeviceRow

# Sums over what was measured and, behind them, how many that were; `finish_metrics` divides.
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


class Objective:
    """Loss of a row and vector of metrics for one set of loss settings.

    `loss_and_grad(token_logps, row)` -> (loss scalar, d loss / d token_logps [N], metrics vector). The row's
    weights make the losses of a step's rows add up to the step's loss.
    """

    def __init__(self, settings: LossSettings, device: torch.device) -> None:
        self.settings = settings
        self.name = canonical_name(settings.pref_loss)
        self.labelled = self.name in LABELLED
        self.needs_reference = self.labelled or needs_reference(self.name)
        zero = torch.zeros((), dtype=torch.float32, device=device)
        self.baseline = Baseline(zero.clone(), zero.clone())

    @property
    def metric_names(self) -> tuple[str, ...]:
        return KTO_METRICS if self.labelled else PAIR_METRICS

    @property
    def keep_groups(self) -> bool:
        """Whether the loss looks across a micro-batch, which then has to stay in one row."""
        return self.labelled or self.settings.pref_bco_weight > 1e-6

    def sums(self, token_logps: Tensor, row: DeviceRow) -> Tensor:
        """Log-prob [S] of every answer; under LD-DPO its tail counts less."""
        weighted = token_logps if self.settings.ld_alpha is None else token_logps * row["token_weights"]
        return segment_sums(weighted, row)

    def loss_and_grad(
        self, token_logps: Tensor, row: DeviceRow, train: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            leaf = token_logps.detach().requires_grad_()
            loss, metrics = self(leaf, row, train)
            (grad,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), grad, metrics

    def __call__(self, token_logps: Tensor, row: DeviceRow, train: bool) -> tuple[Tensor, Tensor]:
        if self.labelled:
            return self._kto(token_logps, row)
        return self._pairs(token_logps, row, train)

    def _pairs(self, token_logps: Tensor, row: DeviceRow, train: bool) -> tuple[Tensor, Tensor]:
        policy = self.sums(token_logps, row).view(-1, 2)
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
        policy, ref = self.sums(token_logps, row).view(-1, 2), row["references"].view(-1, 2)
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
    """Logged values from metric vectors added up over optimizer steps: means over pairs, and for KTO over the answers
    of each side; its kl is the mean over micro-batches."""
    value = dict(zip(names, totals, strict=True))
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
