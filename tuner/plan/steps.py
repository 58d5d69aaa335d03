"""How many steps a run takes and how many checkpoints it saves on the way, counted as transformers counts them."""

from __future__ import annotations

import math


def steps(
    rows: int, *, batch: int, accumulation: int, epochs: float, max_steps: int = -1, drop_last: bool = False
) -> int:
    """Optimizer steps of a run over `rows` rows in batches of `batch`, `accumulation` of them a step. `max_steps` above 0
    is their number."""
    if max_steps > 0:
        return max_steps
    batches = rows // batch if drop_last else math.ceil(rows / batch)
    return math.ceil(max(math.ceil(batches / accumulation), 1) * epochs)


def every(save_steps: float, total: int) -> int:
    """Steps from one save to the next: a number of them, or below 1 a share of all."""
    if save_steps <= 0:
        return max(1, total)
    return int(save_steps) if save_steps >= 1 else max(1, math.ceil(total * save_steps))


def saves(strategy: str, save_steps: float, epochs: float, total: int) -> int:
    """Checkpoints of a run of `total` steps: at every so many and at the last, or at each epoch's end."""
    if strategy == "steps":
        return math.ceil(total / every(save_steps, total))
    return math.ceil(epochs) if strategy == "epoch" else 0
