"""The data sets a run learned from, as MLflow's inputs: where each came from, its digest, what it was used for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Protocol

from tuner import paths
from tuner.runs.run import Run


class DataInput(Protocol):
    """What the data room says of a set: `source` is a path or a hub id, `digest` that of its content."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def rows(self) -> int | None: ...


@dataclass(frozen=True)
class InputRow:
    """One input of a run. `context` is training or evaluation."""

    name: str
    source: str
    digest: str
    context: str = "training"
    rows: int | None = None


def record_inputs(run: Run, inputs: Iterable[DataInput], context: str = "training") -> None:
    """Note a run's data in its folder; the mirror tells MLflow. Noting one twice changes nothing."""
    rows = recorded(run)
    for one in inputs:
        row = InputRow(one.name[:500], str(one.source), one.digest[:36], context, one.rows)
        if row not in rows:
            rows.append(row)
    run.put("inputs.json", json.dumps([asdict(r) for r in rows]))


def used(names: Iterable[str], files: Iterable[str]) -> dict[str, list[str]]:
    """The runs here that read a data set, by the hash of what they read: by its name and that of one of its files, for a
    studio may have been moved."""
    wanted, places = set(names), set(files)
    found: dict[str, list[str]] = {}
    for folder in sorted(paths.runs().glob("*/inputs.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        for row in recorded(Run(folder.parent.name)):
            if row.name in wanted and (PurePath(row.source).name in places or not places):
                runs = found.setdefault(row.digest, [])
                if folder.parent.name not in runs:
                    runs.append(folder.parent.name)
    return found


def recorded(run: Run) -> list[InputRow]:
    """The inputs noted so far."""
    with suppress(OSError, ValueError, TypeError):
        return [InputRow(**r) for r in json.loads((run.folder / "inputs.json").read_text(encoding="utf-8"))]
    return []
