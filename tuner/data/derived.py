"""Sets of typed questions made from what other sets hold: which of two answers is better, and which tool is to be called."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tuner import private
from tuner.config.knobs import ConfigError, Problem
from tuner.data.additions import unused
from tuner.data.catalog import catalog_folder
from tuner.data.decisions import CHOICE, MOST
from tuner.data.entries import Entry
from tuner.data.files import records
from tuner.data.formats import Dropped, Row, convert
from tuner.data.upload import UPLOADS, must_be_free, save
from tuner.runs.files import replacing
from tuner.text.lookup import tr

LONGEST = 100_000
"""Rows that are made at most."""
NONE = "none"
"""The option of who needs no tool."""
_SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def derivable(entry: Entry) -> bool:
    """Whether a set has something to decide: pairs, or talks with tools."""
    if not entry.local or entry.media or entry.pictures:
        return False
    return entry.kind == "pairs" or (
        entry.kind == "chat" and bool(entry.columns.get("tools")) and _has_tools(entry)
    )


def _has_tools(entry: Entry) -> bool:
    try:
        return any(_tool(row, 0) is not None for row in islice(_rows(entry), 20))
    except (ConfigError, OSError):
        return False


def derive(entry: Entry, dataset_dir: str | Path) -> Entry:
    """Write a set of questions beside the other uploads and put it into the catalog, as NAME_decisions.

    Raises ConfigError where nothing comes of it or the name is taken.
    """
    name = f"{entry.name}_decisions"
    must_be_free(name, dataset_dir)
    make = _better if entry.kind == "pairs" else _tool
    found = (made for place, row in enumerate(_rows(entry)) if (made := make(row, place)) is not None)
    target = unused(catalog_folder(dataset_dir) / UPLOADS / f"{name}.jsonl")
    with private.as_the_person():
        target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with replacing(target) as partial, partial.open("w", encoding="utf-8") as file:
        for record in islice(found, LONGEST):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
        if not count:
            said = tr(
                "No row of {name} asks for a decision; take a set of pairs, or of talks with tools.",
                name=entry.name,
            )
            raise ConfigError([Problem("dataset", said)])
    private.share(target)
    return save(name, target, {"formatting": "decisions"}, dataset_dir)


def _rows(entry: Entry) -> Iterator[Row]:
    for path in entry.files():
        for _, record in records(path):
            row = convert(record, entry)
            if not isinstance(row, Dropped):
                yield row


def _better(row: Row, place: int) -> dict[str, Any] | None:
    """Which of two answers is better; the better one comes first as often as second."""
    sides = [row["chosen"]["content"], row["rejected"]["content"]]
    if not all(side.strip() for side in sides):
        return None
    first = random.Random(place).random() < 0.5
    options = dict(zip(("first", "second"), sides if first else sides[::-1], strict=True))
    asked = {"type": CHOICE, "instructions": "Which answer is better?", "criteria": options}
    return {
        "state": _said(row["messages"]),
        "questions": {"better": asked},
        "gold": {"better": "first" if first else "second"},
    }


def _tool(row: Row, place: int) -> dict[str, Any] | None:
    """Which tool a talk calls first, if any."""
    described = {name: said for tool in row.get("tools", ()) for name, said in [_described(tool)] if name}
    turn = next((i for i, said in enumerate(row.get("messages", ())) if said["role"] == "assistant"), None)
    if not described or len(described) >= MOST or turn is None or NONE in described:
        return None
    calls = row["messages"][turn].get("tool_calls") or ()
    called = calls[0]["function"]["name"] if calls else NONE
    if called not in (*described, NONE):
        return None
    options = {**described, NONE: "Answer without a tool"}
    asked = {"type": CHOICE, "instructions": "Which tool is to be called next?", "criteria": options}
    return {"state": _said(row["messages"][:turn]), "questions": {"tool": asked}, "gold": {"tool": called}}


def _described(tool: Any) -> tuple[str, str | None]:
    """A tool's name and what it is for, however it is written down."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    inner = inner if isinstance(inner, Mapping) else {}
    return str(inner.get("name") or ""), str(inner["description"]) if inner.get("description") else None


def _said(messages: Sequence[Mapping[str, Any]]) -> str:
    """A talk as text; a lone question as it is."""
    turns = [said for said in messages if said["content"].strip()]
    if len(turns) == 1 and turns[0]["role"] == "user":
        return str(turns[0]["content"])
    return "\n\n".join(f"{_SPEAKERS.get(said['role'], said['role'])}: {said['content']}" for said in turns)
