"""Where a chat template put each message's words: rendered with texts of which every character knows its message.

The answer of a turn cannot be looked for in the text that a template makes: a short one also stands in the template's own
markup. So the contents handed to the template carry their origin through whatever it does with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import GeneratorType
from typing import Any, NamedTuple

from jinja2.runtime import Context, Macro

from tuner.data.sandbox import COUNTED, Sandbox, small
from tuner.text.lookup import tr

MIXED = -1
"""The origin of text that was made of several messages at once, so that nothing tells them apart."""


class Span(NamedTuple):
    """Characters `start` to `end` of a text come from message number `source`."""

    start: int
    end: int
    source: int


class Traced(str):
    """A text with the spans that came from messages, in order; what lies between them is the template's own."""

    __slots__ = ("spans",)
    spans: tuple[Span, ...]

    def __new__(cls, text: str, spans: Sequence[Span] = ()) -> Traced:
        made = str.__new__(cls, text)
        made.spans = tuple(spans)
        return made

    @classmethod
    def whole(cls, text: str, source: int) -> Traced:
        """A text that comes from one message from its first character to its last."""
        return cls(text, (Span(0, len(text), source),) if text else ())

    def cut(self, start: int, end: int) -> Traced:
        """Characters `start` to `end`."""
        end = max(start, end)
        spans = (
            Span(max(s.start, start) - start, min(s.end, end) - start, s.source)
            for s in self.spans
            if s.start < end and s.end > start
        )
        return Traced(str.__getitem__(self, slice(start, end)), tuple(spans))

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: Any) -> str:
        if not isinstance(key, slice):
            at = range(len(self))[key]
            return self.cut(at, at + 1)
        start, stop, step = key.indices(len(self))
        return self.cut(start, stop) if step == 1 else carried(str.__getitem__(self, key), [self])

    def __iter__(self) -> Iterator[str]:
        return (self.cut(i, i + 1) for i in range(len(self)))

    def __add__(self, other: str) -> Any:
        return joined((self, other))

    def __radd__(self, other: str) -> Any:
        return joined((other, self))

    def __mul__(self, times: Any) -> Any:
        return joined([self] * times)

    def __mod__(self, values: Any) -> Any:
        return carried(str.__mod__(self, values), [self, values])

    def __rmod__(self, form: str) -> Any:
        return carried(str.__mod__(form, self), [form, self])

    def strip(self, chars: str | None = None) -> Traced:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> Traced:
        return self.cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> Traced:
        return self.cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str) -> Traced:
        return self.cut(len(prefix) if self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str) -> Traced:
        return self.cut(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> list[Any]:
        return self._pieces(str.split(self, sep, maxsplit))

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> list[Any]:
        return self._pieces(str.rsplit(self, sep, maxsplit))

    def splitlines(self, keepends: Any = False) -> list[Any]:
        return self._pieces(str.splitlines(self, keepends))

    def partition(self, sep: str) -> tuple[str, str, str]:
        at = self.find(sep)
        return self._parted(at, len(sep)) if at >= 0 else (self, "", "")

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        at = self.rfind(sep)
        return self._parted(at, len(sep)) if at >= 0 else ("", "", self)

    def replace(self, old: str, new: str, count: Any = -1) -> Any:
        if not old:
            return carried(str.replace(self, old, new, count), [self])
        parts = self.split(old, count)
        return joined(p for i, part in enumerate(parts) for p in ((new, part) if i else (part,)))

    def _parted(self, at: int, size: int) -> tuple[str, str, str]:
        return self.cut(0, at), self.cut(at, at + size), self.cut(at + size, len(self))

    def _pieces(self, pieces: Sequence[str]) -> list[Any]:
        """The parts that a split gave, found again one behind the other: nothing but separators lies between them."""
        found, at = [], 0
        for piece in pieces:
            at = self.find(piece, at)
            found.append(self.cut(at, at + len(piece)))
            at += len(piece)
        return found


def joined(parts: Iterable[str]) -> Any:
    """Texts one behind the other: a `Traced` where one of them is, else a plain text."""
    listed = list(parts)
    small(sum(map(len, listed)))
    text = "".join(listed)
    spans: list[Span] = []
    at = 0
    for part in listed:
        if isinstance(part, Traced):
            spans += [Span(s.start + at, s.end + at, s.source) for s in part.spans]
        at += len(part)
    return Traced(text, spans) if spans else text


def _sources(values: Iterable[Any]) -> set[int]:
    """The messages that values were made of, however deep their texts stand."""
    found: set[int] = set()
    for value in values:
        if isinstance(value, Traced):
            found.update(s.source for s in value.spans)
        elif isinstance(value, Mapping):
            found |= _sources(value.keys()) | _sources(value.values())
        elif isinstance(value, list | tuple):
            found |= _sources(value)
    return found


def carried(result: Any, made_of: Iterable[Any]) -> Any:
    """A plain text that a function made of others, as one span of their message: what stands where is lost."""
    if type(result) is not str or not result:
        return result
    sources = _sources(made_of)
    if not sources:
        return result
    return Traced.whole(result, sources.pop() if len(sources) == 1 else MIXED)


class Tracing(Sandbox):
    """The sandbox in which chat templates are rendered, with the origin of every text kept."""

    concat = staticmethod(joined)

    def keep_traces(self) -> None:
        """Let every filter hand on where its text came from."""
        self.filters = {n: f if n == COUNTED else _carrying(f) for n, f in self.filters.items()}

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().call(context, obj, *args, **kwargs)
        if type(result) is not str or isinstance(obj, Macro):  # a macro's text knows by itself
            return result
        given = [v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")]
        return carried(result, [getattr(obj, "__self__", None), *args, *given])


def _carrying(filter_: Any) -> Any:
    """A jinja filter that gives traced texts for traced texts."""

    def run(*args: Any, **kwargs: Any) -> Any:
        # A generator would be empty before it could be asked where its texts come from.
        given = [list(a) if isinstance(a, GeneratorType) else a for a in args]
        return carried(filter_(*given, **kwargs), [*given, *kwargs.values()])

    run.__dict__.update(getattr(filter_, "__dict__", {}))  # jinja keeps there what it hands a filter along
    return run


def traced_message(message: Mapping[str, Any], source: int) -> dict[str, Any]:
    """A message of which all words know that they are message number `source`; its role is the template's business."""
    return {k: v if k == "role" else _deep(v, source) for k, v in message.items()}


def _deep(value: Any, source: int) -> Any:
    if isinstance(value, str):
        return Traced.whole(value, source)
    if isinstance(value, Mapping):
        return {_deep(k, source): v if k == "type" else _deep(v, source) for k, v in value.items()}
    return [_deep(v, source) for v in value] if isinstance(value, list) else value


class Turn(NamedTuple):
    """Where an answer stands in a text, the markup that opens and ends it included: `header` before, `ending` within."""

    start: int
    end: int
    header: str
    ending: str


def turn(text: Traced, source: int, headers: Sequence[str], ending: str) -> Turn | None:
    """The answer that is message number `source`; None where none of its words are in the text.

    It begins behind the last of `headers` (longest first) that stands between the message before and its own first word,
    and ends with `ending` where that is the next markup. Raises ValueError when messages cannot be told apart.
    """
    own = [s for s in text.spans if s.source == source]
    if any(s.source == MIXED for s in text.spans):
        raise ValueError(tr("the chat template writes several messages as one"))
    if not own:
        return None
    first, last = own[0].start, own[-1].end
    others = [s for s in text.spans if s.source != source]
    if any(first < s.start < last for s in others):
        raise ValueError(tr("the chat template writes one message within another"))
    before = max((s.end for s in others if s.end <= first), default=0)
    after = min((s.start for s in others if s.start >= last), default=len(text))
    start, header = first, ""
    for candidate in headers:
        at = text.rfind(candidate, before, first) if candidate else -1
        if at >= 0:
            start, header = at + len(candidate), candidate
            break
    for candidate in (ending, ending.rstrip()):
        at = text.find(candidate, last, after) if candidate else -1
        if at >= 0:
            return Turn(start, at + len(candidate), header, str(text.cut(last, at + len(candidate))))
    return Turn(start, last, header, "")


def plain(text: str) -> str:
    """The text without its traces."""
    return "".join((text,))
