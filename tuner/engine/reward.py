"""Scores for answers: TRL's RewardTrainer on rows that come encoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import trl
from safetensors.torch import save_file
from torch import Tensor, nn
from trl.trainer.reward_trainer import DataCollatorForPreference

from tuner.engine.means import Means


@dataclass
class PairCollator:
    """{"prompt_ids", "chosen_ids", "rejected_ids"} into a padded batch, chosen first, then rejected."""

    pad_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        whole = [
            {side: [*row["prompt_ids"], *row[side]] for side in ("chosen_ids", "rejected_ids")}
            for row in rows
        ]
        batch: dict[str, Tensor] = DataCollatorForPreference(pad_token_id=self.pad_id)(whole)
        return batch


class RewardTrainer(trl.RewardTrainer):
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
        output = model(**inputs, use_cache=False)
        chosen, rejected = output.logits.squeeze(-1).float().chunk(2)
        loss = -F.logsigmoid(chosen - rejected).mean()
        self.means.add(
            self.model.training,
            {
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/margins": chosen - rejected,
                "rewards/accuracies": (chosen > rejected).float(),
            },
        )
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs.update(self.means.take(self.model.training, self.accelerator))
        super().log(logs, start_time)


def save_value_head(model: nn.Module, folder: Path) -> None:
    """value_head.safetensors as other tools look for it; the same weights are in the model's or adapter's own file."""
    for name, weight in model.named_parameters():
        if name.endswith(("score.weight", "score.modules_to_save.default.weight")) and weight.requires_grad:
            head = {
                "v_head.summary.weight": weight.detach().cpu().contiguous(),
                "v_head.summary.bias": torch.zeros(1),
            }
            save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})
