"""A reward model's scores: of held-out pairs into a file, and its head as other tools look for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence

from tuner.config.config import Config
from tuner.engine.live import LiveRun
from tuner.engine.setup import Start
from tuner.text.message import message

if TYPE_CHECKING:
    from transformers import Trainer


def padded(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """{"prompt_ids", "chosen_ids", "rejected_ids"} as one batch padded on the right, first the chosen, then the rejected."""
    texts = [
        torch.tensor([*row["prompt_ids"], *row[side]])
        for side in ("chosen_ids", "rejected_ids")
        for row in rows
    ]
    ids = pad_sequence(texts, batch_first=True, padding_value=pad_id)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def predict(trainer: Trainer, config: Config, run: LiveRun, start: Start) -> dict[str, float]:
    """Score both answers of every held-out pair into generated_predictions.jsonl; returns how often the better one won."""
    held_out = trainer.eval_dataset
    rows = [row for one in held_out.values() for row in one] if isinstance(held_out, dict) else list(held_out)
    found: list[dict[str, float]] = []
    model, size = trainer.model.eval(), config.per_device_eval_batch_size
    for at in range(0, len(rows), size):
        batch = padded(rows[at : at + size], start.tokenizer.pad_token_id)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        with torch.no_grad():
            chosen, rejected = model(**batch, use_cache=False).logits.squeeze(-1).float().chunk(2)
        found += [
            {"chosen": round(c, 6), "rejected": round(r, 6)}
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


def save_value_head(model: nn.Module, folder: Path, silent: bool = False) -> None:
    """value_head.safetensors as other tools look for it; the same weights are in the model's or adapter's own file."""
    for name, weight in model.named_parameters():
        if name.endswith(("score.weight", "score.modules_to_save.default.weight")) and weight.requires_grad:
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight  # of all processes
            head = {
                "v_head.summary.weight": whole.detach().cpu().contiguous(),
                "v_head.summary.bias": torch.zeros(1),
            }
            if silent:
                continue
            save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})
