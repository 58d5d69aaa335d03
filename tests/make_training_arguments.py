"""Write tuner/config/training_arguments.json from the installed transformers; run it as a script."""

from __future__ import annotations

import dataclasses
import enum
import json
import typing
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "tuner" / "config" / "training_arguments.json"
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


if __name__ == "__main__":
    FILE.write_text(json.dumps(table(), indent=1) + "\n")
