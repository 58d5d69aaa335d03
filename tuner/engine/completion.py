"""Learning from text and answers: TRL's SFTTrainer on rows that come encoded, with the losses of `engine.token_losses`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import use_adapter

from tuner.config.config import Config
from tuner.engine import methods, token_losses
from tuner.engine.dealing import DealingTrainer
from tuner.engine.live import LiveRun
from tuner.engine.metric_means import Means
from tuner.engine.picture_batches import in_step, with_pictures
from tuner.engine.setup import Start
from tuner.engine.trainer import arguments

PLACEHOLDER = Dataset.from_list([{"input_ids": [0, 0], "labels": [0, 0]}])
"""TRL builds its trainer around a data set; the real rows are put in afterwards."""
# What the model is not given when its logits are wanted: the loss is ours.
_LABELS = frozenset({"labels"})


class CompletionTrainer(DealingTrainer, SFTTrainer):
    """SFTTrainer whose rows are {"input_ids", "labels"} with -100 where nothing is learned; packed ones say seq_lengths.

    `reference` is the frozen model of asft where no adapter can be switched off.
    """

    def __init__(self, *args: Any, config: Config, reference: nn.Module | None = None, **rest: Any):
        self.config = config
        self.reference = reference
        self.means = Means()
        super().__init__(*args, **rest)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Summed token losses over the learned tokens of the whole optimizer step (scalar)."""
        share = self.share_of(inputs)
        if self.label_smoother is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        losses, mask, balance = self._token_losses(model, {**inputs, **routed, "use_cache": False}, share)
        count = mask.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = losses.sum() / count.clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is that of all, the gradient is averaged
        if balance is not None:  # a mean over this micro-batch, so of the whole step it is only a part
            parts = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + share * self.router_aux_loss_coef * balance / parts
        return (loss, {}) if return_outputs else loss

    def _token_losses(
        self, model: nn.Module, inputs: dict[str, Any], share: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses [B, T], which of them count, and the balance of a mixture of experts where one is asked for."""
        if self.config.use_eaft_loss or self.config.use_asft_loss:
            return self._with_logits(model, inputs, share)
        output = model(**inputs, fused_lm_head=True)
        measured = {
            "mean_token_accuracy": output.is_top1[output.label_mask],
            "entropy": output.entropy[output.label_mask],
        }
        self.means.add(self.model.training, measured, share)
        if self.config.compute_accuracy and not self.model.training:
            each = output.is_top1.sum(1) / output.label_mask.sum(1).clamp(min=1)
            self.means.add(False, {"accuracy": each}, share)
        loss = token_losses.dft if self.config.use_dft_loss else token_losses.nll
        return loss(output.log_probs), output.label_mask, output.aux_loss

    def _with_logits(
        self, model: nn.Module, inputs: dict[str, Any], share: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        given = {name: value for name, value in inputs.items() if name not in _LABELS}
        output, labels = model(**given), inputs["labels"][:, 1:]
        logits, balance = output.logits[:, :-1], getattr(output, "aux_loss", None)
        found, mask = token_losses.log_probs_of(logits, labels), labels != -100
        self.means.add(
            self.model.training, {"mean_token_accuracy": (logits.argmax(-1) == labels)[mask].float()}, share
        )
        if self.config.use_eaft_loss:
            return token_losses.eaft(found, logits, self.config.eaft_alpha), mask, balance
        before = self._reference_logits(given)
        return token_losses.asft(found, logits, before, mask, self.config.asft_alpha), mask, balance

    def _reference_logits(self, given: dict[str, Any]) -> Tensor:
        """What the model said before the run."""
        model = self.reference or self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), nullcontext() if self.reference is not None else use_adapter(model, None):
            logits: Tensor = model(**given).logits[:, :-1]
        return logits

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs.update(self.means.take(self.model.training, logs))
        super().log(logs, start_time)


def collator(pad_id: int, packed: bool) -> DataCollatorForLanguageModeling:
    """Rows into a batch: padded on the right, or, packed, all in one row whose positions begin anew at each example.

    Without an attention mask, transformers reads the borders off the positions, so no example sees another.
    """
    return DataCollatorForLanguageModeling(pad_token_id=pad_id, padding_free=packed)


def build(config: Config, run: LiveRun, start: Start) -> CompletionTrainer:
    """TRL's trainer around a run's model."""
    made = CompletionTrainer(
        model=start.model,
        args=arguments(SFTConfig, config, run, start.plan, max_length=None),
        data_collator=with_pictures(collator(start.tokenizer.pad_token_id, start.packed), start.sight),
        train_dataset=PLACEHOLDER,
        eval_dataset=PLACEHOLDER if start.rows.eval else None,
        processing_class=start.tokenizer,
        peft_config=start.fresh,
        config=config,
        reference=methods.reference(config, start.source) if config.use_asft_loss else None,
    )
    in_step(made.model, start.sight)
    return made
