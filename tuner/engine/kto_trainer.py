"""Answers marked good or bad: TRL's KTOTrainer with the loss of `engine.losses` and pairs that are really mismatched."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import KTOConfig, KTOTrainer

from tuner.config.config import Config
from tuner.engine import group, methods
from tuner.engine.dealing import DealingTrainer
from tuner.engine.live import LiveRun
from tuner.engine.loss_mix import Mixture
from tuner.engine.losses import LossSettings, kl_estimate, kto_loss
from tuner.engine.metric_means import Means, measured_as
from tuner.engine.setup import Start
from tuner.engine.trainer import arguments

PLACEHOLDER = Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}])


class LabelledTrainer(DealingTrainer, KTOTrainer):
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
        share = self.share_of(inputs)
        good = inputs["label"].float()
        answers, strays = _half(inputs, ""), _half(inputs, "KL_")
        policy, balance = self._log_probs(model, answers, routed=self.aux_loss_enabled)
        reference = self.compute_ref_log_probs(self.ref_model or model, answers)[0]
        with torch.no_grad():
            pair = (
                self._log_probs(model, strays)[0],
                self.compute_ref_log_probs(self.ref_model or model, strays)[0],
            )
        distance = kl_estimate(*(self.of_all(log_probs, share) for log_probs in pair))
        losses, rewards = kto_loss(policy, reference, good, distance, self.settings)
        if self.settings.pref_ftx > 1e-6:
            losses = losses - self.settings.pref_ftx * good * policy / answers["completion_mask"].sum(
                1
            ).clamp(min=1)
        self._measure(good.bool(), rewards, policy, distance, share)
        loss = losses.mean() if balance is None else losses.mean() + self.router_aux_loss_coef * balance
        loss = share * loss
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

    def _measure(self, good: Tensor, rewards: Tensor, policy: Tensor, distance: Tensor, share: float) -> None:
        sides = {"chosen": good, "rejected": ~good}
        for name, side in sides.items():
            if bool(side.any()):
                found = {f"rewards/{name}": rewards[side], f"logps/{name}": policy[side]}
                self.means.add(self.model.training, found, share)
        once = share if group.rank() == 0 or not self.model.training else 0.0  # all have the same one
        self.means.add(self.model.training, {"kl": distance}, once)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        found = self.means.take(self.model.training, logs)
        prefix = "" if self.model.training else measured_as(logs) or "eval_"
        if {f"{prefix}rewards/chosen", f"{prefix}rewards/rejected"} <= set(found):
            found[f"{prefix}rewards/margins"] = (
                found[f"{prefix}rewards/chosen"] - found[f"{prefix}rewards/rejected"]
            )
        logs.update(found)
        super().log(logs, start_time)


def _half(inputs: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = ("input_ids", "attention_mask", "completion_mask")
    return {name: inputs[prefix + name] for name in names}


def build(config: Config, run: LiveRun, start: Start, losses: Mixture) -> LabelledTrainer:
    """TRL's trainer around a run's model and its reference."""
    own = {
        "beta": config.pref_beta,
        "max_length": None,
        "disable_dropout": False,
        "train_sampling_strategy": "sequential",  # `mismatched` has shuffled them, good and bad in turn
        "loss_type": "apo_zero_unpaired",  # TRL's own loss is not used, and so needs no pairs of its own
    }
    return LabelledTrainer(
        model=start.model,
        ref_model=methods.reference(config, start.source),
        args=arguments(KTOConfig, config, run, start.plan, **own),
        train_dataset=PLACEHOLDER,
        eval_dataset=PLACEHOLDER if start.rows.eval else None,
        processing_class=start.tokenizer,
        peft_config=start.fresh,
        settings=losses[0][0],
    )
