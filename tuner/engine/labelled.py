"""Answers marked good or bad: TRL's KTOTrainer with the loss of `engine.losses` and pairs that are really mismatched."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from trl import KTOTrainer

from tuner.config.config import Config
from tuner.engine.losses import LossSettings, kl_estimate, kto_loss
from tuner.engine.means import Means

Row = dict[str, Any]


def mismatched(rows: Sequence[Row], config: Config) -> list[Row]:
    """Rows in training order, each with an answer that belongs to another prompt (`KL_completion_ids`).

    Good and bad ones alternate in proportion, so that a batch has both. The mismatched answers of a batch are the
    answers of that batch, one place further, as KTO's estimate of the distance to the reference wants them
    (arXiv 2402.01306, sec. 4.1); where that is the same prompt, the next other one is taken.
    """
    order = list(rows) if config.disable_shuffling else in_turn(rows, config.seed)
    size = config.per_device_train_batch_size
    return [
        {**row, "KL_completion_ids": order[_partner(order, i, size)]["completion_ids"]}
        for i, row in enumerate(order)
    ]


def in_turn(rows: Sequence[Row], seed: int) -> list[Row]:
    """Shuffled, with good and bad rows spread evenly over the whole."""
    chance = random.Random(seed)
    placed = []
    for label in (True, False):
        group = [r for r in rows if bool(r["label"]) is label]
        chance.shuffle(group)
        placed += [((i + chance.random()) / len(group), row) for i, row in enumerate(group)]
    return [row for _, row in sorted(placed, key=lambda p: p[0])]


def _partner(order: Sequence[Row], index: int, size: int) -> int:
    """The row whose answer goes with row `index`'s prompt: the one before it in its batch, or the next that differs."""
    begin = index - index % size
    batch = range(begin, min(begin + size, len(order)))
    nearest_first = [begin + (index - begin - step) % len(batch) for step in range(1, len(batch))]
    others = ((index + step) % len(order) for step in range(1, len(order)))
    prompt = order[index]["prompt_ids"]
    for other in (*nearest_first, *others):
        if order[other]["prompt_ids"] != prompt:
            return other
    return (index + 1) % len(order)


class LabelledTrainer(KTOTrainer):
    """KTOTrainer whose loss is `kto_loss`; rows are {"prompt_ids", "completion_ids", "KL_completion_ids", "label"}."""

    def __init__(self, *args: Any, settings: LossSettings, **rest: Any):
        self.settings = settings
        self.means = Means()
        super().__init__(*args, **rest)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss of a batch of marked answers (scalar)."""
        good = inputs["label"].float()
        answers, strays = _half(inputs, ""), _half(inputs, "KL_")
        policy, balance = self._log_probs(model, answers, routed=self.aux_loss_enabled)
        reference = self.compute_ref_log_probs(self.ref_model or model, answers)[0]
        with torch.no_grad():
            pair = (
                self._log_probs(model, strays)[0],
                self.compute_ref_log_probs(self.ref_model or model, strays)[0],
            )
        distance = kl_estimate(*self.accelerator.gather(pair))
        losses, rewards = kto_loss(policy, reference, good, distance, self.settings)
        if self.settings.pref_ftx > 1e-6:
            losses = losses - self.settings.pref_ftx * good * policy / answers["completion_mask"].sum(
                1
            ).clamp(min=1)
        self._measure(good.bool(), rewards, policy, distance)
        loss = losses.mean() if balance is None else losses.mean() + self.router_aux_loss_coef * balance
        return (loss, {}) if return_outputs else loss

    def _log_probs(
        self, model: nn.Module, batch: dict[str, Tensor], routed: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Summed log-probabilities of the answers [B]; the balance of a mixture of experts when `routed`."""
        mask = batch["completion_mask"]
        labels = batch["input_ids"].masked_fill(mask == 0, -100)
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        more = {"output_router_logits": True} if routed else {}
        output = model(**given, **more, labels=labels, use_cache=False, fused_lm_head=True)
        return output.log_probs[:, -(mask.shape[1] - 1) :].float().sum(1), output.aux_loss

    def _measure(self, good: Tensor, rewards: Tensor, policy: Tensor, distance: Tensor) -> None:
        sides = {"chosen": good, "rejected": ~good}
        for name, side in sides.items():
            if bool(side.any()):
                self.means.add(
                    self.model.training, {f"rewards/{name}": rewards[side], f"logps/{name}": policy[side]}
                )
        self.means.add(self.model.training, {"kl": distance})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        found = self.means.take(self.model.training, self.accelerator)
        prefix = "" if self.model.training else "eval_"
        if {f"{prefix}rewards/chosen", f"{prefix}rewards/rejected"} <= set(found):
            found[f"{prefix}rewards/margins"] = (
                found[f"{prefix}rewards/chosen"] - found[f"{prefix}rewards/rejected"]
            )
        logs.update(found)
        super().log(logs, start_time)


def _half(inputs: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = ("input_ids", "attention_mask", "completion_mask")
    return {name: inputs[prefix + name] for name in names}
