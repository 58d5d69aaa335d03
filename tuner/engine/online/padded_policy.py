"""Any causal language model on packed rows, one padded sequence an answer: models whose layers know no packed rows, and
PPO's, which also says what it expects of each token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.lora import GradientBuffer
from tuner.models.llama_family import causal_lm
from tuner.plan.memory import padded_budget

Sequences = list[tuple[Tensor, int]]


class PaddedPolicy:
    """A model's own forward pass under autograd. Scores are [3, N]: log-prob, nothing, entropy; with a `value_head`
    [4, N], the last what it expects.

    `autocast` makes the context under which the model runs, `temperature` divides the logits.
    """

    capturable = False

    def __init__(
        self,
        model: Any,
        autocast: Any = nullcontext,
        temperature: float = 1.0,
        value_head: nn.Module | None = None,
    ) -> None:
        self.model, self.autocast, self.temperature = model, autocast, temperature
        self.value_head = value_head
        trained = [p for p in model.parameters() if p.requires_grad]
        trained += [] if value_head is None else list(value_head.parameters())
        self.gradients = GradientBuffer(trained)
        self.layers, self._recompute = 1, 0
        self.blocks = next(model.parameters()).device.type == "cuda"

    def most(self, budget: int) -> int:
        """How many of so many tokens a row may have: it makes the logits of all at once."""
        return min(budget, padded_budget(causal_lm(self.model).config.get_text_config().vocab_size))

    @property
    def recompute(self) -> int:
        """Layers recomputed in the backward pass: none or all."""
        return self._recompute

    @recompute.setter
    def recompute(self, layers: int) -> None:
        inner = causal_lm(self.model)
        if layers and not self._recompute:
            inner.gradient_checkpointing_enable({"use_reentrant": False})
        elif self._recompute and not layers:
            inner.gradient_checkpointing_disable()
        self._recompute = int(bool(layers))

    def forward(self, row: DeviceRow, keep: bool, measure: bool = False) -> tuple[Tensor, Tensor]:
        if self.model.training != keep:  # dropout and recomputing are for training alone
            self.model.train(keep)
        with torch.set_grad_enabled(keep):
            scores = self._scores(_sequences(row), row.shape.scored)
        return scores.detach(), scores

    def backward(self, d_logps: Tensor, row: DeviceRow, context: Tensor) -> None:
        """Adds the gradients of the sum of d * log-probs [N]; of all scores where d is [4, N]."""
        given = context if d_logps.dim() == 2 else context[0]
        grads = torch.autograd.grad(given, self.gradients.parameters, d_logps, allow_unused=True)
        for p, grad in zip(self.gradients.parameters, grads, strict=True):
            if grad is not None:
                self.gradients.view(p).add_(grad)

    def _scores(self, sequences: Sequences, scored: int) -> Tensor:
        ids = pad_sequence([ids for ids, _ in sequences], batch_first=True)
        mask = pad_sequence([torch.ones_like(ids) for ids, _ in sequences], batch_first=True)
        hidden = {"output_hidden_states": True} if self.value_head is not None else {}
        with self.autocast():
            output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **hidden)
        places = [
            (number, torch.arange(begin - 1, len(one) - 1, device=ids.device))
            for number, (one, begin) in enumerate(sequences)
        ]
        rows = torch.cat([torch.full_like(at, number) for number, at in places])
        at = torch.cat([at for _, at in places])
        logits = output.logits[rows, at].float() / self.temperature
        logps = logits.log_softmax(-1)
        own = logps.gather(1, ids[rows, at + 1][:, None])[:, 0]
        entropy = -(logps.exp() * logps).sum(-1)
        scores = [own, torch.zeros_like(own), entropy.detach()]
        if self.value_head is not None:
            last = output.hidden_states[-1][rows, at]
            scores.append(self.value_head(last.float())[:, 0])
        found = torch.stack(scores)
        return torch.nn.functional.pad(found, (0, scored - found.shape[1]))

    def refresh(self) -> None:
        """Nothing to do: the model reads its own parameters."""

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the adapters are off."""
        off = self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else nullcontext()
        with off:
            yield


def _sequences(row: DeviceRow) -> Sequences:
    """Each answer behind its prompt, and where in that it begins."""
    ids = row["ids"].long()
    return [
        (torch.cat([ids[prompt[0] : prompt[1]], ids[begin:end]]), prompt[1] - prompt[0])
        for prompt, answers in row.segments
        for begin, end in answers
    ]
