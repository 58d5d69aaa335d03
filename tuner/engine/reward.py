"""Scores for answers: TRL's RewardTrainer on rows that come encoded."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
import trl
from datasets import Dataset
from torch import Tensor, nn

from tuner.config.config import Config
from tuner.engine.dealing import DealingTrainer
from tuner.engine.live import LiveRun
from tuner.engine.metric_means import Means
from tuner.engine.scores import padded
from tuner.engine.setup import Start
from tuner.engine.trainer import arguments

PLACEHOLDER = Dataset.from_list([{"chosen_ids": [0], "rejected_ids": [0]}])
"""TRL builds its trainer around a data set; the real rows are put in afterwards."""


class RewardTrainer(DealingTrainer, trl.RewardTrainer):
    """-log sigmoid(chosen - rejected) (Bradley-Terry) with the metrics every preference stage shows."""

    def __init__(self, *args: Any, **rest: Any):
        self.means = Means()
        super().__init__(*args, **rest)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss of a batch whose first half is chosen and second half rejected (scalar)."""
        share = self.share_of(inputs)
        output = model(**inputs, use_cache=False)
        chosen, rejected = output.logits.squeeze(-1).float().chunk(2)
        loss = -share * F.logsigmoid(chosen - rejected).mean()
        self.means.add(
            self.model.training,
            {
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/margins": chosen - rejected,
                "rewards/accuracies": (chosen > rejected).float(),
            },
            share,
        )
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs.update(self.means.take(self.model.training, logs))
        super().log(logs, start_time)


def build(config: Config, run: LiveRun, start: Start) -> RewardTrainer:
    """TRL's trainer around a run's model."""
    pad_id = start.tokenizer.pad_token_id
    return RewardTrainer(
        model=start.model,
        args=arguments(trl.RewardConfig, config, run, start.plan, max_length=None, disable_dropout=False),
        data_collator=lambda rows: padded(rows, pad_id),
        train_dataset=PLACEHOLDER,
        eval_dataset=PLACEHOLDER if start.rows.eval else None,
        processing_class=start.tokenizer,
        peft_config=start.fresh,
    )
