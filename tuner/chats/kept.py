"""Talks and battles on disk: one small JSON file each in the studio's folder, replaced whole, changed under a lock."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from tuner import paths
from tuner.chats import talk as talks
from tuner.chats.talk import Talk
from tuner.runs import locks
from tuner.runs.files import replace_text
from tuner.text.lookup import tr

T = TypeVar("T")
Room = Literal["chats", "battles"]
_ID = re.compile(r"[0-9a-f]{16}")
WAIT = 10.0
"""Seconds that a change waits for another one of the same file."""


def folder(room: Room) -> Path:
    """Where the files of a kind lie; private, as all of mlruns is."""
    return paths.mlruns() / room


def is_id(text: str) -> bool:
    """Whether this may be the name of a file: what a URL brings is anything."""
    return bool(_ID.fullmatch(text))


def read_json(room: Room, id: str) -> dict[str, Any] | None:
    """A file's object; None where there is none or it cannot be read."""
    if not is_id(id):
        return None
    with suppress(OSError, ValueError):
        given = json.loads((folder(room) / f"{id}.json").read_text(encoding="utf-8"))
        return given if isinstance(given, dict) else None
    return None


def change(room: Room, id: str, new: Callable[[dict[str, Any] | None], Mapping[str, Any]]) -> None:
    """Replace a file by what `new` makes of it, None where there is none yet; no other change comes between.

    Raises LockHeldError, OSError, or ValueError for an id that is none.
    """
    if not is_id(id):
        raise ValueError(tr("{id!r} is not the id of a chat; reload the page.", id=id))
    folder(room).mkdir(0o700, parents=True, exist_ok=True)
    with locks.locking(folder(room) / f"{id}.lock", wait=WAIT):
        text = json.dumps(new(read_json(room, id)), ensure_ascii=False)
        replace_text(folder(room) / f"{id}.json", text)


def load(id: str) -> Talk | None:
    """A talk; None where there is none, or none that can be read."""
    given = read_json("chats", id)
    with suppress(ValueError):
        return talks.of_json(given) if given is not None else None
    return None


def change_talk(talk: Talk, new: Callable[[Talk], Talk]) -> Talk:
    """Replace a talk on disk by what `new` makes of it; `talk` itself stands for one that is not there yet."""
    made: list[Talk] = []

    def changed(given: dict[str, Any] | None) -> Mapping[str, Any]:
        made.append(new(talk if given is None else talks.of_json(given)))
        return talks.to_json(made[0])

    change("chats", talk.id, changed)
    return made[0]


def newest(by: str, most: int = 20) -> list[Talk]:
    """A person's talks, the one changed last first; empty ones are left out."""
    files = sorted(folder("chats").glob("*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    found: list[Talk] = []
    for file in files:
        one = load(file.stem)
        if one is not None and one.by == by and one.turns:
            found.append(one)
        if len(found) == most:
            break
    return found


def forget(id: str) -> None:
    """Remove a talk; one that is not there is no error. An answer on its way is not kept any more."""
    if is_id(id):
        (folder("chats") / f"{id}.json").unlink(missing_ok=True)
        (folder("chats") / f"{id}.lock").unlink(missing_ok=True)
