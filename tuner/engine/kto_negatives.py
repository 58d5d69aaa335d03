"""KTO's rows: good and bad ones in turn, each with an answer that belongs to another prompt."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from tuner.config.config import Config
from tuner.engine.packed.units import STRAY_IDS

Row = dict[str, Any]


def mismatched(rows: Sequence[Row], config: Config, size: int, others: Sequence[Row] = ()) -> list[Row]:
    """Rows in training order, each with an answer that belongs to another prompt (STRAY_IDS), within cutoff_len.

    Good and bad ones alternate in proportion, so that a batch has both. The mismatched answers of a batch of `size`
    are the answers of that batch, one place further, as KTO's estimate of the distance to the reference wants them
    (arXiv 2402.01306, sec. 4.1); where that is the same prompt, the next other one is taken, at last one of `others`.
    """
    order = list(rows) if config.disable_shuffling else in_turn(rows, config.seed)
    return [
        {**row, STRAY_IDS: _stray(row, _nearest_first(order, i, size), others, config.cutoff_len)}
        for i, row in enumerate(order)
    ]


def one_prompt(rows: Sequence[Row]) -> bool:
    """Whether all rows ask the same, so that no answer of theirs is a mismatched one."""
    return bool(rows) and all(row["prompt_ids"] == rows[0]["prompt_ids"] for row in rows)


def in_turn(rows: Sequence[Row], seed: int) -> list[Row]:
    """Shuffled, with good and bad rows spread evenly over the whole."""
    chance = random.Random(seed)
    placed = []
    for label in (True, False):
        group = [r for r in rows if bool(r["label"]) is label]
        chance.shuffle(group)
        placed += [((i + chance.random()) / len(group), row) for i, row in enumerate(group)]
    return [row for _, row in sorted(placed, key=lambda p: p[0])]


def _nearest_first(order: Sequence[Row], index: int, size: int) -> Iterator[Row]:
    """The other rows: those before row `index` in its batch, round about; then the ones that follow."""
    begin = index - index % size
    batch = min(begin + size, len(order)) - begin
    yield from (order[begin + (index - begin - step) % batch] for step in range(1, batch))
    yield from (order[(index + step) % len(order)] for step in range(1, len(order)))


def _stray(row: Row, nearest: Iterator[Row], others: Sequence[Row], cutoff: int) -> list[int]:
    """The answer of the first row that asks something else; where all ask the same, of the nearest."""
    close = next(nearest, row)
    rows = itertools.chain([close], nearest, others)
    found = next((other for other in rows if other["prompt_ids"] != row["prompt_ids"]), close)
    answer: list[int] = found["completion_ids"]
    return answer[: max(1, cutoff - len(row["prompt_ids"]))]
