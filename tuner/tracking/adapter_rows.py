"""Registered adapters as lists show them, and whether their files are what they were."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tuner.runs.checkpoints import sha256
from tuner.tracking.evaluations import Measured, of_tags
from tuner.tracking.reader import reader
from tuner.tracking.rows import Page

Word = Literal["ok", "missing", "changed"]
ALIAS = "alias/"
"""What the tags begin with that say when a version got an alias (+seconds) and when it lost it (-seconds)."""


class Turn(NamedTuple):
    """A version got an alias, or lost it; `at` is in seconds since the epoch."""

    at: float
    alias: str
    got: bool


@dataclass(frozen=True)
class AdapterRow:
    """One registered version. `created` in seconds since the epoch, `size` in bytes, `folder` None where it is remote.

    `run_id` is empty where no run is known, `digests` are those of the data sets it was trained on.
    """

    name: str
    version: int
    aliases: tuple[str, ...] = ()
    base: str = ""
    method: str = ""
    stage: str = ""
    rank: str = ""
    targets: tuple[str, ...] = ()
    size: int = 0
    sha256: str = ""
    datasets: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    run_id: str = ""
    created: float = 0.0
    note: str = ""
    folder: Path | None = None
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    evaluations: tuple[Measured, ...] = ()
    turns: tuple[Turn, ...] = ()

    @property
    def state(self) -> Word:
        """A quick look: every file is there and as long as it was. `check` reads them."""
        return check(self, read=False)


def list_adapters(name: str = "") -> list[AdapterRow]:
    """Every registered version, or those of one name, newest first. Raises TrackerError while the tracker is away."""
    return _sorted(reader().adapters(name=name))


def find_adapters(text: str = "", page: int = 1, size: int = 20) -> Page[AdapterRow]:
    """One page of the versions that have every word of a text, by base, adapter and version, in each the one with the
    newest version first; `page` counts from 1.

    A word may stand in name, base, stage, data sets or aliases. Raises TrackerError while the tracker is away.
    """
    asked = reader()
    ids = asked.find_adapters(text.lower().split())
    number = max(1, min(page, -(-len(ids) // size) or 1))
    here = ids[(number - 1) * size : number * size]
    rows = {(row.name, row.version): row for row in map(_row, asked.adapters(here))}
    return Page(tuple(rows[id] for id in here if id in rows), len(ids), number, size)


def adapters_of(runs: Collection[str]) -> list[AdapterRow]:
    """The versions that these runs left, newest first. Raises TrackerError while the tracker is away."""
    asked = reader()
    return [row for row in _sorted(asked.adapters(asked.adapters_of(runs))) if row.run_id in runs]


def get_adapter(name: str, version: int) -> AdapterRow | None:
    """One version; None where there is none. Raises TrackerError while the tracker is away."""
    return next(map(_row, reader().adapters([(name, version)])), None)


def _sorted(found: Iterable[Mapping[str, Any]]) -> list[AdapterRow]:
    return sorted(map(_row, found), key=lambda row: (-row.created, row.name, -row.version))


def _row(found: Mapping[str, Any]) -> AdapterRow:
    tags: Mapping[str, str] = found["tags"]
    files: dict[str, tuple[int, str]] = {}
    with suppress(KeyError, ValueError):
        files = {name: (int(size), digest) for name, (size, digest) in json.loads(tags["files"]).items()}
    return AdapterRow(
        name=found["name"],
        version=int(found["version"]),
        aliases=tuple(sorted(found["aliases"])),
        base=tags.get("base", ""),
        method=tags.get("method", ""),
        stage=tags.get("stage", ""),
        rank=tags.get("rank", ""),
        targets=_words(tags.get("targets", "")),
        size=int(tags.get("size") or 0),
        sha256=tags.get("sha256", ""),
        datasets=_words(tags.get("datasets", "")),
        digests=_words(tags.get("dataset_digests", "")),
        run_id=tags.get("run_id") or found["run_id"] or "",
        created=(found["created"] or 0) / 1000,
        note=found["description"] or "",
        folder=local_folder(found["location"] or ""),
        files=files,
        evaluations=of_tags(tags),
        turns=_turns(tags),
    )


def _turns(tags: Mapping[str, str]) -> tuple[Turn, ...]:
    """When a version got and lost its aliases, the newest first."""
    found = []
    for key, told in tags.items():
        for entry in filter(None, told.split(",")) if key.startswith(ALIAS) else ():
            with suppress(ValueError):
                found.append(Turn(abs(float(entry)), key.removeprefix(ALIAS), entry.startswith("+")))
    return tuple(sorted(found, reverse=True))


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def local_folder(location: str) -> Path | None:
    """Where a version's adapter files lie on this machine."""
    place = location.removeprefix("file://")
    return Path(place) / "artifacts" / "adapter" if place.startswith("/") else None


def check(adapter: AdapterRow, read: bool = True) -> Word:
    """Whether the files are there and match their sha256; `read=False` looks at their sizes only.

    A remote adapter is ok: its server keeps the files.
    """
    if adapter.folder is None:
        return "ok"
    if not adapter.folder.is_dir():
        return "missing"
    for name, (size, digest) in adapter.files.items():
        path = adapter.folder / name
        if not path.is_file():
            return "missing"
        if path.stat().st_size != size or (read and sha256(path) != digest):
            return "changed"
    return "ok"
