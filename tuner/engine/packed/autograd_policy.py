"""Any decoder of transformers on packed rows, through its own modules and autograd: other architectures, whole models,
adapters with dropout or magnitudes, layers trained beside an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tuner.engine.packed import attention
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.logps import score_tokens
from tuner.engine.packed.lora import GradientBuffer
from tuner.engine.packed.policy import LOGITS_BYTES, kernels_for, score_of
from tuner.models.llama_family import causal_lm, decoder_of, in_use
from tuner.plan.engine import HEAD_SIZES


class AutogradPolicy:
    """A decoder `inner.<base_model_prefix>` with a language model head without bias, or one that scores.

    `autocast` makes the context under which the model runs (mixed precision as the trainer has it).
    """

    temperature = 1.0
    """What logits are divided by."""

    def __init__(self, model: Any, autocast: Any = nullcontext, logits_bytes: int = LOGITS_BYTES) -> None:
        self.model, self.inner, self.autocast = model, causal_lm(model), autocast
        self.gradients = GradientBuffer([p for p in model.parameters() if p.requires_grad])
        self.in_place = all(p.dtype == torch.float32 for p in self.gradients.parameters)
        self.decoder = decoder_of(self.inner)
        weight = next(self.decoder.parameters())
        self.kernels, self.blocks = kernels_for(weight.device), weight.device.type == "cuda"
        self.random = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
        rows = logits_bytes // (self.inner.config.get_text_config().vocab_size * 4)
        self.chunk = max(16, rows // 16 * 16)
        self.layers = int(self.inner.config.get_text_config().num_hidden_layers)
        self.softcap = getattr(self.inner.config, "final_logit_softcapping", None)
        self._recompute = 0
        self.labels: Tensor | None = None

    def read_labels(self, ids: Sequence[int]) -> None:
        """Read the logits of these tokens instead of what an answer's tokens are."""
        self.labels = torch.tensor(list(ids), device=next(self.decoder.parameters()).device)

    @property
    def capturable(self) -> bool:
        """Whether rows may be replayed from graphs. What is drawn twice alike needs the generator's state, which a graph
        cannot ask for, and without a kernel attention is laid out by the host; so is what pictures add behind layers."""
        config = self.inner.config.get_text_config()
        heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        deep = getattr(getattr(self.inner.config, "vision_config", None), "deepstack_visual_indexes", None)
        return self.blocks and heads in HEAD_SIZES and not (self.random and self._recompute) and not deep

    @property
    def recompute(self) -> int:
        """Layers recomputed in the backward pass: none or all."""
        return self._recompute

    @recompute.setter
    def recompute(self, layers: int) -> None:
        if layers and not self._recompute:
            options = {"use_reentrant": False, "preserve_rng_state": self.random}
            self.inner.gradient_checkpointing_enable(options)
        elif self._recompute and not layers:
            self.inner.gradient_checkpointing_disable()
        self._recompute = self.layers if layers else 0

    def forward(self, row: DeviceRow, keep: bool, measure: bool = False) -> tuple[Tensor, Any]:
        if self.model.training != keep:  # dropout and recomputing are for training alone
            self.model.train(keep)
        with torch.set_grad_enabled(keep), self.autocast(), attention.over(self.decoder, row):
            picked = self.hidden(row).index_select(0, row["sources"])
            scores = self._scores(picked, row["targets"], keep, measure)
        return scores.detach(), scores[0] if self.labels is None else scores

    def hidden(self, row: DeviceRow) -> Tensor:
        """Hidden states [T, H] behind the last layer."""
        ids, positions, seen = row["ids"].long(), row["positions"][None].long(), row.seen
        given: dict[str, Any] = {"input_ids": ids[None], "position_ids": positions}
        if seen is not None:
            embeds = seen.embedded(self.decoder.get_input_embeddings()(ids))
            positions = seen.positions[:, None] if len(seen.positions) > 1 else seen.positions
            given = {"inputs_embeds": embeds[None], "position_ids": positions}
        if seen is not None and seen.deep:
            deep = [level[seen.places] for level in seen.deep]
            given |= {"visual_pos_masks": seen.places[None], "deepstack_visual_embeds": deep}
        hidden: Tensor = self.decoder(**given, use_cache=False).last_hidden_state[0]
        return hidden

    def _scores(self, hidden: Tensor, targets: Tensor, keep: bool, measure: bool) -> Tensor:
        if (score := score_of(self.inner)) is not None:
            return score(hidden.to(score.weight.dtype)).float().t()
        head = in_use(self.inner.get_output_embeddings()).weight
        if self.labels is not None:
            return self._label_logits(hidden, head, self.labels)
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        if self.temperature != 1.0:
            hidden = hidden / self.temperature  # the head is linear
        scored = _ScoredByTrained if head.requires_grad else _Scored
        return scored.apply(hidden, head, targets, self.kernels, self.chunk, keep, measure, self.softcap)

    def _label_logits(self, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        """[L, N] in float32, also under autocast: a logit of 8 bits would be off by a sixteenth."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = head.index_select(0, labels).float() @ hidden.float().t()
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def backward(self, d_logps: Tensor, row: DeviceRow, context: Any) -> None:
        # layers that are recomputed attend again, over the same row
        again = attention.over(self.decoder, row) if self._recompute else nullcontext()
        weights = self.gradients.parameters
        with again:
            if self.in_place:
                self.gradients.publish()
                torch.autograd.backward(context, d_logps, inputs=weights)
                return
            grads = torch.autograd.grad(context, weights, d_logps, allow_unused=True)
        for p, grad in zip(weights, grads, strict=True):
            if grad is not None:
                self.gradients.view(p).add_(grad)

    def refresh(self) -> None:
        """Nothing to do: the modules read their own parameters."""

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the adapters are off (a model without adapters is used as it is)."""
        off = self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else nullcontext()
        with off:
            yield


class _Scored(torch.autograd.Function):
    """`score_tokens` under autograd; the head is frozen."""

    @staticmethod
    def forward(ctx, hidden, head, targets, kernels, chunk, keep, measure, softcap):  # type: ignore[no-untyped-def]
        weight = head.to(hidden.dtype)
        scores, grads = score_tokens(hidden, weight, targets, kernels, chunk, keep, measure, softcap)
        if keep:
            ctx.save_for_backward(grads)
        return scores

    @staticmethod
    def backward(ctx, d_scores):  # type: ignore[no-untyped-def]
        (grads,) = ctx.saved_tensors
        return grads * d_scores[0, :, None].to(grads.dtype), *[None] * 7


class _ScoredByTrained(torch.autograd.Function):
    """The same where the head learns too: its gradient needs the loss's, so logits are made again, a chunk at a time."""

    @staticmethod
    def forward(ctx, hidden, head, targets, kernels, chunk, keep, measure, softcap):  # type: ignore[no-untyped-def]
        weight = head.to(hidden.dtype)
        scores, _ = score_tokens(hidden, weight, targets, kernels, chunk, False, measure, softcap)
        ctx.save_for_backward(hidden, head, targets)
        ctx.kernels, ctx.chunk, ctx.softcap = kernels, chunk, softcap
        return scores

    @staticmethod
    def backward(ctx, d_scores):  # type: ignore[no-untyped-def]
        hidden, head, targets = ctx.saved_tensors
        weight, d_hidden = head.to(hidden.dtype), torch.empty_like(hidden)
        d_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
        spent = torch.empty(1, len(targets), device=head.device)
        for at in range(0, len(targets), ctx.chunk):
            part = slice(at, at + ctx.chunk)
            logits = hidden[part] @ weight.t()
            ctx.kernels.score_logits(logits, targets[part], spent[:, part], True, ctx.softcap)
            logits *= -d_scores[0, part, None].to(logits.dtype)
            torch.mm(logits, weight, out=d_hidden[part])
            d_head += logits.t() @ hidden[part]
        return d_hidden, d_head.to(head.dtype), *[None] * 6
