"""Scores for answers: TRL's RewardTrainer on rows that come encoded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import trl
from safetensors.torch import save_file
from torch import Tensor, nn
from trl.trainer.reward_trainer import DataCollatorForPreference

from tuner.config.config import Config
from tuner.engine.live import LiveRun
from tuner.engine.metric_means import Means
from tuner.engine.setup import Start
from tuner.text.message import message


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
        logs.update(self.means.take(self.model.training, self.accelerator, logs))
        super().log(logs, start_time)


def predict(trainer: RewardTrainer, config: Config, run: LiveRun, start: Start) -> dict[str, float]:
    """Score both answers of every held-out pair into generated_predictions.jsonl; returns how often the better one won."""
    held_out = trainer.eval_dataset
    rows = [row for one in held_out.values() for row in one] if isinstance(held_out, dict) else list(held_out)
    found: list[dict[str, float]] = []
    model, size = trainer.model.eval(), config.per_device_eval_batch_size
    for at in range(0, len(rows), size):
        batch = {
            name: value.to(model.device)
            for name, value in trainer.data_collator(rows[at : at + size]).items()
        }
        with torch.no_grad():
            chosen, rejected = model(**batch, use_cache=False).logits.squeeze(-1).float().chunk(2)
        found += [
            {"chosen": round(c, 4), "rejected": round(r, 4)}
            for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)
        ]
        run.progress(len(found) / len(rows), message("doing.pairs", done=len(found), total=len(rows)))
    run.output.mkdir(parents=True, exist_ok=True)
    (run.output / "generated_predictions.jsonl").write_text(
        "\n".join(map(json.dumps, found)) + "\n", encoding="utf-8"
    )
    return {
        "predict_rewards/accuracies": sum(f["chosen"] > f["rejected"] for f in found) / max(len(found), 1)
    }


def save_value_head(model: nn.Module, folder: Path) -> None:
    """value_head.safetensors as other tools look for it; the same weights are in the model's or adapter's own file."""
    for name, weight in model.named_parameters():
        if name.endswith(("score.weight", "score.modules_to_save.default.weight")) and weight.requires_grad:
            head = {
                "v_head.summary.weight": weight.detach().cpu().contiguous(),
                "v_head.summary.bias": torch.zeros(1),
            }
            save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})
