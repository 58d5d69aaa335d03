"""Write tuner/config/training_arguments.py from the installed transformers: `python -m tools.training_arguments`."""

from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuner.config.config import Config
from tuner.config.knobs import sections_of
from tuner.redact import is_secret_name

FILE = Path(__file__).parents[1] / "tuner" / "config" / "training_arguments.py"
TYPES = {
    "bool": "bool",
    "int": "int",
    "float": "float",
    "str": "str",
    "bool?": "OptionalBool",
    "int?": "OptionalInt",
    "str?": "OptionalText",
    "names": "Names",
    "json": "Json",
}
HEAD = '''"""The fields of transformers' TrainingArguments that no other section declares, each by its own name.

Made by `python -m tools.training_arguments`, because importing transformers takes seconds and a type checker sees no
class that is made while running; a test holds this file to the installed version. Do not edit.
"""
# ruff: noqa: E501

from __future__ import annotations

from typing import Any, Literal

from tuner.config.knobs import (
    Json,
    Names,
    OptionalBool,
    OptionalInt,
    OptionalText,
    Section,
    SpacedText,
    knob,
)


def _passed(name: str, default: Any, secret: bool = False) -> Any:
    said = f"Passed on to transformers' TrainingArguments as {name}."
    return knob(default, said, shown=False, advanced=True, secret=secret)


class TrainingArguments(Section):
    title = "Everything else of transformers' TrainingArguments"
    icon = ":material/more_horiz:"

'''
PLAIN = {bool: "bool", int: "int", float: "float", str: "str"}


def _choices(annotation: Any) -> list[str]:
    for member in typing.get_args(annotation):
        if isinstance(member, type) and issubclass(member, enum.Enum):
            return [str(m.value) for m in member]
    return []


def _type(annotation: Any) -> str:
    if annotation in PLAIN:
        return PLAIN[annotation]
    members = typing.get_args(annotation)
    rest = [m for m in members if m is not type(None)]
    if list[str] in (annotation, *rest) and dict not in rest:
        return "names"
    if any(m is dict or typing.get_origin(m) in (dict, list) or m not in PLAIN for m in rest):
        texts = str in rest and all(m is str or isinstance(m, type) for m in rest) and dict not in rest
        return ("str?" if type(None) in members else "str") if texts else "json"
    return PLAIN[rest[0]] + ("?" if type(None) in members else "")


def table() -> dict[str, dict[str, Any]]:
    from transformers import TrainingArguments

    rows = {}
    for field in dataclasses.fields(TrainingArguments):
        if not field.init:
            continue
        default = None if field.default is dataclasses.MISSING else field.default
        hint = typing.get_type_hints(TrainingArguments)[field.name]
        row = {"type": _type(hint), "default": getattr(default, "value", default)}
        if field.name == "debug":
            row["type"] = "names"
        if row["type"] == "names":
            row["default"] = default or []
        if choices := _choices(hint):
            row |= {"type": "choice", "choices": choices}
        rows[field.name] = row
    return rows


def text(taken: set[str]) -> str:
    """The file's text; `taken` are the fields that another section declares."""
    rows = table()
    fields = [line for name, row in rows.items() if name not in taken for line in _field(name, row)]
    return (
        HEAD + "".join(fields) + _tuple("NAMES", list(rows)) + _tuple("OPTIMIZERS", rows["optim"]["choices"])
    )


def _field(name: str, row: dict[str, Any]) -> Iterator[str]:
    default = tuple(row["default"]) if row["type"] == "names" else row["default"]
    secret = ", secret=True" if is_secret_name(name) else ""
    yield f"    {name}: {_annotation(name, row)} = _passed({name!r}, {default!r}{secret})\n"


def _annotation(name: str, row: dict[str, Any]) -> str:
    if name == "fsdp":
        return "SpacedText"
    return f"Literal{row['choices']!r}" if row["type"] == "choice" else TYPES[row["type"]]


def _tuple(name: str, values: list[str]) -> str:
    return f"\n{name} = (\n" + "".join(f"    {value!r},\n" for value in values) + ")\n"


def ours() -> set[str]:
    """The knobs that a section of our own declares."""
    return {name for s in sections_of(Config) if s.__name__ != "TrainingArguments" for name in s.model_fields}


def formatted(source: str) -> str:
    """The text as ruff lays it out."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FILE), "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    FILE.write_text(formatted(text(ours())))
