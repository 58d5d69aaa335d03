"""Which rows of which data set come in which order: samples, mixing, and rows kept aside. Only numbers, no rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr

Ints = NDArray[np.int64]


def sample(rows: int, wanted: int, seed: int) -> Ints:
    """`wanted` of `rows` row numbers at random; when more are wanted than there are, all of them and then some again."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(rows)[:wanted]
    if wanted > rows:
        order = np.concatenate((order, draw.integers(0, rows, wanted - rows)))
    return order.astype(np.int64)


def mix(sizes: Sequence[int], strategy: str, shares: Sequence[float] | None, seed: int) -> Ints:
    """The order in which the rows of several sets are gone through.

    Rows are numbered through all sets one after the other. `concat` keeps that order. The others draw from the sets in
    turn, or by `shares` where given: `interleave_under` until the first set is used up, `interleave_over` until every
    set has been gone through at least once (short ones again and again), `interleave_once` until all are used up.
    """
    total = int(sum(sizes))
    if strategy == "concat" or len(sizes) < 2:
        return np.arange(total, dtype=np.int64)
    return np.asarray(_interleave(sizes, strategy, shares, np.random.default_rng(seed)), dtype=np.int64)


def _interleave(sizes: Sequence[int], strategy: str, shares: Sequence[float] | None, draw: Any) -> list[int]:
    starts = np.concatenate(([0], np.cumsum(sizes)))[:-1].tolist()
    taken = [0] * len(sizes)
    left = {i for i, size in enumerate(sizes) if size}
    if len(left) < len(sizes) and strategy == "interleave_under":
        return []
    order: list[int] = []
    choices = _choices(len(sizes), shares, draw)
    while left:
        which = next(choices)
        if not sizes[which]:
            continue
        if taken[which] >= sizes[which] and strategy == "interleave_once":
            continue
        order.append(starts[which] + taken[which] % sizes[which])
        taken[which] += 1
        if taken[which] >= sizes[which]:
            left.discard(which)
            if strategy == "interleave_under":
                break
    return order


def _choices(sets: int, shares: Sequence[float] | None, draw: Any) -> Any:
    while True:
        yield from draw.choice(sets, size=1000, p=shares).tolist() if shares else range(sets)


def kept_aside(rows: int | None, val_size: float) -> int:
    """How many of `rows` rows (None while nobody knows) `val_size` keeps aside to measure on: a share below 1, rounded up
    as LLaMA-Factory's `train_test_split` does, or a count.

    Raises ConfigError where it is neither, or leaves nothing to learn from.
    """
    if val_size <= 0 or rows == 0:
        return 0
    if val_size > 1 and val_size != int(val_size):
        sentence = tr(
            "--val_size {val_size:g} is neither a share below 1 nor a count of rows; give one of them.",
            val_size=val_size,
        )
        raise ConfigError([Problem("val_size", sentence)])
    wanted = math.ceil((rows or 0) * val_size) if val_size < 1 else int(val_size)
    if rows is None or wanted < rows:
        return wanted
    takes = tr("all {rows:,} rows", rows=rows) if rows > 1 else tr("the only row")
    most = tr("give a count up to {rows:,}", rows=rows - 1) if rows > 1 else tr("leave it at 0")
    sentence = tr(
        "--val_size {val_size:g} keeps {takes} aside, and none is left to learn from; {most}, or more data.",
        val_size=val_size,
        takes=takes,
        most=most,
    )
    raise ConfigError([Problem("val_size", sentence, {"val_size": 1 if rows > 1 else 0})])


def split(rows: int, val_size: float, seed: int) -> tuple[Ints, Ints]:
    """Row numbers to learn from and rows kept aside, both in their old order. Raises ConfigError as `kept_aside` does."""
    aside = np.zeros(rows, dtype=bool)
    aside[np.random.default_rng(seed).permutation(rows)[: kept_aside(rows, val_size)]] = True
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def evenly(rows: int, count: int, seed: int) -> Ints:
    """`count` of `rows` row numbers, rising: one out of each of `count` equal stretches, for rows may alternate."""
    count = min(rows, count)
    inside = np.random.default_rng(seed).random(count)
    return ((np.arange(count) + inside) * (rows / max(count, 1))).astype(np.int64)
