"""One metric's points in bounded memory, and how many are made few so that spikes survive."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]
Values = NDArray[np.float64]
Series = tuple[Steps, Values]
"""Steps, rising, and the values at them."""
ROW = np.dtype(
    [
        ("step", "i8"),
        ("last", "i8"),
        ("low_at", "i8"),
        ("low", "f8"),
        ("high_at", "i8"),
        ("high", "f8"),
        ("sum", "f8"),
        ("count", "i8"),
    ]
)
"""A stretch of steps: its first and its last step, its lowest and highest point, and its finite values' sum and count."""
Rows = NDArray[np.void]
MOST = 4096
"""Rows of a curve; up to so many points are each kept as they are."""


class Curve:
    """The points of one metric, a row each until there are too many.

    Then those whose steps lie in one stretch of `width`, a power of two, become one row, so that it is all the same in how
    many pieces they came. The first and the last point are always rows of their own.
    """

    def __init__(self, rows: Rows | None = None, width: int = 1):
        self.rows: Rows = np.empty(0, ROW) if rows is None else rows
        self.width = width

    def add(self, steps: Steps, values: Values, most: int = MOST) -> None:
        """Further points, at least one. One that is not behind all before it went on from a checkpoint: what came after
        that is replaced. Of a long curve the rest of a stretch goes with it, a pixel's worth."""
        if not (steps[:-1] < steps[1:]).all():
            lowest = np.minimum.accumulate(steps[::-1])[::-1]  # from each point on
            stay = np.append(steps[:-1] < lowest[1:], True)
            steps, values = steps[stay], values[stay]
        self._rewind(int(steps[0]))
        if len(self.rows) and len(self.rows) + len(steps) > most:
            # They are about to be merged in any case; as columns they are so in a fraction of the time.
            fresh = [_stretches(steps[:-1], values[:-1], self.width), _single(steps[-1:], values[-1:])]
        else:
            fresh = [_single(steps, values)]
        self.rows = np.concatenate([self.rows, *fresh])
        if len(self.rows) > most:
            self._shorten(most // 2)

    def _rewind(self, step: int) -> None:
        if not len(self.rows) or self.rows["step"][-1] < step:
            return
        self.rows = self.rows[: np.searchsorted(self.rows["step"], step)]
        if len(self.rows) and self.rows["last"][-1] >= step:
            self.rows = self.rows[:-1]

    def _shorten(self, most: int) -> None:
        steps = np.ascontiguousarray(self.rows["step"][1:-1])
        while len(_edges(steps, self.width)[0]) + 2 > most:
            self.width *= 2
        inner = _merged(self.rows[1:-1], self.width)
        self.rows = np.concatenate([self.rows[:1], inner, self.rows[-1:]])

    def series(self) -> Series:
        """The lowest and the highest point of each row, in the order of their steps."""
        rows = self.rows
        rising = rows["low_at"] <= rows["high_at"]
        steps = _in_turn(rising, rows["low_at"], rows["high_at"])
        values = _in_turn(rising, rows["low"], rows["high"])
        one_by_one = np.append(steps[1:] != steps[:-1], True)[: len(steps)]
        return steps[one_by_one], values[one_by_one]

    def means(self) -> Series:
        """The mean of each row's finite values at its first step; where there is none what there is instead."""
        rows = self.rows
        some = rows["count"] > 0
        mean = np.divide(rows["sum"], rows["count"], out=rows["high"].copy(), where=some)
        return rows["step"].copy(), mean


def _single(steps: Steps, values: Values) -> Rows:
    """A row for each point."""
    rows = np.empty(len(steps), ROW)
    finite = np.isfinite(values)
    rows["step"] = rows["last"] = rows["low_at"] = rows["high_at"] = steps
    rows["low"] = rows["high"] = values
    rows["sum"], rows["count"] = np.where(finite, values, 0), finite
    return rows


def _stretches(steps: Steps, values: Values, width: int) -> Rows:
    """A row for all points whose steps lie in the same stretch of `width`."""
    if not len(steps):
        return np.empty(0, ROW)
    starts, lengths = _edges(steps, width)
    lows, highs = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    finite = np.isfinite(values)
    rows = np.empty(len(starts), ROW)
    rows["step"], rows["last"] = steps[starts], steps[starts + lengths - 1]
    rows["low"], rows["low_at"] = lows, steps[_first_of(values, lows, starts, lengths)]
    rows["high"], rows["high_at"] = highs, steps[_first_of(values, highs, starts, lengths)]
    rows["sum"] = np.add.reduceat(np.where(finite, values, 0), starts)
    rows["count"] = np.add.reduceat(finite, starts, dtype=np.int64)
    return rows


def _edges(steps: Steps, width: int) -> tuple[Steps, Steps]:
    """Where each stretch of `width` begins among rising steps, and how many there are of it."""
    power = width.bit_length() - 1  # a shift is many times as quick as a division
    first, last = int(steps[0]) >> power, int(steps[-1]) >> power
    if last - first < len(steps):  # as it is but where steps are far apart
        later = np.searchsorted(steps, np.arange(first + 1, last + 1) << power)
        starts = np.append(0, later[np.append(later[1:] != later[:-1], True)[: len(later)]])
    else:
        stretch = steps >> power
        starts = np.flatnonzero(np.diff(stretch, prepend=stretch[0] - 1))
    return starts, np.diff(starts, append=len(steps))


def _merged(rows: Rows, width: int) -> Rows:
    """One row for all whose first steps lie in the same stretch of `width`."""
    starts, lengths = _edges(rows["step"], width)
    if len(starts) == len(rows):
        return rows
    lows = _first_of(rows["low"], np.fmin.reduceat(rows["low"], starts), starts, lengths)
    highs = _first_of(rows["high"], np.fmax.reduceat(rows["high"], starts), starts, lengths)
    merged: Rows = rows[starts]
    merged["last"] = rows["last"][starts + lengths - 1]
    merged["low_at"], merged["low"] = rows["low_at"][lows], rows["low"][lows]
    merged["high_at"], merged["high"] = rows["high_at"][highs], rows["high"][highs]
    merged["sum"] = np.add.reduceat(rows["sum"], starts)
    merged["count"] = np.add.reduceat(rows["count"], starts)
    return merged


def _first_of(values: Values, wanted: Values, starts: Steps, lengths: Steps) -> Steps:
    """Where in each stretch its wanted value is for the first time; any of a stretch of which none is a number."""
    each = np.repeat(wanted, lengths)
    there = values == each
    if np.isnan(wanted).any():
        there |= np.isnan(each)
    found = np.flatnonzero(there)
    return found[np.searchsorted(found, starts)]


def _in_turn(rising: NDArray[np.bool_], low: NDArray[np.generic], high: NDArray[np.generic]) -> NDArray:  # type: ignore[type-arg]
    return np.stack([np.where(rising, low, high), np.where(rising, high, low)], axis=1).ravel()


def thinned(series: Series, most: int) -> Series:
    """At most `most` points (4 or more): the lowest and the highest of each stretch, the first and the last.

    A NaN stays only where a stretch has nothing else, as a gap in the line.
    """
    steps, values = series
    if len(steps) <= most:
        return series
    stretches = max(1, (most - 2) // 2)
    width = -(-len(values) // stretches)
    padded = np.full(width * stretches, np.nan)
    padded[: len(values)] = values
    table = padded.reshape(stretches, width)
    base = np.arange(stretches) * width
    lowest = np.where(np.isnan(table), np.inf, table).argmin(axis=1) + base
    highest = np.where(np.isnan(table), -np.inf, table).argmax(axis=1) + base
    kept = np.unique(np.concatenate([[0], lowest, highest, [len(values) - 1]]))
    kept = kept[kept < len(values)]
    return steps[kept], values[kept]
