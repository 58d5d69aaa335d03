"""The sizes that rows are padded to, chosen from the data, so that few graphs serve a whole run.

Every size is captured once (a tenth of a second, and as much for its first, eager row), and every token of padding is
computed in every step. Steps drawn from the data at random say how long rows will be; the sizes that leave the least
padding for them are found exactly, by dynamic programming. They depend on the data and on how many steps a run has,
never on what it has met so far, so a resumed run pads, and rounds, as the uninterrupted one. Pure numpy; no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.engine.packed.rows import RowShape, answers_room, bucket_shape, exact_shape
from tuner.engine.packed.units import Unit, deal, split_units

Level = tuple[int, int]  # tokens, scored tokens
EXAMPLES, DRAWS = 2048, 512  # of the data, and steps drawn from them
GRAIN = 64  # tokens of one matrix tile
HELD = 0.9  # share of the rows of a length that its level has scored tokens for; the others take a longer one
TOKEN, SCORED = 5, 1  # what they cost, in relation to each other


def level_count(steps: int) -> int:
    """More steps pay for more graphs: 5 for the 40 steps of a short run, 16 for a long one."""
    return min(16, max(4, steps // 8))


def drawn_sizes(
    examples: Any,
    units_of: Callable[[list[Mapping[str, Any]]], list[Unit]],
    batch: int,
    budget: int,
    keep_groups: bool,
    ranks: int = 1,
) -> NDArray[np.int64]:
    """Sizes [rows, 2] (tokens, scored tokens) of the rows of steps of `batch` examples, drawn at random, always alike.

    `examples` can be indexed and counted; `units_of` makes a step's units of them, which `ranks` processes share.
    """
    draw = np.random.default_rng(0)
    chosen = draw.choice(len(examples), min(len(examples), EXAMPLES), replace=False)
    known = [examples[int(i)] for i in chosen]
    steps = (units_of([known[i] for i in draw.integers(len(known), size=batch)]) for _ in range(DRAWS))
    shares = (share for units in steps for share in deal(units, ranks, keep_groups) if share)
    shapes = [exact_shape(row) for share in shares for row in split_units(share, budget, keep_groups)]
    return np.array([(shape.tokens, shape.scored) for shape in shapes], dtype=np.int64)


def choose_levels(sizes: NDArray[np.int64], count: int) -> list[Level]:
    """At most `count` levels for rows of these sizes [rows, 2] (tokens, scored tokens), shortest first."""
    sizes = sizes + 1  # one token of padding, for the dummy segment that owns it
    levels, below = [], 0
    for edge in _edges(sizes[:, 0], count):
        held = sizes[(sizes[:, 0] > below) & (sizes[:, 0] <= edge), 1]
        levels.append((edge, int(_up(np.quantile(held, HELD)))))
        below = edge
    return levels


def level_shape(units: Sequence[Unit], capacity: int, levels: Sequence[Level]) -> RowShape:
    """The cheapest level that holds these units; a row that none holds is rounded up by itself."""
    exact = exact_shape(units)
    fitting = [(t, s) for t, s in levels if exact.tokens < t and exact.scored < s]
    if not fitting:
        return bucket_shape(units, capacity)
    tokens, scored = min(fitting, key=lambda level: TOKEN * level[0] + SCORED * level[1])
    return RowShape(tokens, scored, max(capacity, exact.units), answers_room(units), True, exact.channels)


def _edges(lengths: NDArray[np.int64], count: int) -> list[int]:
    """The `count` lengths, all multiples of GRAIN, to which rounding up adds the least in total.

    `least[j]`: tokens of all rows up to the j-th candidate, padding included, when that is the last edge so far. An
    edge at j for the rows from i on costs their number times j, whatever came before: the k-segments problem.
    """
    candidates, rows = np.unique(_up(lengths), return_counts=True)
    before = np.concatenate([[0], np.cumsum(rows)])  # rows shorter than the i-th candidate
    segments = (before[None, 1:] - before[:-1, None]) * candidates[None, :].astype(float)
    segments[np.tri(len(candidates), k=-1, dtype=bool)] = np.inf  # no segment ends before it begins
    least, ways = segments[0], []
    for _ in range(min(count, len(candidates)) - 1):
        total = np.concatenate([[np.inf], least[:-1]])[:, None] + segments
        ways.append(total.argmin(0))
        least = total.min(0)
    edges = [len(candidates) - 1]
    for way in reversed(ways):
        edges.append(int(way[edges[-1]]) - 1)
    return sorted(int(candidates[i]) for i in edges)


def _up(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(np.ceil(np.asarray(lengths) / GRAIN) * GRAIN, dtype=np.int64)
