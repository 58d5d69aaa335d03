"""The mechanism: what a knob is, what a section is, and how values come in and go out.

A knob is declared once, as a pydantic field made by `knob(...)` inside a `Section`. Everything else is read from that
declaration: the CLI flag, the YAML key, the form's widget and tooltip, the validation, the help and the MLflow param.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from tuner.redact import redact
from tuner.text.lookup import tr

Kind = Literal["bool", "int", "float", "text", "choice", "list", "json"]


class Section(BaseModel):
    """A titled group of knobs: one accordion in the form, one group in `--help`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
    )
    title: ClassVar[str] = ""
    icon: ClassVar[str] = ""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in one sentence that says what to do; `knob` is where the form shows it.

    `mend` holds knob values that would put it right, for a one-click remedy.
    """

    knob: str
    sentence: str
    mend: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # It repeats what was typed, which may be a URL with its password.
        object.__setattr__(self, "sentence", redact(self.sentence))


class ConfigError(Exception):
    """Values that do not make a config; `problems` has at least one entry."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = list(problems)
        super().__init__(" ".join(p.sentence for p in self.problems))


@dataclass(frozen=True)
class Knob:
    """A knob as its readers see it: form, CLI, help and docs."""

    name: str
    section: str
    kind: Kind
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    lower: float | None = None
    upper: float | None = None
    raised: str = ""
    lowered: str = ""
    usual: str = ""
    unit: str = ""
    advanced: bool = False
    shown: bool = True
    secret: bool = False
    optional: bool = False
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    or_needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def tooltip(self) -> str:
        """Everything a newcomer wants to know of it: what it does, what a change does, a usual range."""
        parts = [tr(self.help)]
        if self.raised:
            parts.append(tr("Higher: {raised}", raised=tr(self.raised)))
        if self.lowered:
            parts.append(tr("Lower: {lowered}", lowered=tr(self.lowered)))
        if self.usual:
            parts.append(tr("Usual: {usual}.", usual=tr(self.usual)))
        return " ".join(parts)

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether the knob has an effect next to these other values."""
        if any(values.get(name) in allowed for name, allowed in self.or_needs.items()):
            return True
        return all(values.get(name) in allowed for name, allowed in self.needs.items())


def knob(
    default: Any,
    help: str,
    *,
    raised: str = "",
    lowered: str = "",
    usual: str = "",
    unit: str = "",
    advanced: bool = False,
    shown: bool = True,
    secret: bool = False,
    needs: Mapping[str, tuple[Any, ...]] | None = None,
    or_needs: Mapping[str, tuple[Any, ...]] | None = None,
    **bounds: float,
) -> Any:
    """Declare a knob. `bounds` are pydantic's (ge, gt, le, lt); `needs` maps another knob to the values it must have,
    `or_needs` to values any of which is enough."""
    hints = {
        "raised": raised,
        "lowered": lowered,
        "usual": usual,
        "unit": unit,
        "advanced": advanced,
        "shown": shown,
        "secret": secret,
        "needs": dict(needs or {}),
        "or_needs": dict(or_needs or {}),
    }
    make: Any = Field  # its overloads do not take bounds by **
    return make(default=default, description=help, json_schema_extra={"knob": hints}, **bounds)


def split(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value.strip().lower() == "null"):
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def none_word(value: Any) -> Any:
    """YAML's null, and what people type for it in a shell or leave behind in a form, as None."""
    return None if isinstance(value, str) and value.strip().lower() in {"", "none", "null"} else value


def _json(value: Any) -> Any:
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        return json.loads(value)
    return none_word(value)


Names = Annotated[tuple[str, ...], BeforeValidator(split)]
"""A comma-separated list on the command line, a list or a string in YAML."""
OptionalText = Annotated[str | None, BeforeValidator(none_word)]
EmptiableText = Annotated[str | None, BeforeValidator(lambda v: none_word(v) if v != "" else v)]
"""Text whose emptiness says something: "" in a file or a shell stays, an empty field of the form is None."""
OptionalInt = Annotated[int | None, BeforeValidator(none_word)]
OptionalFloat = Annotated[float | None, BeforeValidator(none_word)]
OptionalBool = Annotated[bool | None, BeforeValidator(none_word)]
SpacedText = Annotated[
    OptionalText, BeforeValidator(lambda v: " ".join(map(str, v)) if isinstance(v, list | tuple) else v)
]
"""Options with spaces between them in a shell, a list in YAML."""
Json = Annotated[Any, BeforeValidator(_json)]
"""A JSON object typed in a shell, a mapping in YAML."""


def describe(section: type[Section], name: str, info: FieldInfo) -> Knob:
    """The reader's view of one declared field."""
    extra = info.json_schema_extra
    hints: Mapping[str, Any] = extra.get("knob", {}) if isinstance(extra, dict) else {}  # type: ignore[assignment]
    limits: dict[str, float] = {}
    for rule in info.metadata:
        for side, bound in (("lower", "ge"), ("lower", "gt"), ("upper", "le"), ("upper", "lt")):
            if getattr(rule, bound, None) is not None:
                limits[side] = getattr(rule, bound)
    plain, optional = _plain(info.annotation)
    choices = tuple(str(a) for a in get_args(plain)) if get_origin(plain) is Literal else ()
    return Knob(
        name=name,
        section=section.title,
        kind="json" if any(getattr(m, "func", None) is _json for m in info.metadata) else _kind(plain),
        default=info.get_default(call_default_factory=False),
        help=info.description or "",
        choices=choices,
        optional=optional,
        lower=limits.get("lower"),
        upper=limits.get("upper"),
        **hints,
    )


def _plain(annotation: Any) -> tuple[Any, bool]:
    """Strip Annotated and None from a type."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        return _plain(rest[0])[0], len(rest) < len(get_args(annotation))
    return annotation, False


def _kind(plain: Any) -> Kind:
    if get_origin(plain) is Literal:
        return "choice"
    if get_origin(plain) in (tuple, list):
        return "list"
    kinds: dict[Any, Kind] = {bool: "bool", int: "int", float: "float", str: "text"}
    return kinds.get(plain, "json")


def sections_of(config: type[Section]) -> list[type[Section]]:
    """The sections a config is made of, in the order they are shown, those of a config that it builds on first."""
    bases = [c for c in config.__bases__ if issubclass(c, Section)]
    return [section for c in bases for section in ([c] if vars(c).get("title") else sections_of(c))]


@cache
def knobs_of(config: type[Section]) -> dict[str, Knob]:
    """Every knob by name, in the order they are shown."""
    return {
        name: describe(section, name, config.model_fields[name])  # a config may set another default
        for section in sections_of(config)
        for name in section.model_fields
    }


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name a person most likely meant."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None
