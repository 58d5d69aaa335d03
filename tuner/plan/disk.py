"""What a run leaves on the disk: its checkpoints, as many as are kept, and what it trained. Sizes in bytes."""

from __future__ import annotations

from tuner.config.config import Config
from tuner.plan.memory import optimizer, trained, trained_bytes
from tuner.plan.shape import ModelShape


def run_disk(config: Config, shape: ModelShape, saves: int, rank: int) -> int:
    """Checkpoints with their optimizer's state, and the weights at the end."""
    numbers = trained(config, shape, rank)
    whole = config.finetuning_type in ("full", "freeze")
    weights = (shape.parameters if whole else numbers) * trained_bytes(config)
    state = 0 if config.save_only_model else optimizer(config, numbers)
    kept = min(saves, config.save_total_limit or saves)
    return kept * (weights + state) + weights
