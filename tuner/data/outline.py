"""What a chat template writes around its contents, found once for each shape of a chat: most rows then need no rendering.

The template is rendered with contents that can be joined, trimmed and written but not looked into. If it gets through, it
writes the same around any contents of that shape, and they are put into their places directly. If it looks (for a thought,
a length, a first letter), there is no outline and every chat of that shape is rendered by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Messages = Sequence[Mapping[str, Any]]
BEGIN, TRIMMED, END = "\ufdd2", "\ufdd4", "\ufdd3"
_PLACE = re.compile(f"([{BEGIN}{TRIMMED}])([0-9]+){END}")
_ONE = re.compile(f"{BEGIN}([0-9]+){END}")
LONGEST = 32
"""Turns of the longest chats that are outlined: the outlines of longer ones would take more room than they are worth."""
# What hands a content on, asks only what a shape says of it, or stumbles over a `Content` by itself; the rest looks into it.
FILTERS = ("trim", "default", "d", "length", "count", "first", "last", "list", "items", "string", "upper", "lower",
           "map", "selectattr", "rejectattr")  # fmt: skip
TESTS = ("defined", "undefined", "none", "string", "mapping", "boolean", "true", "false", "number", "integer",
         "eq", "equalto", "==", "ne", "!=")  # fmt: skip
# These make texts that no longer tell when they are looked into.
UNTOLD = (nodes.Macro, nodes.AssignBlock, nodes.FilterBlock, nodes.Concat, nodes.Include)


class LookedError(Exception):
    """The template asked what a content says."""


def _looked(*_: Any, **__: Any) -> NoReturn:
    raise LookedError


class Content(str):
    """Stands for a content that is not blank: to be joined to other text, trimmed and written, and nothing else."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name in ("strip", "__class__"):
            return str.__getattribute__(self, name)
        raise LookedError

    def strip(self, chars: str | None = None) -> Content:
        """The content without white space at both ends; only where it stands alone."""
        alone = _ONE.fullmatch(_text(self))
        if chars is not None or alone is None:
            raise LookedError
        return Content(f"{TRIMMED}{alone[1]}{END}")

    def __add__(self, other: str) -> Content:
        return Content(_text(self) + _text(other))

    def __radd__(self, other: str) -> Content:
        return Content(_text(other) + _text(self))

    def __bool__(self) -> bool:
        return True

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _looked
    __contains__ = __iter__ = __getitem__ = __len__ = __format__ = __repr__ = _looked
    __mod__ = __rmod__ = __mul__ = __rmul__ = _looked


def _text(value: str) -> str:
    return str.__str__(value)


class _Blind(ImmutableSandboxedEnvironment):
    """An environment in which only what is known not to look into contents may be done with them."""

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        passes_on = obj is Namespace or obj is dict
        if not passes_on and any(map(_holds, (*args, *kwargs.values()))):
            raise LookedError
        return super().call(context, obj, *args, **kwargs)


def _holds(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds, value))
    return isinstance(value, Content)


class Outline:
    """A text with places for contents."""

    def __init__(self, text: str):
        self._parts: list[str] = []
        self._places: list[tuple[int, int, bool]] = []
        at = 0
        for place in _PLACE.finditer(text):
            self._parts += [text[at : place.start()], ""]
            self._places.append((len(self._parts) - 1, int(place[2]), place[1] == TRIMMED))
            at = place.end()
        self._parts.append(text[at:])

    def filled(self, messages: Messages) -> str:
        """The text with the contents of these messages."""
        parts = self._parts.copy()
        for at, number, trimmed in self._places:
            content = messages[number]["content"]
            parts[at] = content.strip() if trimmed else content
        return "".join(parts)


class Outlines:
    """The outlines of one chat template, by the shape of the chat. `like` is the environment that it is rendered in."""

    def __init__(self, text: str, like: jinja2.Environment, given: Mapping[str, Any]):
        self._given = dict(given)
        self._template = _blind(text, like)
        self._found: dict[str, Outline | None] = {}

    def written(self, messages: Messages, asks: bool, rendered: Callable[[], str]) -> str | None:
        """The text of a chat without tools; None where the template has to be rendered.

        `rendered` does that: the first chat of a shape is held against it.
        """
        if len(messages) > LONGEST:
            return None
        shape = "asks" if asks else ""
        for message in messages:
            content = message["content"]
            if not content or content.isspace() or len(message) != 2:
                return None
            shape += " " + message["role"]
        if shape not in self._found:
            outline = self._outline(messages, asks)
            fits = outline is not None and outline.filled(messages) == rendered()
            self._found[shape] = outline if fits else None
        known = self._found[shape]
        return known.filled(messages) if known else None

    def _outline(self, messages: Messages, asks: bool) -> Outline | None:
        if self._template is None:
            return None
        blind = [{"role": m["role"], "content": Content(f"{BEGIN}{i}{END}")} for i, m in enumerate(messages)]
        try:
            text = self._template.render(
                messages=blind, tools=None, add_generation_prompt=asks, documents=None, **self._given
            )
        except Exception:  # what it looked for, or what it refuses: rendering the chat itself tells
            return None
        return Outline(text)


@cache
def _blind(text: str, like: jinja2.Environment) -> jinja2.Template | None:
    """The template in an environment that sees no contents; None where it makes texts that do not tell."""
    environment = _Blind(
        trim_blocks=like.trim_blocks,
        lstrip_blocks=like.lstrip_blocks,
        extensions=[*map(type, like.extensions.values())],
    )
    environment.globals.update(like.globals)
    environment.filters = {n: f if n in FILTERS else _looked for n, f in like.filters.items()}
    environment.tests = {n: t if n in TESTS else _looked for n, t in like.tests.items()}
    tree = environment.parse(text)
    if any(map(tree.find, UNTOLD)) or any(map(_asks_within, tree.find_all(nodes.Compare))):
        return None
    return environment.from_string(tree)


def _asks_within(compared: nodes.Compare) -> bool:
    """Whether something unknown is looked for inside a text: `content in "..."`, which no content can tell of."""
    known = isinstance(compared.expr, nodes.Const)
    return any(
        o.op in ("in", "notin") and not known and not isinstance(o.expr, nodes.List | nodes.Tuple)
        for o in compared.ops
    )
