"""Typed questions as padded batches: what the packed rows are held to, and what takes the runs that they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainingArguments

from tuner.config.config import Config
from tuner.data.decision_rows import questions_in
from tuner.data.decisions import LABELS
from tuner.engine import group
from tuner.engine.dealing import DealingTrainer
from tuner.engine.decision_losses import figures, finish, in_training, losses, masks, sums
from tuner.engine.live import LiveRun
from tuner.engine.metric_means import measured_as
from tuner.engine.setup import Start
from tuner.engine.trainer import arguments


def padded(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """The questions of records as one batch, padded on the left so that all end together.

    Beside the ids: `targets` [Q, 28], `types`, `sizes` and `records` (which row each is of) [Q]; `labels` [Q] are no labels
    but what the Trainer counts questions by.
    """
    asked = [(place, one) for place, row in enumerate(rows) for one in questions_in(row)]
    prompts = [torch.tensor(one.prompt) for _, one in asked]
    ids = pad_sequence(prompts, batch_first=True, padding_value=pad_id, padding_side="left")
    ones = [torch.ones_like(prompt) for prompt in prompts]
    mask = pad_sequence(ones, batch_first=True, padding_side="left")
    targets = torch.zeros(len(asked), len(LABELS))
    for number, (_, one) in enumerate(asked):
        first = 2 if one.type else 0
        targets[number, first : first + len(one.shares)] = torch.tensor(one.shares)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "targets": targets,
        "types": torch.tensor([one.type for _, one in asked]),
        "sizes": torch.tensor([len(one.shares) for _, one in asked]),
        "records": torch.tensor([place for place, _ in asked]),
        "labels": torch.zeros(len(asked), dtype=torch.long),
    }


def label_logits(model: nn.Module, inputs: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Logits [Q, 28] of the labels behind each prompt, in float32."""
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
    logits = model(**given, use_cache=False, logits_to_keep=1).logits[:, -1]
    found: Tensor = logits.index_select(1, ids).float()
    return found


class DecisionTrainer(DealingTrainer):
    """transformers' Trainer with the losses of `decision_losses`: a mean over the questions of the whole optimizer step."""

    def __init__(self, *args: Any, config: Config, label_ids: Sequence[int], **rest: Any):
        self.config, self.ids = config, list(label_ids)
        self.totals: dict[str, Tensor] = {}
        super().__init__(*args, **rest)
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = (
            True,
            False,
        )  # it counts `labels` then, all of them

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Summed losses of a batch's questions over the number of questions in the step (scalar)."""
        self.share_of(inputs)
        logits = label_logits(model, inputs, torch.tensor(self.ids, device=inputs["input_ids"].device))
        types, targets = inputs["types"], inputs["targets"]
        mask, real = masks(types, inputs["sizes"]), (inputs["labels"] >= 0).float()
        smoothing = self.config.label_smoothing_factor
        each = losses(logits, targets, mask, types, self.config.decision_loss, smoothing)
        count = real.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = (each * real).sum() / count.clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is that of all, the gradient is averaged
        found = figures(logits, targets, mask, types) | {"loss": each.detach()}
        self._measure(found, inputs, real)
        return (loss, {}) if return_outputs else loss

    def _measure(self, found: Mapping[str, Tensor], inputs: Mapping[str, Tensor], real: Tensor) -> None:
        records = inputs["records"]
        wrong = torch.zeros(int(records.max()) + 1, device=real.device).index_add_(
            0, records, 1 - found["right"]
        )
        whole = real.new_tensor(float(len(wrong))) * real.max()
        added = torch.stack([whole, (wrong == 0).float().sum() * real.max()])
        mode = "train" if self.model.training else "eval"
        new = torch.cat([sums(found, inputs["types"], real), added])
        self.totals[mode] = self.totals.get(mode, torch.zeros_like(new)) + new

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, None, None]:
        """The loss alone: there is nothing else to gather."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        prefix = measured_as(logs)
        totals = self.totals.pop("train" if prefix is None else "eval", None)
        of_all = group.gathered(None if totals is None else totals.tolist())
        parts = [one for one in of_all if one]
        if parts and (prefix is not None or "loss" in logs):
            found = finish([sum(column) for column in zip(*parts, strict=True)])
            found = in_training(found) if prefix is None else found
            logs.update({f"{prefix or ''}{name}": value for name, value in found.items()})
        super().log(logs, start_time)


def build(config: Config, run: LiveRun, start: Start, label_ids: Sequence[int]) -> DecisionTrainer:
    """The trainer around a run's model."""
    if start.fresh is not None:
        start.model, start.fresh = get_peft_model(start.model, start.fresh), None
    return DecisionTrainer(
        model=start.model,
        args=arguments(TrainingArguments, config, run, start.plan),
        data_collator=partial(padded, pad_id=start.tokenizer.pad_token_id),
        train_dataset=start.rows.train,
        eval_dataset=start.rows.eval or None,
        processing_class=start.tokenizer,
        config=config,
        label_ids=label_ids,
    )
