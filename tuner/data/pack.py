"""Several examples in one row without one seeing another: every row says how long each of its examples is.

`seq_lengths` lists the examples' lengths in order; they add up to the row's. A stage builds its block-diagonal mask or its
variable-length attention from them, with positions that begin anew at each (see `positions`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np

from tuner.config.config import Config
from tuner.data.rows import Rows


def positions(seq_lengths: Sequence[int]) -> list[int]:
    """Position of each token within its own example."""
    return [i for length in seq_lengths for i in range(length)]


def pack(rows: Rows, config: Config) -> Rows:
    """Rows of at most cutoff_len tokens that hold as many examples as fit; pt texts are cut where a row is full."""
    return _stream(rows, config.cutoff_len) if config.kind.rows == "text" else _bins(rows, config.cutoff_len)


def _stream(rows: Rows, size: int) -> Rows:
    """Texts one behind the other, cut into rows of exactly `size` tokens; the last one is shorter."""
    packed = Rows()
    ids: list[int] = []
    lengths: list[int] = []
    for row in rows:
        rest = row["input_ids"]
        while rest:
            part, rest = rest[: size - len(ids)], rest[size - len(ids) :]
            ids += part
            lengths.append(len(part))
            if len(ids) == size:
                _add(packed, ids, ids, lengths)
                ids, lengths = [], []
    if len(ids) > 1:
        _add(packed, ids, ids, lengths)
    return packed


def _add(packed: Rows, ids: list[int], labels: list[int], lengths: list[int], **more: Any) -> None:
    packed.append({"input_ids": ids, "labels": labels, "seq_lengths": lengths, **more})


def groups(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which examples share a row of `size` tokens: the longest first, each into the fullest row that still has room.

    Best fit decreasing; an example longer than a row has one of its own.
    """
    found: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, group), sorted
    for index in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        length = lengths[index]
        at = bisect_left(room, (length, -1))
        left, group = room.pop(at) if at < len(room) else (size, len(found))
        if group == len(found):
            found.append([])
        found[group].append(index)
        if left > length:
            insort(room, (left - length, group))
    return sorted(sorted(group) for group in found)


def _bins(rows: Rows, size: int) -> Rows:
    """Whole examples, as many as fit a row."""
    packed = Rows()
    for group in groups(rows.lengths("input_ids").tolist(), size):
        found = [rows[i] for i in group]
        ids: list[int] = [t for row in found for t in row["input_ids"]]
        labels: list[int] = [t for row in found for t in row["labels"]]
        images = (
            {
                "images": tuple(path for row in found for path in row["images"]),
                "image_counts": tuple(len(row["images"]) for row in found),
            }
            if "images" in rows.keys
            else {}
        )
        _add(packed, ids, labels, [len(row["input_ids"]) for row in found], **images)
    return packed
