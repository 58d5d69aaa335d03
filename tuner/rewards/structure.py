"""Rewards that look at the form of an answer: JSON, calls of tools, thoughts before the answer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, Literal

from tuner.calls import CallReader
from tuner.config.knobs import Json, Section, knob
from tuner.rewards.patterns import SECONDS, compiled
from tuner.rewards.reward import Completion, Rule, answer_of
from tuner.text.lookup import tr

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_NOTHING = object()


class JsonValid(Section):
    title = "Valid JSON"

    kind: Literal["any", "object", "list"] = knob("any", "What the JSON has to be.")
    fenced: bool = knob(True, "Whether it may stand in a block of ```json.")


def json_valid(settings: JsonValid) -> Rule:
    """1 for an answer that is JSON and nothing else, 0 for another one."""
    kinds: dict[str, type] = {"any": object, "object": dict, "list": list}

    def rule(one: Completion) -> float:
        found = json_of(one.text, settings.fenced)
        return float(found is not _NOTHING and isinstance(found, kinds[settings.kind]))

    return rule


def json_of(text: str, fenced: bool = True) -> Any:
    """The JSON that an answer is; _NOTHING where it is none."""
    said = answer_of(text)
    if fenced and (block := _FENCE.fullmatch(said)):
        said = block[1]
    try:
        return json.loads(said, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NOTHING


def _refuse(word: str) -> Any:
    raise ValueError(tr("{word} is no JSON", word=word))


class JsonSchema(Section):
    title = "JSON of a schema"

    json_schema: Json = knob(
        None,
        "The JSON schema that the answer has to follow (draft 2020-12), as JSON or as a mapping in a file.",
    )
    fenced: bool = knob(True, "Whether it may stand in a block of ```json.")


def check_json_schema(settings: JsonSchema) -> str:
    """What is wrong with the settings; empty for nothing."""
    if not isinstance(settings.json_schema, dict | bool):
        return tr('needs a JSON schema, for example {"type": "object"}')
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing.exceptions import Unresolvable

    try:
        for pattern in _patterns(settings.json_schema):
            compiled(pattern)
        Draft202012Validator.check_schema(settings.json_schema)
        _told(validator(settings.json_schema), None)
    except SchemaError as error:
        return tr("has no valid JSON schema: {message:.200}", message=error.message)
    except Unresolvable as error:
        return tr("names {ref} in its schema, which stands nowhere in it; nothing is fetched", ref=error.ref)
    except RecursionError:
        return tr("has a schema that goes round in circles")
    except TimeoutError:
        return tr(
            "has a schema that takes longer than {seconds:g} s to check; write a simpler one", seconds=SECONDS
        )
    except ValueError as error:
        return tr("has a pattern in its schema that {error}", error=error)
    return ""


def _patterns(schema: Any) -> Iterator[str]:
    """The regular expressions in a schema."""
    if isinstance(schema, Mapping):
        yield from (schema["pattern"],) if isinstance(schema.get("pattern"), str) else ()
        keyed = schema.get("patternProperties")
        yield from map(str, keyed) if isinstance(keyed, Mapping) else ()
    below = schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list) else ()
    for one in below:
        yield from _patterns(one)


def json_schema(settings: JsonSchema) -> Rule:
    """1 for an answer that is JSON of the schema, 0 for another one."""
    checked = validator(settings.json_schema)

    def rule(one: Completion) -> float:
        found = json_of(one.text, settings.fenced)
        return float(found is not _NOTHING and follows(checked, found))

    return rule


def follows(checked: Any, value: Any) -> bool:
    """Whether a value follows a schema; one of which that cannot be told in time does not."""
    from referencing.exceptions import Unresolvable

    try:
        return _told(checked, value)
    except (Unresolvable, RecursionError, TimeoutError, ValueError):
        return False


_until: ContextVar[float] = ContextVar("until", default=float("inf"))


def _told(checked: Any, value: Any) -> bool:
    """Whether a value follows a schema. Raises TimeoutError where that takes too long: a few references can ask for more steps
    than a machine has years."""
    before = _until.set(time.monotonic() + SECONDS)
    try:
        return bool(checked.is_valid(value))
    finally:
        _until.reset(before)


def _limited(step: Callable[..., Any]) -> Callable[..., Any]:
    """A validator's way into a part of a schema, until its time is up."""

    @wraps(step)
    def limited(*args: Any, **words: Any) -> Any:
        if time.monotonic() > _until.get():
            raise TimeoutError
        return step(*args, **words)

    return limited


def validator(schema: Any) -> Any:
    """A validator with a limit of seconds, its patterns too, which fetches nothing."""
    from referencing import Registry

    return _timed()(schema, registry=Registry())


@cache
def _timed() -> Any:
    from jsonschema import Draft202012Validator, validators

    own = {"pattern": _pattern, "patternProperties": _pattern_properties}
    made: Any = validators.extend(Draft202012Validator, own)
    made.descend, made.iter_errors = _limited(made.descend), _limited(made.iter_errors)
    return made


def _pattern(checked: Any, pattern: str, value: Any, schema: Any) -> Iterator[Exception]:
    from jsonschema.exceptions import ValidationError

    if isinstance(value, str) and not compiled(pattern).search(value, timeout=SECONDS):
        yield ValidationError(tr("{value!r} does not match {pattern!r}", value=value, pattern=pattern))


def _pattern_properties(
    checked: Any, patterns: Mapping[str, Any], value: Any, schema: Any
) -> Iterator[Exception]:
    for pattern, below in patterns.items() if isinstance(value, dict) else ():
        found = compiled(pattern)
        for key in value:
            if found.search(key, timeout=SECONDS):
                yield from checked.descend(value[key], below, path=key, schema_path=pattern)


class ToolCallValid(Section):
    title = "Valid tool call"

    needed: bool = knob(True, "Whether an answer without a call scores 0; else nothing is said of it.")


def tool_call_valid(settings: ToolCallValid) -> Rule:
    """1 where every call of an answer names a tool of its row with the arguments that the tool takes, 0 else; nothing where the
    row has no tools."""

    def rule(one: Completion) -> float | None:
        tools = dict(filter(None, map(_tool, one.tools)))
        if not tools:
            return None
        _, calls = CallReader(tools).all(answer_of(one.text))
        if not calls:
            return 0.0 if settings.needed else None
        return float(all(call.name in tools and _fits(call.arguments, tools[call.name]) for call in calls))

    return rule


def _tool(described: Any) -> tuple[str, Any] | None:
    """A tool's name and the schema of its arguments, whichever way it was wrapped."""
    inner = described.get("function", described) if isinstance(described, Mapping) else {}
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return (name, inner.get("parameters") or {}) if isinstance(name, str) else None


def _fits(arguments: str, schema: Any) -> bool:
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return False
    return isinstance(given, dict) and follows(validator(schema), given)


class ThinkFormat(Section):
    title = "Thoughts, then an answer"

    opened: bool = knob(
        False, "Whether the prompt already ends in <think>, so that the answer begins inside its thoughts."
    )


def think_format(settings: ThinkFormat) -> Rule:
    """1 for an answer that thinks once, between <think> and </think>, and then says something; 0 else."""

    def rule(one: Completion) -> float:
        text = f"<think>{one.text}" if settings.opened else one.text.lstrip()
        once = text.count("<think>") == 1 and text.count("</think>") == 1
        return float(once and text.startswith("<think>") and bool(text.partition("</think>")[2].strip()))

    return rule
