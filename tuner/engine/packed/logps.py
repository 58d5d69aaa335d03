"""What is read off the hidden states of a row: log-probabilities of answer tokens alone, without ever holding their
logits, or the one number of a model that scores.

Scores are [1, N] or, measured, [3, N] float32: log-prob; 1 where the token is the likeliest; entropy in nats.

With a frozen head W [V, H] the gradient of a token's log-prob with respect to its hidden state h is

    W[target] - softmax(h W^T) W

which needs no loss to be known. So one pass over chunks of rows gives the log-probs and these unit
gradients; the backward pass only scales them. No logits are kept and none are computed twice.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn

from tuner.models.llama_family import Norm


def score_tokens(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    kernels: ModuleType,
    chunk: int,
    gradient: bool,
    measure: bool = False,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scores of `targets` [N] given hidden [N, H], and the log-probs' gradients [N, H] if asked for."""
    scores = hidden.new_empty(3 if measure else 1, hidden.shape[0], dtype=torch.float32)
    grads = torch.empty_like(hidden) if gradient else None
    for at in range(0, hidden.shape[0], chunk):
        part = slice(at, at + chunk)
        logits = hidden[part] @ head.t()
        kernels.score_logits(logits, targets[part], scores[:, part], gradient, softcap)
        if grads is not None:
            torch.mm(logits, head, out=grads[part])
    return scores, None if grads is None else grads.neg_()


class FrozenHead:
    """Final norm and language model head on the rows that predict an answer token; `temperature` divides their logits."""

    temperature = 1.0

    def __init__(
        self,
        norm: Norm,
        head: nn.Linear,
        kernels: ModuleType,
        logits_bytes: int,
        softcap: float | None = None,
    ) -> None:
        self.norm, self.head, self.kernels, self.softcap = norm, head, kernels, softcap
        rows = logits_bytes // (head.weight.shape[0] * head.weight.element_size())
        self.chunk = max(16, rows // 16 * 16)

    @torch.no_grad()
    def forward(
        self, x: Tensor, targets: Tensor, keep: bool, measure: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x [N, H] before the final norm -> scores of the targets, and what `backward` needs."""
        normed = torch.empty_like(x)
        rstd = self.kernels.rms_norm(x, self.norm.weight, self.norm.eps, normed)
        if self.temperature != 1.0:
            normed /= self.temperature  # the head is linear
        weight = self.head.weight
        scores, grads = score_tokens(
            normed, weight, targets, self.kernels, self.chunk, keep, measure, self.softcap
        )
        if not keep or grads is None:
            return scores, ()
        return scores, (x, rstd, grads)

    @torch.no_grad()
    def backward(self, d_logps: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        """d log-probs [N] -> d x [N, H]."""
        x, rstd, grads = saved
        d_normed = grads.mul_(d_logps[:, None] / self.temperature)
        return self.kernels.rms_norm_backward(d_normed, x, self.norm.weight, rstd, torch.zeros_like(x))


class LabelHead:
    """Final norm and the rows of a frozen head that belong to some tokens `ids` [L]: their logits alone, in float32."""

    def __init__(
        self, norm: Norm, head: nn.Linear, ids: Tensor, kernels: ModuleType, softcap: float | None
    ) -> None:
        self.norm, self.kernels, self.softcap = norm, kernels, softcap
        self.rows = head.weight.detach().index_select(0, ids).float()

    @torch.no_grad()
    def forward(
        self, x: Tensor, targets: Tensor, keep: bool, measure: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x [N, H] before the final norm -> logits [L, N], and what `backward` needs; there are no targets."""
        normed = torch.empty_like(x)
        rstd = self.kernels.rms_norm(x, self.norm.weight, self.norm.eps, normed)
        logits = self.rows @ normed.float().t()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits, (x, rstd, logits) if keep else ()

    @torch.no_grad()
    def backward(self, d_logits: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        """d logits [L, N] -> d x [N, H]."""
        x, rstd, logits = saved
        if self.softcap is not None:
            d_logits = d_logits * (1 - (logits / self.softcap).square())
        d_normed = (d_logits.t() @ self.rows).to(x.dtype)
        return self.kernels.rms_norm_backward(d_normed, x, self.norm.weight, rstd, torch.zeros_like(x))


class ScoreHead:
    """Final norm and a trained row of weights [1, H] that makes one number of a hidden state, in float32."""

    def __init__(self, norm: Norm, score: nn.Linear, kernels: ModuleType, grad: Tensor) -> None:
        self.norm, self.score, self.kernels, self.grad = norm, score, kernels, grad

    @torch.no_grad()
    def forward(
        self, x: Tensor, targets: Tensor, keep: bool, measure: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x [N, H] before the final norm -> numbers [1, N], and what `backward` needs; there are no targets."""
        normed = torch.empty_like(x)
        rstd = self.kernels.rms_norm(x, self.norm.weight, self.norm.eps, normed)
        scores = self.score.weight.float() @ normed.float().t()
        return scores, (x, rstd, normed) if keep else ()

    @torch.no_grad()
    def backward(self, d_scores: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        """d numbers [N] -> d x [N, H]; the gradient of the weights is added to `grad`."""
        x, rstd, normed = saved
        self.grad.add_(d_scores[None] @ normed.float())
        d_normed = (d_scores[:, None] * self.score.weight.float()).to(x.dtype)
        return self.kernels.rms_norm_backward(d_normed, x, self.norm.weight, rstd, torch.zeros_like(x))
