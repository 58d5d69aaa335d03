"""Rows that are continued by the written-out layers; what they hold stays where it is from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tuner.generate.arena import Arena, bucket
from tuner.generate.replay import Steps
from tuner.generate.sampling import Wish, likely
from tuner.generate.written import Ends, State, Written, refusal, state_of

IDLE = 2
"""Arenas without rows that are kept for those to come."""
FORESEEN = 2048
"""Columns that are set aside at once where an answer may become longer."""


class Launched:
    """Tokens of a step that may still be running; `ids` waits for them."""

    def __init__(self, tokens: Tensor):
        self.tokens, self.done = tokens if tokens.is_cuda else tokens.clone(), None
        if tokens.is_cuda:
            self.tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self.tokens.copy_(tokens, non_blocking=True)
            self.done = torch.cuda.Event()
            self.done.record()

    def ids(self) -> list[int]:
        if self.done is not None:
            self.done.synchronize()
        made: list[int] = self.tokens.tolist()
        return made


@dataclass
class StaticRows:
    """Rows of one arena: the first `len(lengths)`, which hold so many tokens each. `overlaps` says that a step runs beside
    what is done with the tokens of the one before."""

    steps: Steps
    overlaps: bool
    lengths: list[int] = field(default_factory=list)

    @property
    def arena(self) -> Arena:
        return self.steps.arena

    def enter(
        self, cache: Any, chosen: Sequence[int], lengths: Sequence[int], state: State, room: int
    ) -> None:
        """Take in rows of a padded cache, which wear what is on the model now; `room` is how many tokens the longest of all
        may come to hold."""
        worn = self.steps.wear(state, empty=not self.lengths)
        count = len(self.lengths) + len(chosen)
        longest = max([*self.lengths, *lengths]) + 2
        self.arena.reserve(bucket(count), longest, hoped=min(room + 2, FORESEEN))
        self.arena.enter(len(self.lengths), cache, chosen, lengths, worn)
        self.lengths += lengths

    def feed(self, tokens: Sequence[int]) -> None:
        """Say which token each row reads next; otherwise it is the likeliest after the last step."""
        self.arena.tokens[: len(tokens)] = torch.tensor(tokens, device=self.arena.device)

    def step(self) -> Tensor:
        """Read a token more of each row; logits [rows, vocabulary], which the next step overwrites."""
        self.lengths = [length + 1 for length in self.lengths]
        self.arena.reserve(len(self.lengths), max(self.lengths) + 1)
        return self.steps(len(self.lengths), max(self.lengths))

    def launch(self, wish: Wish) -> Launched:
        """Read a token more of each row; those that are chosen after it are on their way, and read by the next step."""
        logits = self.step()
        if wish.chance:
            self.arena.tokens[: len(self.lengths)] = likely(logits, wish)
        return Launched(self.arena.tokens[: len(self.lengths)])

    def leave(self, gone: Sequence[int]) -> list[int]:
        """Take rows out; the numbers of those that are left, in the order in which they stand now."""
        order = self.arena.leave(len(self.lengths), gone, max(self.lengths, default=0))
        self.lengths = [self.lengths[i] for i in order]
        return order


class Statics:
    """The arenas of a model: those whose rows are being continued, and some for rows to come."""

    def __init__(self, model: Any, overlaps: bool):
        self.model, self.overlaps = model, overlaps
        self.written: Written | None = None
        self.refused: dict[State, bool] = {}
        self.idle: list[Steps] = []

    def ends(self) -> Ends | None:
        """The ends of the model as it is now, None where the written-out layers cannot continue its rows."""
        state = state_of(self.model)
        if state not in self.refused:
            self.refused[state] = refusal(self.model) is not None
        if self.refused[state]:
            return None
        self.written = self.written or Written(self.model)
        return self.written.ends()

    def enter(
        self, held: StaticRows | None, cache: Any, chosen: Sequence[int], lengths: Sequence[int], room: int
    ) -> StaticRows:
        """Put rows of a padded cache beside those that are held, or where none are."""
        rows = held or StaticRows(self._steps(), self.overlaps)
        rows.enter(cache, chosen, lengths, state_of(self.model), room)
        return rows

    def _steps(self) -> Steps:
        assert self.written is not None
        written, ends = self.written, self.written.ends()
        found = next((steps for steps in self.idle if steps.ends.key == ends.key), None)
        if found is not None:
            self.idle.remove(found)
            return found
        arena = Arena(written.sizes, written.dtype, written.device)
        return Steps(written, ends, arena, capture=written.device.type == "cuda")

    def changed(self) -> None:
        """The adapter on the model was trained: the arenas' copies of it become what it is now."""
        for steps in self.idle:
            steps.renew(state_of(self.model))

    def release(self, rows: StaticRows) -> None:
        """Keep the arena of rows that have all left, and forget the one that waits longest where there are many."""
        rows.leave(range(len(rows.lengths)))
        if self.overlaps and rows.arena.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # a step for nobody may be at work on it
        self.idle.append(rows.steps)
        if len(self.idle) > IDLE:
            self.idle.pop(0).close()
