"""Losses on answers as pure functions of log-probabilities; [B, T] in and out, 0 where no token is learned from.

The caller sums them and divides by the number of learned tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TOP = 20  # EAFT looks at so many candidates
TOP_ENTROPY = 3.0  # about the natural log of TOP: the entropy of a model that cannot decide between them


def nll(log_probs: Tensor) -> Tensor:
    """Plain cross-entropy."""
    return -log_probs


def dft(log_probs: Tensor) -> Tensor:
    """Dynamic fine-tuning (arXiv 2508.05629, eq. 9): cross-entropy weighed by the token's own probability."""
    return -log_probs * log_probs.detach().exp()


def eaft(log_probs: Tensor, logits: Tensor, alpha: float) -> Tensor:
    """Entropy-adaptive fine-tuning: cross-entropy weighed by (entropy of the 20 likeliest tokens / 3) ** alpha.

    `logits` is [B, T, V]; the weight carries no gradient and lies between 0 and about 1.
    """
    top = F.log_softmax(
        logits.detach().to(_at_least_single(logits)).topk(min(TOP, logits.shape[-1])).values, dim=-1
    )
    entropy = -(top.exp() * top).sum(-1)
    return -log_probs * (entropy / TOP_ENTROPY).pow(alpha)


def asft(log_probs: Tensor, logits: Tensor, reference: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """Anchored DFT: dft plus alpha times KL(reference || policy) at each learned token; logits are [B, T, V]."""
    now, before = (F.log_softmax(x.to(_at_least_single(x)), -1) for x in (logits, reference))
    divergence = (before.exp() * (before - now)).sum(-1)
    return dft(log_probs) + alpha * divergence * mask


def log_probs_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label, 0 where it is -100; logits [B, T, V], labels [B, T] already shifted."""
    mask = labels != -100
    picked = torch.gather(
        F.log_softmax(logits.to(_at_least_single(logits)), -1), -1, labels.clamp(min=0).unsqueeze(-1)
    ).squeeze(-1)
    return picked * mask


def _at_least_single(values: Tensor) -> torch.dtype:
    """Half types are too coarse for a softmax over a vocabulary; double stays double."""
    return torch.promote_types(values.dtype, torch.float32)
