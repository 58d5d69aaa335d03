"""Ids to text as they come: characters are held back until they are whole, stop strings until they cannot be one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tuner.generate.request import Finish, Piece, Token

Decode = Callable[[Sequence[int]], str]
Decodes = Callable[[Sequence[int], bool], str]
"""Ids to text; the second says whether special tokens are left out."""
BROKEN = "\ufffd"
"""What stands for bytes that are no character, or not yet one."""


@dataclass
class Words:
    """The text of an answer so far; `added` gives what a token makes of it.

    Only a few ids before the newest are decoded at each step: those since the text was last whole, and the word before.
    """

    decode: Decode
    ids: list[int] = field(default_factory=list)
    begins: int = 0
    told: int = 0

    def added(self, token: int) -> str:
        """The new text; empty while a character is not whole."""
        self.ids.append(token)
        before = self.decode(self.ids[self.begins : self.told])
        now = self.decode(self.ids[self.begins :])
        if len(now) <= len(before) or now.endswith(BROKEN):
            return ""
        self.begins, self.told = self.told, len(self.ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        before = self.decode(self.ids[self.begins : self.told])
        now = self.decode(self.ids[self.begins :])
        self.told = len(self.ids)
        return now[len(before) :]


@dataclass
class Stops:
    """Text up to the first stop string; what may be the beginning of one is held back."""

    stops: tuple[str, ...]
    held: str = ""

    def passed(self, text: str) -> tuple[str, bool]:
        """What may be shown now, and whether a stop string was met behind it."""
        self.held += text
        places = [at for stop in self.stops if stop and (at := self.held.find(stop)) >= 0]
        if places:
            shown, self.held = self.held[: min(places)], ""
            return shown, True
        keep = self._open()
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown, False

    def _open(self) -> int:
        """How many of the last characters may begin a stop string."""
        longest = max((len(s) for s in self.stops), default=1) - 1
        for size in range(min(longest, len(self.held)), 0, -1):
            if any(s.startswith(self.held[-size:]) for s in self.stops):
                return size
        return 0


class Speech:
    """Tokens of one answer in, pieces out."""

    def __init__(self, decode: Decode, stops: tuple[str, ...]):
        self.words, self.stops = Words(decode), Stops(stops)
        self.pending: list[
            tuple[int, int, Token]
        ] = []  # where the token's text begins and ends, in characters
        self.made = self.shown = 0

    def add(self, token: Token, finish: Finish = "") -> Piece | None:
        """What may be shown after one more token, None if that is nothing. A `finish` shows what was held back."""
        text = self.words.added(token.id)
        begins, self.made = self.made, self.made + len(text)
        self.pending.append((begins, self.made, token))
        return self._piece(text, finish)

    def end(self, finish: Finish) -> Piece:
        """Show what was held back: the answer ends without a token that would be shown."""
        return self._piece("", finish) or Piece(finish=finish)

    def _piece(self, text: str, finish: Finish) -> Piece | None:
        if finish:
            rest = self.words.rest()
            text, self.made = text + rest, self.made + len(rest)
            self.pending = [(b, self.made if e == b else e, t) for b, e, t in self.pending]
        shown, met = self.stops.passed(text)
        if finish and not met:
            shown, self.stops.held = shown + self.stops.held, ""
        self.shown += len(shown)
        ended: Finish = "stop" if met else finish
        if not shown and not ended:
            return None
        return Piece(shown, self._tokens(all_of_it=bool(ended) and not met, cut=met), ended)

    def _tokens(self, all_of_it: bool, cut: bool) -> tuple[Token, ...]:
        """The tokens whose text is shown: those that began before a stop string, else those that are whole."""

        def out(begins: int, ends: int) -> bool:
            return all_of_it or (begins < self.shown if cut else ends <= self.shown)

        count = 0
        while count < len(self.pending) and out(*self.pending[count][:2]):
            count += 1
        gone, self.pending = self.pending[:count], self.pending[count:]
        return tuple(token for _, _, token in gone)


class Whole:
    """Tokens of one answer in, all of it out at its end: for those who do not read along. Without stop strings."""

    def __init__(self, decode: Decode):
        self.decode = decode
        self.tokens: list[Token] = []

    def add(self, token: Token, finish: Finish = "") -> Piece | None:
        """The answer, if it ends with this token."""
        self.tokens.append(token)
        return self.end(finish) if finish else None

    def end(self, finish: Finish) -> Piece:
        """The answer."""
        return Piece(self.decode([token.id for token in self.tokens]), tuple(self.tokens), finish)
