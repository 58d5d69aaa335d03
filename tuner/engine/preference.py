"""Learning from pairs: TRL's DPOTrainer with the preference losses of `engine.losses`.

TRL carries the model, the reference and the loop. The loss is ours because TRL's trainer has no orpo, simpo,
label smoothing on sigmoid, per-answer pref_ftx or running BCO baseline; only public methods are overridden.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import DPOConfig, DPOTrainer

from tuner.config.config import Config
from tuner.engine import methods
from tuner.engine.dealing import DealingTrainer
from tuner.engine.live import LiveRun
from tuner.engine.loss_mix import Mixture, trl_settings
from tuner.engine.losses import needs_reference, preference_loss, running_baseline
from tuner.engine.metric_means import Means, measured_as
from tuner.engine.picture_batches import in_step, with_pictures
from tuner.engine.setup import Start
from tuner.engine.trainer import arguments

# TRL builds its trainer around a data set it tokenises itself; the real rows come encoded and are put in afterwards.
BESIDE_THE_MODEL = frozenset({"completion_mask", "ref_chosen_logps", "ref_rejected_logps"})
"""What a batch holds that the model is not given."""
PLACEHOLDER = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])


class Baseline(TrainerCallback, ExportableState):
    """BCO's running mean of rewards. A callback, so that it is saved in a checkpoint and restored from it."""

    def __init__(self, mean: float = 0.0, count: float = 0.0):
        self.mean, self.count = mean, count

    def state(self) -> dict[str, Any]:
        return {"args": {"mean": self.mean, "count": self.count}, "attributes": {}}

    def update(self, rewards: Tensor) -> Tensor:
        """Take in a micro-batch of rewards; returns the mean of all so far (scalar)."""
        before = rewards.new_tensor([self.mean, self.count])
        deltas, mean, count = running_baseline(
            rewards.mean().reshape(1), rewards.new_ones(1), before[0], before[1]
        )
        self.mean, self.count = float(mean), float(count)
        return deltas[-1]


class PreferenceTrainer(DealingTrainer, DPOTrainer):
    """DPOTrainer whose loss is a sum of `preference_loss`; rows are {"prompt_ids", "chosen_ids", "rejected_ids"}.

    Without `losses` the loss is TRL's own, as its config says.
    """

    def __init__(self, *args: Any, losses: Mixture, **rest: Any):
        self.losses = losses
        self.means = Means()
        super().__init__(*args, **rest)
        self.add_callback(Baseline())

    @property
    def baseline(self) -> Baseline:
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Baseline))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss of a batch whose first half is chosen and second half rejected (scalar)."""
        share = self.share_of(inputs)
        if not self.losses:
            with self.gathering(share):
                found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return (share * found[0], found[1]) if return_outputs else share * found
        (policy, balance), mask = self._token_log_probs(model, inputs), inputs["completion_mask"][:, 1:]
        chosen, rejected = (policy * length_weights(mask, self.losses[0][0].ld_alpha)).sum(1).chunk(2)
        ref_chosen: Tensor | None = None
        ref_rejected: Tensor | None = None
        if any(needs_reference(s.pref_loss) for s, _ in self.losses):
            ref_chosen, ref_rejected = self.compute_ref_log_probs(self.ref_model or model, inputs)
        lengths, reference = mask.sum(1).chunk(2), (ref_chosen, ref_rejected)
        loss_of = partial(
            preference_loss,
            bco_delta=self._baseline_after(chosen, rejected, reference, share),
            chosen_nll=-policy.chunk(2)[0].sum(1) / lengths[0].clamp(min=1),
        )
        each = [
            (weight, *loss_of(s.pref_loss, chosen, rejected, *reference, lengths[0], lengths[1], s))
            for s, weight in self.losses
        ]
        loss = sum(weight * losses.mean() for weight, losses, _, _ in each)
        if balance is not None:
            loss = loss + self.router_aux_loss_coef * balance
        self._measure(chosen, rejected, *each[0][2:], share)
        return (share * loss, {}) if return_outputs else share * loss

    def _measure(self, chosen: Tensor, rejected: Tensor, good: Tensor, bad: Tensor, share: float) -> None:
        self.means.add(
            self.model.training,
            {
                "rewards/chosen": good,
                "rewards/rejected": bad,
                "rewards/margins": good - bad,
                "rewards/accuracies": (good > bad).float(),
                "logps/chosen": chosen,
                "logps/rejected": rejected,
            },
            share,
        )

    def _token_log_probs(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the completion's tokens, 0 elsewhere [2B, T-1]; the balance of a mixture of experts."""
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        given = {name: value for name, value in inputs.items() if name not in BESIDE_THE_MODEL}
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        output = model(**given, **routed, labels=labels, use_cache=False, fused_lm_head=True)
        return output.log_probs[:, -(mask.shape[1] - 1) :].float(), output.aux_loss

    def _baseline_after(
        self, chosen: Tensor, rejected: Tensor, reference: tuple[Tensor | None, Tensor | None], share: float
    ) -> Tensor | None:
        settings = self.losses[0][0]
        if settings.pref_bco_weight <= 1e-6 or reference[0] is None or reference[1] is None:
            return None
        rewards = (
            settings.pref_beta * torch.stack([chosen - reference[0], rejected - reference[1]], 1).detach()
        )
        if not self.model.training:
            return rewards.new_tensor(self.baseline.mean)
        return self.baseline.update(self.of_all(rewards, share))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs.update(self.means.take(self.model.training, logs))
        if (
            prefix := measured_as(logs) or "eval_"
        ) != "eval_":  # TRL calls its own measures of each set the same
            own = prefix.removeprefix("eval_")
            self._metrics["eval"] = defaultdict(
                list, {own + name: values for name, values in self._metrics["eval"].items()}
            )
        super().log(logs, start_time)


def length_weights(mask: Tensor, ld_alpha: float | None) -> Tensor:
    """LD-DPO (arXiv 2409.06411): 1 for completion tokens up to the shorter answer's length, ld_alpha beyond; [2B, T]."""
    if ld_alpha is None:
        return mask.float()
    place, length = mask.cumsum(1), mask.sum(1)
    shared = torch.minimum(*length.chunk(2)).repeat(2).unsqueeze(1)
    return mask * torch.where(place <= shared, 1.0, ld_alpha)


def build(config: Config, run: LiveRun, start: Start, losses: Mixture) -> PreferenceTrainer:
    """TRL's trainer around a run's model and its reference."""
    compared = not losses or any(needs_reference(s.pref_loss) for s, _ in losses)
    own = {"max_length": None, "disable_dropout": False, **trl_settings(config)}
    made = PreferenceTrainer(
        model=start.model,
        ref_model=methods.reference(config, start.source) if compared else None,
        args=arguments(DPOConfig, config, run, start.plan, **own),
        train_dataset=PLACEHOLDER,
        eval_dataset=PLACEHOLDER if start.rows.eval else None,
        processing_class=start.tokenizer,
        peft_config=start.fresh,
        losses=losses,
    )
    made.data_collator = with_pictures(made.data_collator, start.sight, answers=2)
    in_step(made.model, start.sight)
    return made
