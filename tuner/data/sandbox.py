"""The sandbox in which chat templates are rendered: no way out, and an end to how long and how large.

A template comes with a model from anywhere. One that loops for ever, or doubles a text till memory is gone, is stopped with a
sentence instead of stopping the program.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tuner.text.lookup import tr

SECONDS = 10.0
"""The longest that one chat may be rendered."""
LARGEST = 64_000_000
"""Characters of the longest text, and items of the longest list, that a template may make of a chat."""
_state = threading.local()


class TemplateLimitError(Exception):
    """A template that went on for too long or grew too large; the text says which."""


@contextmanager
def limited() -> Iterator[None]:
    """Stop what is rendered within after SECONDS. Raises TemplateLimitError."""
    before = getattr(_state, "end", None)
    _state.end = time.monotonic() + SECONDS
    try:
        yield
    finally:
        _state.end = before


def _on_time() -> None:
    end = getattr(_state, "end", None)
    if end is not None and time.monotonic() > end:
        raise TemplateLimitError(
            tr("the chat template does not come to an end within {seconds:g} s", seconds=SECONDS)
        )


def small(size: int) -> None:
    """Refuse a text or list of this size. Raises TemplateLimitError."""
    if size > LARGEST:
        raise TemplateLimitError(
            tr("the chat template makes a text of more than {largest:,} characters", largest=LARGEST)
        )


def _length(value: Any) -> int:
    """How long a text or list is; 0 for anything else, and for a stand-in that does not let itself be looked into."""
    if getattr(type(value), "opaque", False) or not isinstance(value, str | list | tuple | dict):
        return 0
    return len(value)


class _Counted(list[Any]):
    """What a loop runs over; looks at the clock now and then."""

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(super().__iter__()):
            if number % 64 == 0:
                _on_time()
            yield item


def _counted(items: Iterable[Any]) -> _Counted:
    _on_time()
    return _Counted(items)


def _concat(parts: Iterable[str]) -> str:
    listed = list(parts)
    small(sum(map(len, listed)))
    return "".join(listed)


COUNTED = "counted_by_the_sandbox"


class _Code(CodeGenerator):
    """Writes `a ~ b` as the environment's own way to join."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits. `limited` starts the clock; sizes are watched always."""

    code_generator_class = _Code
    intercepted_binops = frozenset(["*", "**", "+", "%"])
    concat = staticmethod(_concat)

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.filters = {name: _watched(f) for name, f in self.filters.items()} | {COUNTED: _counted}
        self.globals.pop("lipsum", None)  # makes as much text as it is asked for

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        for loop in source.find_all(nodes.For):
            if not (isinstance(loop.iter, nodes.Filter) and loop.iter.name == COUNTED):
                counted = nodes.Filter(loop.iter, COUNTED, [], [], None, None)
                loop.iter = counted.set_lineno(loop.lineno).set_environment(self)
        return str(super()._generate(source, *args, **options))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            times = max((v for v in (left, right) if isinstance(v, int)), default=0)
            small(max(_length(left), _length(right)) * max(times, 0))
        elif operator == "+":
            small(_length(left) + _length(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            small(left.bit_length() * abs(right))
        elif operator == "%":
            _widths(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        _on_time()
        _grows(getattr(obj, "__name__", ""), [getattr(obj, "__self__", None), *args, *kwargs.values()])
        result = super().call(context, obj, *args, **kwargs)
        small(_length(result))
        return result


def _watched(filter_: Any) -> Any:
    """A filter whose arguments and result are looked at."""
    name = getattr(filter_, "__name__", "").removeprefix("do_").removeprefix("sync_do_")

    def run(*args: Any, **kwargs: Any) -> Any:
        _on_time()
        texts = args[1:] if args and not isinstance(args[0], str | list | tuple | int) else args
        _grows(name, [*texts, *kwargs.values()])
        result = filter_(*args, **kwargs)
        small(_length(result))
        return result

    run.__dict__.update(getattr(filter_, "__dict__", {}))  # jinja keeps there what it hands a filter along
    return run


def _grows(name: str, given: Sequence[Any]) -> None:
    """Refuse a call that makes a very large text of small ones, before it is made."""
    for value in given:
        if isinstance(value, int):
            small(value)  # a width, or a number of times
    lengths = sorted(map(_length, given))
    if name in ("replace", "join") and len(lengths) > 1:
        text, old, new = (*given, "", "")[:3]
        if name == "join":
            small(lengths[-1] * lengths[-2])
        elif _length(text) and isinstance(old, str):
            small(text.count(old) * _length(new))
    elif name == "format":
        for value in given:
            _widths(value)


def _widths(text: Any) -> None:
    """Refuse a format that asks for a width of millions."""
    if _length(text) and isinstance(text, str):
        for digits in re.findall(r"[%:][^a-zA-Z%{}]*?(\d{7,})", text[:100_000]):
            small(int(digits))
