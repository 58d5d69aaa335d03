"""What packed rows with pictures hold beside ids: what the model sees of each in the place of its tokens, and positions
along three axes. The part that sees is frozen, so that it looks at a picture once a run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import torch
from torch import Tensor

from tuner.engine.packed.device_row import DeviceRow, SeenRow
from tuner.engine.packed.opening import Opening, Pixels
from tuner.engine.packed.rows import Row
from tuner.engine.packed.units import Ints, Unit
from tuner.models.llama_family import decoder_of
from tuner.models.tower_attention import side_by_side
from tuner.models.vision import tower_of

if TYPE_CHECKING:
    from tuner.models.vision import Sight

KEPT_SHARE = 0.2
"""The share of this machine's free memory that may hold what was seen of pictures."""
PATCHES = 16_384
"""Patches that are looked at together."""


class Seen(NamedTuple):
    """What a model makes of a picture: `features` [tokens, hidden], what is added `deep` behind its first layers [tokens,
    hidden], and the grid of its patches [1, 3] where positions depend on it."""

    features: Tensor
    deep: tuple[Tensor, ...]
    grid: Tensor | None

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.features, *self.deep))

    def to(self, device: torch.device | str) -> Seen:
        """The same there; the grid stays, for positions are counted on the host."""
        return Seen(self.features.to(device), tuple(part.to(device) for part in self.deep), self.grid)


class Album:
    """What the frozen part of a model makes of pictures, by their paths, kept in this machine's memory while there is room;
    and rows laid out with it."""

    def __init__(
        self,
        inner: Any,
        sight: Sight,
        autocast: Any = nullcontext,
        room: int | None = None,
        readers: int = 1,
    ) -> None:
        self.inner, self.sight, self.autocast = inner, sight, autocast
        self.opening = Opening(sight, readers)
        self.tower = inner.get_submodule(tower_of(inner))
        self.room = int(KEPT_SHARE * psutil.virtual_memory().available) if room is None else room
        self.kept: OrderedDict[str, Seen] = OrderedDict()
        self.size = 0
        self.indexed = hasattr(inner.base_model, "get_rope_index")
        self.levels = len(getattr(inner.config.vision_config, "deepstack_visual_indexes", None) or ())
        self.space: SeenRow | None = None

    # --- rows

    def lay(self, row: Row, on: DeviceRow) -> None:
        """Write what a row's pictures are seen as, and its positions, beside the row on its device. Where it was laid out
        before, the same memory is written again."""
        if on.seen is None:
            on.seen = self._room_for(row.shape.tokens, on.buffer.device)
        paths = [path for unit in row.units for path in unit.images]
        seen = self.of(paths, on.buffer.device)
        places = torch.from_numpy(row.shape.views(row.buffer)["ids"] == self.sight.image_token)
        count = sum(len(one.features) for one in seen)
        if int(places.sum()) != count:
            raise ValueError(
                f"{int(places.sum())} tokens stand for pictures of {count} tokens: {', '.join(paths)}"
            )
        on.seen.places.copy_(places)
        on.seen.positions.copy_(self._positions(row, seen))
        if seen:
            where = torch.nonzero(places)[:, 0].to(on.buffer.device)
            for level, space in enumerate((on.seen.features, *on.seen.deep)):
                parts = [(one.features, *one.deep)[level] for one in seen]
                space.index_copy_(0, where, torch.cat(parts).to(space.dtype))

    def _room_for(self, tokens: int, device: torch.device) -> SeenRow:
        """Rows are worked on one after the other and share one space; a longer one than before makes a larger one."""
        if self.space is None or len(self.space.places) < tokens:
            weight = decoder_of(self.inner).get_input_embeddings().weight
            shape = (1 + self.levels, tokens, weight.shape[1])
            features, *deep = torch.zeros(shape, dtype=weight.dtype, device=device).unbind()
            places = torch.zeros(tokens, dtype=torch.bool, device=device)
            axes = 3 if self.indexed else 1
            positions = torch.zeros(axes, tokens, dtype=torch.long, device=device)
            self.space = SeenRow(places, features, tuple(deep), positions)
        return self.space.first(tokens)

    def _positions(self, row: Row, seen: Sequence[Seen]) -> Tensor:
        """[1, T], or [3, T] where a picture's tokens have places in time, height and width."""
        flat = torch.from_numpy(row.shape.views(row.buffer)["positions"]).long()[None]
        if not self.indexed:
            return flat
        positions, rest = flat.expand(3, -1).clone(), iter(seen)
        for unit, (prompt, answers) in zip(row.units, row.segments, strict=False):
            if unit.images:
                self._place(positions, unit, [next(rest).grid for _ in unit.images], prompt, answers)
        return positions

    def _place(self, positions: Tensor, unit: Unit, grids: Sequence[Any], prompt: Any, answers: Any) -> None:
        """Write a unit's positions: its pictures are in its prompt, or in its one answer where it has none."""
        text, (start, end) = (unit.prompt, prompt) if len(unit.prompt) else (unit.answers[0], answers[0])
        positions[:, start:end] = found = self._index(text, grids)
        shift = int(found.max()) + 1 - len(text)  # a picture takes fewer places than it has tokens
        for first, last in answers if len(unit.prompt) else ():
            positions[:, first:last] += shift

    def _index(self, text: Ints, grids: Sequence[Any]) -> Tensor:
        """The model's own positions [3, T] of a text with pictures."""
        ids = torch.from_numpy(text).long()[None]
        kinds = (ids == self.sight.image_token).int()
        found: Tensor
        found, _ = self.inner.base_model.get_rope_index(
            ids, mm_token_type_ids=kinds, image_grid_thw=torch.cat(list(grids))
        )
        return found[:, 0]

    # --- pictures

    def expect(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin to open the pictures of encoded rows that come next and were not seen yet."""
        paths = [path for row in rows for path in row.get("images") or () if path not in self.kept]
        self.opening.begin(paths)

    def of(self, paths: Sequence[str], device: torch.device) -> list[Seen]:
        """What is seen of each picture, on a device."""
        missing = [path for path in dict.fromkeys(paths) if path not in self.kept]
        fresh = dict(zip(missing, self._look(missing), strict=True))
        found = [(fresh.get(path) or self._known(path)).to(device) for path in paths]
        for path, seen in fresh.items():
            self._keep(path, seen)
        return found

    def _known(self, path: str) -> Seen:
        self.kept.move_to_end(path)
        return self.kept[path]

    def _keep(self, path: str, seen: Seen) -> None:
        self.kept[path] = kept = seen.to("cpu")
        self.size += kept.bytes
        while self.size > self.room and len(self.kept) > 1:
            self.size -= self.kept.popitem(last=False)[1].bytes

    @torch.no_grad()
    def _look(self, paths: Sequence[str]) -> list[Seen]:
        if not paths:
            return []
        opened = self.opening.all(paths)
        with self.autocast(), side_by_side(self.tower):
            return [seen for part in _together(opened) for seen in self._see(part)]

    def _see(self, part: Sequence[Pixels]) -> list[Seen]:
        device = next(self.inner.parameters()).device
        given = {name: torch.cat([one[name] for one in part]).to(device) for name in part[0]}
        made = self.inner.base_model.get_image_features(**given, return_dict=True)
        if "image_grid_thw" not in given:  # one picture, of as many tiles as it was cut into
            return [Seen(torch.cat([tile.flatten(0, -2) for tile in made.pooler_output]), (), None)]
        deep = list(zip(*(getattr(made, "deepstack_features", None) or ()), strict=True))
        return [
            Seen(features, tuple(deep[i]) if deep else (), part[i]["image_grid_thw"])
            for i, features in enumerate(made.pooler_output)
        ]


def _together(opened: Sequence[Pixels]) -> Iterator[list[Pixels]]:
    """Pictures that are looked at together: those of a grid by their patches, others each by itself."""
    part: list[Pixels] = []
    patches = 0
    for pixels in opened:
        size = len(pixels["pixel_values"]) if "image_grid_thw" in pixels else PATCHES
        if part and patches + size > PATCHES:
            yield part
            part, patches = [], 0
        part.append(pixels)
        patches += size
    yield part
