"""Packing: how the examples of one optimizer step become few padding-free rows of tokens.

A row holds every prompt once, then every answer:

    [prompt 1 | prompt 2 | ... | chosen 1 | rejected 1 | chosen 2 | rejected 2 | ... | padding]

A token attends to the earlier tokens of its own segment and, in an answer, to the whole of its prompt.
Prompts and answers are apart so that the answers of a prompt are one contiguous run of queries. All that a
row needs on the device is one buffer of 4-byte numbers (`RowShape.fields` says what lies where): one copy a
step, and a CUDA graph can be replayed over it. Pure Python and numpy; no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tuner.engine.packed.units import Ints, Unit

Span = tuple[int, int, int, int, int, int]  # start, end, prefix start, end, start, end of a prompt's answers
BLOCK = 64  # tokens of one attention tile on a GPU


@dataclass(frozen=True)
class AttentionRule:
    """What attention does with the product of query and key: times `scale`, then softcap * tanh(score / softcap), and only
    over the `window` tokens that end with the query's own."""

    scale: float
    softcap: float | None = None
    window: int | None = None


@dataclass(frozen=True)
class RowShape:
    """The sizes of a row: what a buffer's layout, and a captured graph, depends on."""

    tokens: int
    scored: int
    units: int
    answers: int
    blocks: bool = False  # whether the attention tiles of a GPU are listed
    channels: int = 0  # numbers beside each scored token

    @property
    def sequences(self) -> int:
        return self.units * self.answers

    @property
    def tiles(self) -> int:
        return self.tokens // BLOCK + self.units * (1 + self.answers) + 1 if self.blocks else 0

    @cached_property
    def fields(self) -> dict[str, tuple[int, tuple[int, ...], type]]:
        """Name -> (offset, shape, numpy type) of everything in the buffer.

        ids, positions [T]; query_tiles and key_tiles [tiles, 5]; sources (row index that predicts), targets
        (token to predict) and token_weights [N]; token_values [channels, N]; counts [S + 1] scored tokens per sequence, the last for
        padding; lengths, references [S]; weights, labels [U]; groups [U, U] averages of micro-batches.
        """
        u, s = self.units, self.sequences
        wanted: list[tuple[str, tuple[int, ...], type]] = [
            ("ids", (self.tokens,), np.int32),
            ("positions", (self.tokens,), np.int32),
            ("query_tiles", (self.tiles, 5), np.int32),
            ("key_tiles", (self.tiles, 5), np.int32),
            ("sources", (self.scored,), np.int32),
            ("targets", (self.scored,), np.int32),
            ("token_weights", (self.scored,), np.float32),
            ("token_values", (self.channels, self.scored), np.float32),
            ("counts", (s + 1,), np.int32),
            ("lengths", (s,), np.float32),
            ("references", (s,), np.float32),
            ("weights", (u,), np.float32),
            ("labels", (u,), np.float32),
            ("groups", (u, u), np.float32),
        ]
        table, offset = {}, 0
        for name, shape, kind in wanted:
            table[name] = (offset, shape, kind)
            offset += -(-int(np.prod(shape)) // 4) * 4  # 16-byte steps keep every view aligned
        return table

    @property
    def size(self) -> int:
        """4-byte numbers in the buffer."""
        offset, shape, _ = self.fields["groups"]
        return offset + -(-int(np.prod(shape)) // 4) * 4

    def views(self, buffer: Ints) -> dict[str, NDArray[np.generic]]:
        """Typed numpy views into a buffer of this shape."""
        return {
            name: buffer[offset : offset + int(np.prod(shape))].view(kind).reshape(shape)
            for name, (offset, shape, kind) in self.fields.items()
        }


@dataclass
class Row:
    """A packed row on the host: its buffer, and its segments for attention on a CPU.

    `segments` holds, per unit, ((prompt start, end), ((answer start, end), ...)). `units` are those of a row with pictures.
    """

    shape: RowShape
    buffer: Ints
    segments: list[tuple[tuple[int, int], tuple[tuple[int, int], ...]]] = field(default_factory=list)
    tokens: int = 0
    units: tuple[Unit, ...] = ()


def pack_row(
    units: Sequence[Unit],
    references: NDArray[np.float32] | None = None,
    shape: RowShape | None = None,
    ld_alpha: float | None = None,
) -> Row:
    """Lay units out in one row.

    `references` [units * answers] are reference log-probs in unit order; `shape` may be larger than needed:
    what is left becomes padding that belongs to no sequence and carries no weight.
    """
    shape = shape or exact_shape(units)
    row = Row(shape, np.zeros(shape.size, dtype=np.int32))
    if any(unit.images for unit in units):
        row.units = tuple(units)
    v = shape.views(row.buffer)
    prompts = sum(len(u.prompt) for u in units)
    at_prompt, at_answer, at_scored = 0, prompts, 0
    tiles: list[Span] = []
    for n, unit in enumerate(units):
        p = len(unit.prompt)
        prompt = (at_prompt, at_prompt + p)
        v["ids"][prompt[0] : prompt[1]] = unit.prompt
        v["positions"][prompt[0] : prompt[1]] = np.arange(p)
        spans = []
        shared = min(map(len, unit.answers))
        for k, answer in enumerate(unit.answers):
            span = (at_answer, at_answer + len(answer))
            v["ids"][span[0] : span[1]] = answer
            v["positions"][span[0] : span[1]] = np.arange(p, p + len(answer))
            places = unit.places(k)
            end = at_scored + len(places)
            v["sources"][at_scored:end] = np.where(places < p, prompt[0], span[0] - p) + places
            v["targets"][at_scored:end] = unit.targets(k)
            v["token_weights"][at_scored:end] = (
                1.0 if ld_alpha is None else np.where(places + 1 - p < shared, 1.0, ld_alpha)
            )
            if unit.values is not None:
                v["token_values"][:, at_scored:end] = unit.values[k]
            v["counts"][n * shape.answers + k] = len(places)
            v["lengths"][n * shape.answers + k] = len(answer)
            spans.append(span)
            at_answer, at_scored = span[1], end
        v["weights"][n], v["labels"][n] = unit.weight, unit.label
        row.segments.append((prompt, tuple(spans)))
        tiles.append((*prompt, 0, 0, spans[0][0], spans[-1][1]))
        tiles += [(*span, *prompt, 0, 0) for span in spans]
        at_prompt = prompt[1]
    if references is not None:
        v["references"][: len(references)] = references
    _fill_groups(v["groups"], units)
    v["counts"][-1] = shape.scored - at_scored
    v["sources"][at_scored:] = shape.tokens - 1
    row.tokens = at_answer
    if shape.blocks:
        _fill_tiles(v, row, tiles)
    if at_answer < shape.tokens:  # padding attends to itself, so that every row of every tensor is finite
        row.segments.append(((at_answer, shape.tokens), ()))
    return row


def _fill_groups(groups: NDArray[np.generic], units: Sequence[Unit]) -> None:
    """groups[m, i] = 1 / size if unit i is in the m-th micro-batch of this row, else 0."""
    order = {g: m for m, g in enumerate(dict.fromkeys(sorted(u.group for u in units)))}
    for i, unit in enumerate(units):
        groups[order[unit.group], i] = 1.0 / sum(u.group == unit.group for u in units)


def _fill_tiles(v: dict[str, NDArray[np.generic]], row: Row, segments: list[Span]) -> None:
    """List attention tiles, longest work first.

    query tile: (first query, last + 1, first own key, prefix start, prefix end)
    key tile: (first key, last + 1, end of own queries, first query of the answers, last + 1 of the answers)
    """
    if row.tokens < row.shape.tokens:
        segments = [*segments, (row.tokens, row.shape.tokens, 0, 0, 0, 0)]
    queries, keys = [], []
    for start, end, prefix, prefix_end, answers, answers_end in segments:
        for first in range(start, end, BLOCK):
            last = min(first + BLOCK, end)
            queries.append((first, last, start, prefix, prefix_end))
            keys.append((first, last, end, answers, answers_end))
    queries.sort(key=lambda t: t[2] - t[1] - (t[4] - t[3]))
    keys.sort(key=lambda t: t[0] - t[2] - (t[4] - t[3]))
    v["query_tiles"][: len(queries)] = np.array(queries, dtype=np.int32).reshape(-1, 5)
    v["key_tiles"][: len(keys)] = np.array(keys, dtype=np.int32).reshape(-1, 5)


def exact_shape(units: Sequence[Unit], blocks: bool = False) -> RowShape:
    """The smallest shape that holds these units."""
    answers = max(len(u.answers) for u in units)
    tokens, scored = sum(u.tokens for u in units), sum(u.scored for u in units)
    return RowShape(tokens, scored, len(units), answers, blocks, units[0].channels)


def bucket_shape(units: Sequence[Unit], capacity: int, grain: int = 128) -> RowShape:
    """A shape rounded up so that many rows share it; `capacity` is the number of units to leave room for.

    Scored tokens are rounded more coarsely: they cost a fifth of the others, and every pair of sizes is a
    graph.
    """
    exact = exact_shape(units)
    return RowShape(
        _round_up(exact.tokens + 1, grain),
        _round_up(exact.scored + 1, 2 * grain),
        max(capacity, exact.units),
        answers_room(units),
        True,
        exact.channels,
    )


def answers_room(units: Sequence[Unit]) -> int:
    """Answers that a shape has room for in each unit; where only ends are read a power of 2, for units differ in them."""
    most = max(len(u.answers) for u in units)
    return most if units[0].ends is None else 1 << (most - 1).bit_length()


def _round_up(value: int, grain: int) -> int:
    """Up to a multiple of `grain`, coarser (1/16 of the value at most) for long rows."""
    while grain * 16 < value:
        grain *= 2
    return -(-value // grain) * grain
