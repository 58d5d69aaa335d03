"""KTO's rows: good and bad ones in turn, each with an answer that belongs to another prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tuner.config.config import Config

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
