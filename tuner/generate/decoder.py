"""The model's side of generation: prompts in, then one token a row and step, logits out.

Prompts are read by the model itself. Rows of the Llama family are then continued by written-out layers (`static`), others by
the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from tuner.generate import cache as caches
from tuner.generate.static import StaticRows, Statics
from tuner.models.vision import Sight
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Rows:
    """The rows that a decoder has read so far: `lengths` tokens each, the longest filling the cache's columns. A row's next
    position is its length plus its shift: a picture may take fewer positions than it has tokens."""

    cache: Cache
    lengths: list[int]
    shifts: list[int]

    @property
    def columns(self) -> int:
        return int(self.cache.get_seq_length())


AnyRows = Rows | StaticRows


class Decoder:
    """Reads and continues rows with a transformers model. `pad` is an id that means nothing; `written` says whether the
    written-out layers are used where they can be, `ahead` whether a step is asked for before the tokens of the one before
    are told: on a GPU, where they run side by side. `sight` makes pictures ready."""

    def __init__(
        self,
        model: PreTrainedModel,
        pad: int = 0,
        written: bool = True,
        ahead: bool | None = None,
        sight: Sight | None = None,
    ):
        self.model, self.pad, self.sight = model, pad, sight
        called = getattr(model, "get_base_model", lambda: model)()
        self.takes = set(
            inspect.signature(type(called).forward).parameters
        )  # what it is wrapped in hides them
        self.called = called
        self.joins = _plain_attention(called)
        overlaps = self.device.type == "cuda" if ahead is None else ahead
        self.statics = Statics(called, overlaps) if written and self.joins else None
        text = called.config.get_text_config()
        self.longest = int(getattr(text, "max_position_embeddings", 0) or 0) or 1 << 30

    def changed(self) -> None:
        """Adapters were trained since: what was copied of them is copied anew. Only where no row is being continued."""
        if self.statics is not None:
            self.statics.changed()

    @property
    def held(self) -> int:
        """Bytes of keys and values that are kept for rows to come."""
        return 0 if self.statics is None else sum(steps.arena.size for steps in self.statics.idle)

    @property
    def vocabulary(self) -> int:
        """How many ids it reads."""
        return int(self.called.get_input_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        every: bool = False,
        pictures: Sequence[Sequence[str]] = (),
    ) -> tuple[Rows, torch.Tensor]:
        """Read prompts, with the files of each one's pictures. Logits [rows, 1, vocabulary] after each, or [rows, columns, vocabulary] for `every` column."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        lengths = [len(p) for p in prompts]
        mask = self._mask(lengths, width)
        seen = self._seen(pictures, ids)
        positions, shifts = self._positions(ids, mask, seen)
        cache = caches.empty() if self.joins else DynamicCache(config=self.called.config)
        logits = self._forward(ids, mask, positions, cache, 0 if every else 1, **seen)
        return Rows(cache, lengths, shifts), logits

    def _seen(self, pictures: Sequence[Sequence[str]], ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model takes beside the ids of prompts with pictures; nothing where there are none."""
        if not any(pictures):
            return {}
        if self.sight is None:
            raise ValueError(tr("This model takes no pictures; ask it without."))
        return {name: value.to(self.device) for name, value in self.sight(pictures, ids).items()}

    def _positions(
        self, ids: torch.Tensor, mask: torch.Tensor, seen: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, list[int]]:
        """Positions of prompts [rows, columns], or [3, rows, columns] where pictures have theirs in three directions, and the
        shifts of what follows."""
        index = getattr(self.called.base_model, "get_rope_index", None)
        if not seen or index is None:
            return (mask.cumsum(1) - 1).clamp(min=0), [0] * len(ids)
        given = {name: seen[name] for name in ("mm_token_type_ids", "image_grid_thw")}
        positions, shifts = index(ids, attention_mask=mask, **given)
        return positions, shifts.flatten().tolist()

    def enter(self, held: AnyRows | None, rows: Rows, chosen: Sequence[int], room: int) -> AnyRows:
        """Put the chosen of rows that were just read beside those that are being continued. `room` is how many tokens the
        longest of all may come to hold."""
        if self.statics is not None and not isinstance(held, Rows) and self.statics.ends() is not None:
            lengths = [rows.lengths[i] for i in chosen]
            return self.statics.enter(held, rows.cache, chosen, lengths, room)
        assert not isinstance(held, StaticRows)
        if held is None and list(chosen) == list(range(len(rows.lengths))):
            return rows
        return self.join([*([] if held is None else [(held, range(len(held.lengths)))]), (rows, chosen)])

    def shared(self) -> Hashable | None:
        """What rows have in common that can be continued together whatever adapter they wear; None for the model as it is
        now if its rows cannot."""
        ends = None if self.statics is None else self.statics.ends()
        return None if ends is None else ends.key

    def step(self, rows: AnyRows, tokens: Sequence[int]) -> torch.Tensor:
        """Read one token more of each row; logits [rows, vocabulary] after it, until the next step."""
        if isinstance(rows, StaticRows):
            rows.feed(tokens)
            return rows.step()
        ids = torch.tensor(tokens, device=self.device)[:, None]
        places = [length + shift for length, shift in zip(rows.lengths, rows.shifts, strict=True)]
        positions = torch.tensor(places, device=self.device)[:, None]
        rows.lengths = [length + 1 for length in rows.lengths]
        mask = self._mask(rows.lengths, rows.columns + 1)
        return self._forward(ids, mask, positions, rows.cache, 1)[:, -1]

    def leave(self, rows: AnyRows, gone: Sequence[int]) -> tuple[AnyRows | None, list[int]]:
        """The rows without those that are gone, None without any, and their numbers until now in their new order."""
        left = [i for i in range(len(rows.lengths)) if i not in set(gone)]
        if isinstance(rows, StaticRows):
            if left or self.statics is None:
                return rows, rows.leave(gone)
            self.statics.release(rows)
        return (self.join([(rows, left)]) if left and isinstance(rows, Rows) else None), left

    def join(self, parts: Sequence[tuple[Rows, Sequence[int]]]) -> Rows:
        """The chosen rows of several, as one. Only where `joins`."""
        lengths = [rows.lengths[i] for rows, chosen in parts for i in chosen]
        shifts = [rows.shifts[i] for rows, chosen in parts for i in chosen]
        cache = caches.joined([(rows.cache, chosen) for rows, chosen in parts], max(lengths))
        return Rows(cache, lengths, shifts)

    def _mask(self, lengths: Sequence[int], width: int) -> torch.Tensor:
        """1 for the last `length` of `width` columns of each row."""
        columns = torch.arange(width, device=self.device)[None]
        return (columns >= width - torch.tensor(lengths, device=self.device)[:, None]).long()

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Cache,
        kept: int,
        **seen: torch.Tensor,
    ) -> torch.Tensor:
        more: dict[str, Any] = {"position_ids": positions, "logits_to_keep": kept}
        made = self.called(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **seen,
            **{name: value for name, value in more.items() if name in self.takes},
        )
        logits: torch.Tensor = made.logits
        return logits[:, -kept:] if kept else logits


def _plain_attention(model: Any) -> bool:
    """Whether all that a model remembers are keys and values, so that its rows can be put beside each other."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    kinds, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    return all(kind in ("full_attention", "sliding_attention", "chunked_attention") for kind in kinds)
