"""Preference losses as pure functions of log-probabilities.

One file for both engines: the packed engine trains with it, and the tests hold TRL to it. Names and knobs are
LLaMA-Factory's (`pref_loss`, `pref_beta`, ...); where TRL 1.16 has the loss, the formula is TRL's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tuner.config.kinds import LABELLED, WITHOUT_REFERENCE


@dataclass(frozen=True)
class LossSettings:
    """The knobs that choose and shape a preference loss; every name is LLaMA-Factory's.

    `ld_alpha` (LD-DPO, arXiv 2409.06411): log-probs of tokens beyond the shorter answer's length are
    multiplied by it, for policy and reference alike, as the paper and TRL do.
    """

    pref_loss: str = "sigmoid"
    pref_beta: float = 0.1
    pref_ftx: float = 0.0
    pref_bco_weight: float = 0.0
    simpo_gamma: float = 0.5
    dpo_label_smoothing: float = 0.0
    ld_alpha: float | None = None
    kto_chosen_weight: float = 1.0
    kto_rejected_weight: float = 1.0

    def __post_init__(self) -> None:
        name = canonical_name(self.pref_loss)
        if name == "robust" and self.dpo_label_smoothing == 0.5:
            raise ValueError(
                "pref_loss robust divides by 1 - 2 * dpo_label_smoothing: choose a value below 0.5."
            )
        if name == "exo_pair" and self.dpo_label_smoothing <= 0:
            raise ValueError("pref_loss exo_pair needs dpo_label_smoothing above 0, for example 1e-3.")
        if self.pref_bco_weight > 1e-6 and not needs_reference(name):
            raise ValueError(f"pref_bco_weight needs a loss with a reference model; {name} has none.")


@dataclass(frozen=True)
class PairScores:
    """What a pair loss may look at, all [B]: summed log-probs, their ratios to the reference, lengths."""

    chosen: Tensor
    rejected: Tensor
    chosen_ratio: Tensor
    rejected_ratio: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def margin(self) -> Tensor:
        """The log-ratio of the chosen answer minus that of the rejected one."""
        return self.chosen_ratio - self.rejected_ratio


def _sigmoid(p: PairScores, s: LossSettings) -> Tensor:
    """DPO (arXiv 2305.18290, eq. 7) with conservative label smoothing."""
    h, eps = s.pref_beta * p.margin, s.dpo_label_smoothing
    return -F.logsigmoid(h) * (1 - eps) - F.logsigmoid(-h) * eps


def _hinge(p: PairScores, s: LossSettings) -> Tensor:
    """SLiC-HF (arXiv 2305.10425) on the DPO margin."""
    return torch.relu(1 - s.pref_beta * p.margin)


def _ipo(p: PairScores, s: LossSettings) -> Tensor:
    """IPO (arXiv 2310.12036, eq. 17) on log-ratios averaged over the answer's tokens, as TRL takes it."""
    margin = p.chosen_ratio / p.chosen_length - p.rejected_ratio / p.rejected_length
    return (margin - 1 / (2 * s.pref_beta)) ** 2


def _robust(p: PairScores, s: LossSettings) -> Tensor:
    """Robust DPO (arXiv 2403.00409): unbiased under labels flipped with probability dpo_label_smoothing."""
    h, eps = s.pref_beta * p.margin, s.dpo_label_smoothing
    return (-(1 - eps) * F.logsigmoid(h) + eps * F.logsigmoid(-h)) / (1 - 2 * eps)


def _exo_pair(p: PairScores, s: LossSettings) -> Tensor:
    """EXO (arXiv 2402.00856, eq. 16) for two answers."""
    h, eps = s.pref_beta * p.margin, s.dpo_label_smoothing
    win = torch.sigmoid(h) * (F.logsigmoid(h) - math.log1p(-eps))
    return win + torch.sigmoid(-h) * (F.logsigmoid(-h) - math.log(eps))


def _nca_pair(p: PairScores, s: LossSettings) -> Tensor:
    """NCA (arXiv 2402.05369) for two answers."""
    chosen, rejected = s.pref_beta * p.chosen_ratio, s.pref_beta * p.rejected_ratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def _bco_pair(p: PairScores, s: LossSettings) -> Tensor:
    """BCO (arXiv 2404.04656) with the baseline at zero."""
    return bco_term(p, s.pref_beta, torch.zeros((), device=p.chosen.device))


def _sppo_hard(p: PairScores, s: LossSettings) -> Tensor:
    """SPPO (arXiv 2405.00675) with hard win probabilities 1 and 0."""
    return (p.chosen_ratio - 0.5 / s.pref_beta) ** 2 + (p.rejected_ratio + 0.5 / s.pref_beta) ** 2


def _apo_zero(p: PairScores, s: LossSettings) -> Tensor:
    """APO-zero (arXiv 2408.06266, eq. 7): chosen up, rejected down."""
    return 1 - torch.sigmoid(s.pref_beta * p.chosen_ratio) + torch.sigmoid(s.pref_beta * p.rejected_ratio)


def _apo_down(p: PairScores, s: LossSettings) -> Tensor:
    """APO-down (arXiv 2408.06266, eq. 8): both down, the rejected one further."""
    return torch.sigmoid(s.pref_beta * p.chosen_ratio) + 1 - torch.sigmoid(s.pref_beta * p.margin)


def _sigmoid_norm(p: PairScores, s: LossSettings) -> Tensor:
    """DPO on log-ratios averaged over the answer's tokens."""
    return -F.logsigmoid(
        s.pref_beta * (p.chosen_ratio / p.chosen_length - p.rejected_ratio / p.rejected_length)
    )


def _orpo(p: PairScores, s: LossSettings) -> Tensor:
    """ORPO (arXiv 2403.07691, eqs. 6 and 7) on length-averaged log-probs: likelihood plus odds ratio."""
    chosen, rejected = p.chosen / p.chosen_length, p.rejected / p.rejected_length
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - s.pref_beta * F.logsigmoid(log_odds)


def _simpo(p: PairScores, s: LossSettings) -> Tensor:
    """SimPO (arXiv 2405.14734, eq. 6) on length-averaged log-probs; simpo_gamma is the target margin."""
    margin = p.chosen / p.chosen_length - p.rejected / p.rejected_length
    return -F.logsigmoid(s.pref_beta * margin - s.simpo_gamma)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0 without cancellation on either side of -ln 2."""
    x = torch.minimum(x, torch.full_like(x, -torch.finfo(x.dtype).tiny))
    near = x > -0.6931472
    small = torch.log(-torch.expm1(torch.where(near, x, torch.full_like(x, -1.0))))
    large = torch.log1p(-torch.exp(torch.where(near, torch.full_like(x, -1.0), x)))
    return torch.where(near, small, large)


PAIR_LOSSES: dict[str, Callable[[PairScores, LossSettings], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "orpo": _orpo,
    "simpo": _simpo,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "sigmoid_norm": _sigmoid_norm,
}
ALIASES = {"sppo": "sppo_hard", "nca": "nca_pair", "bco": "bco_pair", "exo": "exo_pair"}


def canonical_name(name: str) -> str:
    """The table's name of a loss; raises ValueError with the list of names for an unknown one."""
    name = ALIASES.get(name, name)
    if name not in PAIR_LOSSES and name not in LABELLED:
        raise ValueError(f"Unknown pref_loss '{name}'. Choose one of: {', '.join(PAIR_LOSSES)}.")
    return name


def needs_reference(name: str) -> bool:
    """Whether a loss compares the policy with a reference model."""
    return canonical_name(name) not in WITHOUT_REFERENCE


def bco_term(p: PairScores, beta: float, delta: Tensor) -> Tensor:
    """The binary classifier loss of BCO around a baseline `delta` (scalar or [B]); returns [B]."""
    return -F.logsigmoid(beta * p.chosen_ratio - delta) - F.logsigmoid(-(beta * p.rejected_ratio - delta))


def preference_loss(
    name: str,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor | None,
    ref_rejected: Tensor | None,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    settings: LossSettings,
    *,
    bco_delta: Tensor | None = None,
    chosen_nll: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per-pair losses and rewards; everything is [B].

    Log-probs are sums over the answer's tokens in float32 (already weighted when `ld_alpha` is set), lengths
    are token counts. `ref_*` may be None for losses without a reference. `bco_delta` is the running baseline
    of the rewards (default 0), `chosen_nll` the mean negative log-likelihood of the chosen answer for
    `pref_ftx` (default: from `policy_chosen`). Rewards carry no gradient: beta times the log-ratio, or beta
    times the mean log-prob for orpo and simpo. As in LLaMA-Factory: loss + pref_ftx * nll, then
    (loss + w * bco) / (1 + w).
    """
    name = canonical_name(name)
    chosen_lengths, rejected_lengths = chosen_lengths.clamp(min=1), rejected_lengths.clamp(min=1)
    if needs_reference(name) and (ref_chosen is None or ref_rejected is None):
        raise ValueError(f"pref_loss {name} needs reference log-probabilities.")
    zero = torch.zeros_like(policy_chosen)
    pair = PairScores(
        policy_chosen,
        policy_rejected,
        policy_chosen - (zero if ref_chosen is None else ref_chosen),
        policy_rejected - (zero if ref_rejected is None else ref_rejected),
        chosen_lengths,
        rejected_lengths,
    )
    losses = PAIR_LOSSES[name](pair, settings)
    if settings.pref_ftx > 1e-6:
        nll = -policy_chosen / chosen_lengths if chosen_nll is None else chosen_nll
        losses = losses + settings.pref_ftx * nll
    if settings.pref_bco_weight > 1e-6:
        bco = bco_term(pair, settings.pref_beta, zero if bco_delta is None else bco_delta)
        losses = (losses + settings.pref_bco_weight * bco) / (1.0 + settings.pref_bco_weight)
    if needs_reference(name):
        rewards = (pair.chosen_ratio, pair.rejected_ratio)
    else:
        rewards = (policy_chosen / chosen_lengths, policy_rejected / rejected_lengths)
    return losses, settings.pref_beta * rewards[0].detach(), settings.pref_beta * rewards[1].detach()


def kto_loss(
    policy: Tensor, reference: Tensor, desirable: Tensor, kl: Tensor, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """KTO (arXiv 2402.01306, eq. 7): per-example losses and rewards, all [B].

    `desirable` is 1.0 or 0.0, `kl` the non-negative estimate (scalar or [B]) that carries no gradient.
    """
    ratio = policy - reference
    good = settings.kto_chosen_weight * (1 - torch.sigmoid(settings.pref_beta * (ratio - kl)))
    bad = settings.kto_rejected_weight * (1 - torch.sigmoid(settings.pref_beta * (kl - ratio)))
    return torch.where(desirable > 0.5, good, bad), settings.pref_beta * ratio.detach()


def kl_estimate(policy_kl: Tensor, reference_kl: Tensor) -> Tensor:
    """KTO's reference point: mean log-ratio of mismatched answers, at least 0, without gradient (scalar)."""
    return (policy_kl - reference_kl).mean().detach().clamp(min=0)


def running_baseline(
    batch_means: Tensor, valid: Tensor, mean: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """BCO's baseline after each of M micro-batches, updated in order.

    `batch_means` [M] are the mean rewards of the micro-batches, `valid` [M] is 0 for those that do not exist,
    `mean` and `count` are the scalars before them. Returns the baselines [M] and the new mean and count.
    """
    seen = count + valid.cumsum(0)
    deltas = (mean * count + (batch_means.detach() * valid).cumsum(0)) / seen.clamp(min=1)
    return deltas, deltas[-1], seen[-1]
