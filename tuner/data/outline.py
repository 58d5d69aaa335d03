"""What a chat template writes around its contents, found once for each shape of a chat: most rows then need no rendering.

The template is rendered with contents that can be joined, trimmed and written but not looked into. If it gets through, it
writes the same around any contents of that shape, and they are put into their places directly. Asked whether it holds some
text (a thought, a tool's result), a content says no, and the outline is for contents of which that is true. If the template
looks any further (at a length, a first letter), there is no outline and every chat of that shape is rendered by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.utils import Namespace

from tuner.data.sandbox import COUNTED, Sandbox, limited

Messages = Sequence[Mapping[str, Any]]
BEGIN, END = "\ufdd2", "\ufdd3"
_PLACE = re.compile(f"{BEGIN}([0-9]+){END}")
LONGEST = 32
"""Turns of the longest chats that are outlined: the outlines of longer ones would take more room than they are worth."""
# What hands a content on, asks only what a shape says of it, or stumbles over a `Content` by itself; the rest looks into it.
FILTERS = ("trim", "default", "d", "length", "count", "first", "last", "list", "items", "string", "upper", "lower",
           "map", "selectattr", "rejectattr", COUNTED)  # fmt: skip
TESTS = ("defined", "undefined", "none", "string", "mapping", "boolean", "true", "false", "number", "integer",
         "eq", "equalto", "==", "ne", "!=")  # fmt: skip
# These make texts that no longer tell when they are looked into.
UNTOLD = (nodes.Macro, nodes.AssignBlock, nodes.FilterBlock, nodes.Concat, nodes.Include)


class LookedError(Exception):
    """The template asked what a content says."""


def _looked(*_: Any, **__: Any) -> NoReturn:
    raise LookedError


class Seen:
    """What one blind rendering shows: the forms in which contents are written, and what was asked of them.

    A form is a message's number and how its content is trimmed, first each as it is; a question is a form's number, how,
    and the text.
    """

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.forms: list[tuple[int, tuple[tuple[str, str | None], ...]]] = [(i, ()) for i in range(messages)]
        self.questions: list[tuple[int, str, str]] = []

    def content(self, form: int) -> Content:
        """What stands for a content in this form."""
        return Content(f"{BEGIN}{form}{END}", self)


class Content(str):
    """Stands for a content that is not blank: to be joined to other text, trimmed and written, and nothing else."""

    __slots__ = ("_seen",)
    _seen: Seen
    opaque = True

    def __new__(cls, text: str, seen: Seen) -> Content:
        made = str.__new__(cls, text)
        made._seen = seen
        return made

    def __getattribute__(self, name: str) -> Any:
        if name in ("strip", "lstrip", "rstrip", "startswith", "endswith", "__class__"):
            return str.__getattribute__(self, name)
        raise LookedError

    def strip(self, chars: str | None = None) -> Content:
        return _trimmed(self, "strip", chars)

    def lstrip(self, chars: str | None = None) -> Content:
        return _trimmed(self, "lstrip", chars)

    def rstrip(self, chars: str | None = None) -> Content:
        return _trimmed(self, "rstrip", chars)

    def startswith(self, text: Any, *where: Any) -> bool:
        return _asked(self, "startswith", text, *where)

    def endswith(self, text: Any, *where: Any) -> bool:
        return _asked(self, "endswith", text, *where)

    def __contains__(self, text: Any) -> bool:
        return _asked(self, "__contains__", text)

    def __add__(self, other: str) -> Content:
        return Content(_text(self) + _text(other), _seen(self))

    def __radd__(self, other: str) -> Content:
        return Content(_text(other) + _text(self), _seen(self))

    def __bool__(self) -> bool:
        return True

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _looked
    __iter__ = __getitem__ = __len__ = __format__ = __repr__ = _looked
    __mod__ = __rmod__ = __mul__ = __rmul__ = _looked


def _text(value: str) -> str:
    return str.__str__(value)


def _seen(content: Content) -> Seen:
    found: Seen = str.__getattribute__(content, "_seen")
    return found


def _alone(content: Content) -> int:
    """The number of the form that this is; raises LookedError where it is joined to other text."""
    place = _PLACE.fullmatch(_text(content))
    if place is None:
        raise LookedError
    return int(place[1])


def _trimmed(content: Content, how: str, chars: str | None) -> Content:
    """The content without white space at its ends: still not blank."""
    seen, form = _seen(content), _alone(content)
    if chars is not None and not (type(chars) is str and chars.isspace()):
        raise LookedError
    number, trims = seen.forms[form]
    seen.forms.append((number, (*trims, (how, chars))))
    return seen.content(len(seen.forms) - 1)


def _asked(content: Content, how: str, text: Any, *where: Any) -> bool:
    """No; and the outline is only for contents of which that is true."""
    if type(text) is not str or where:
        raise LookedError
    _seen(content).questions.append((_alone(content), how, text))
    return False


class _Blind(Sandbox):
    """An environment in which only what is known not to look into contents may be done with them."""

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        passes_on = obj is Namespace or obj is dict
        # What jinja hands along by itself in a loop reaches only functions that ask for the context; there are none.
        given = (v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars"))
        if not passes_on and any(map(_holds, (*args, *given))):
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

    def __init__(self, text: str, seen: Seen):
        self._trimmed = seen.forms[seen.messages :]
        self._questions = seen.questions
        self._parts: list[str] = []
        self._places: list[tuple[int, int]] = []
        at = 0
        for place in _PLACE.finditer(text):
            self._parts += [text[at : place.start()], ""]
            self._places.append((len(self._parts) - 1, int(place[1])))
            at = place.end()
        self._parts.append(text[at:])

    def filled(self, messages: Messages) -> str | None:
        """The text with the contents of these messages; None where they are none that it is for."""
        said: list[str] = [message["content"] for message in messages]
        for number, trims in self._trimmed:
            content = said[number]
            for how, chars in trims:
                content = getattr(content, how)(chars)
            said.append(content)
        for form, how, text in self._questions:
            if getattr(said[form], how)(text):
                return None
        parts = self._parts.copy()
        for at, form in self._places:
            parts[at] = said[form]
        return "".join(parts)


class Outlines:
    """The outlines of one chat template, by the shape of the chat. `like` is the environment that it is rendered in."""

    def __init__(self, text: str, like: jinja2.Environment, given: Mapping[str, Any]):
        self._given = dict(given)
        self._template = _blind(text, like)
        self._new: dict[str, Outline | None] = {}
        self._found: dict[str, Outline] = {}

    def written(self, messages: Messages, asks: bool, rendered: Callable[[], str]) -> str | None:
        """The text of a chat without tools; None where the template has to be rendered.

        `rendered` does that: the first chat that an outline is for is held against it.
        """
        if len(messages) > LONGEST:
            return None
        shape = "asks" if asks else ""
        for message in messages:
            content = message["content"]
            if not content or content.isspace() or len(message) != 2:
                return None
            shape += " " + message["role"]
        known = self._found.get(shape)
        if known is not None:
            return known.filled(messages)
        return self._first(shape, messages, asks, rendered)

    def _first(self, shape: str, messages: Messages, asks: bool, rendered: Callable[[], str]) -> str | None:
        """The text of a chat whose shape has no outline that has been checked."""
        if shape not in self._new:
            self._new[shape] = self._outline(messages, asks)
        outline = self._new[shape]
        text = outline.filled(messages) if outline else None
        if outline is None or text is None:
            return None
        if text != rendered():
            self._new[shape] = None
            return None
        self._found[shape] = outline
        return text

    def _outline(self, messages: Messages, asks: bool) -> Outline | None:
        if self._template is None:
            return None
        seen = Seen(len(messages))
        blind = [{"role": m["role"], "content": seen.content(i)} for i, m in enumerate(messages)]
        try:
            with limited():
                text = self._template.render(
                    messages=blind, tools=None, add_generation_prompt=asks, documents=None, **self._given
                )
        except Exception:  # what it looked for, or what it refuses: rendering the chat itself tells
            return None
        return Outline(text, seen)


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
