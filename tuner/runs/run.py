"""A run: one folder under mlruns/runs, which is all that the two towers share while it lives.

config.yaml     the resolved config, never changed afterwards
plan.json       what it was to do, and what came true of it
status.json     state, phase, progress, reason; replaced whole at each write
metrics.jsonl   one line a logged step, written before anything is sent to MLflow
curves          what is drawn of a long metrics.jsonl, once the run has ended; made anew where it is missing
log.txt         everything the worker printed
lock            held by the worker as long as it lives
requests/       what others ask of the worker: stop, cancel
checkpoints/    what a run can go on from
output/         the adapter and its files, where no output_dir is given
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from tuner import paths, redact
from tuner.config.config import load
from tuner.config.knobs import ConfigError
from tuner.config.reading import stored
from tuner.config.run_config import RunConfig
from tuner.config.writing import to_yaml
from tuner.runs import locks
from tuner.runs.files import insist, replace_text, replacing
from tuner.runs.status import ENDED, Status, of, to_plain

_ID = re.compile(r"\w[\w-]*")
# A worker's threads (training, mirror) change the same status.
_WRITING = threading.RLock()


@dataclass(frozen=True)
class Run:
    """A run's folder. Cheap to make; nothing is read until it is asked for."""

    id: str

    @property
    def folder(self) -> Path:
        """Raises ValueError for an id that leads out of the folder of runs."""
        root = paths.runs()
        if _ID.fullmatch(self.id) and not (root / self.id).is_symlink():
            return root / self.id  # what `inside` says too, for a tenth of its time
        return paths.inside(self.id, root)

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        return self.folder / "log.txt"

    @property
    def lock_path(self) -> Path:
        return self.folder / "lock"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def exists(self) -> bool:
        return (self.folder / "config.yaml").is_file()

    # --- what it is

    def create(self, config: RunConfig, name: str, tags: Mapping[str, str] | None = None) -> None:
        """Make the folder: config, status, and secrets apart and private. All of it or nothing.

        Raises OSError where it cannot be written, or if there is one already.
        """
        fresh = Run(f".{self.id}")
        insist(lambda: fresh.folder.mkdir(0o700, parents=True, exist_ok=False))
        try:
            replace_text(fresh.folder / "config.yaml", to_yaml(config.plain()))
            status = Status(created=time.time(), name=name, tags=dict(tags or {}))
            replace_text(fresh.folder / "status.json", json.dumps(to_plain(status)))
            fresh.keep_secrets(config.secrets())
            mark_open(self.id)  # before, for whoever dies after it
            fresh.folder.rename(self.folder)
            mark_open(self.id)  # and after: a walk may have met a mark without a folder
        except OSError:
            shutil.rmtree(fresh.folder, ignore_errors=True)
            raise

    def remove_remains(self) -> None:
        """Remove what a save brought back of a folder that was deleted, and the empty folders above: no run is there."""
        if self.exists:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for above in (paths.runs(), paths.mlruns()):
            with suppress(OSError):  # others' files are in it
                above.rmdir()

    def config(self) -> RunConfig:
        """The config this run was made with, secrets included while a worker may still need them. Raises ConfigError."""
        return load(stored(self.folder / "config.yaml") | self.secrets())

    @property
    def secrets_path(self) -> Path:
        return self.folder / "secrets.json"

    def secrets(self) -> dict[str, str]:
        """The secret knobs that are kept for the worker; none of them is printed in this process from here on."""
        with suppress(OSError, json.JSONDecodeError):
            kept: dict[str, str] = json.loads(self.secrets_path.read_text(encoding="utf-8"))
            redact.remember(kept.values())
            return kept
        return {}

    def keep_secrets(self, secrets: Mapping[str, str]) -> None:
        """Keep secret knobs for the worker, in a file that only this user can read; those of the same name are replaced."""
        if secrets:
            redact.remember(secrets.values())
            write_private(self.secrets_path, json.dumps({**self.secrets(), **secrets}))

    def forget_secrets(self) -> None:
        """Remove them; where they could not be removed they are emptied."""
        try:
            self.secrets_path.unlink(missing_ok=True)
        except OSError:
            with suppress(OSError):
                os.truncate(self.secrets_path, 0)

    def values(self) -> dict[str, Any]:
        """The config as plain values, unchecked: for pages that only show it."""
        path = self.folder / "config.yaml"
        with suppress(OSError, yaml.YAMLError, ConfigError):
            return dict(_read_once(path, path.stat().st_mtime_ns))
        return {}

    @property
    def name(self) -> str:
        return self.status().name or self.id

    # --- where it stands

    def status(self) -> Status:
        """The last status written; a fresh one where there is none or it cannot be read."""
        with suppress(OSError, json.JSONDecodeError):
            return of(json.loads((self.folder / "status.json").read_text(encoding="utf-8")))
        return Status()

    def write(self, status: Status) -> None:
        """Replace the status whole, so that a reader never sees half of one."""
        with self.writing():
            self._replace(status)

    def update(self, **changes: Any) -> Status:
        """Set some fields of the status and leave the others as they are on disk.

        A field whose new value depends on its old one is given a function of the status, so that nothing another writer
        did is lost. The state is the worker's to change while it holds the run's lock, and whoever's takes that lock otherwise.
        """
        with self.writing():
            before = self.status()
            status = replace(before, **{n: v(before) if callable(v) else v for n, v in changes.items()})
            self._replace(status)
        return status

    def _replace(self, status: Status) -> None:
        if status.state not in ENDED or status.tracker:
            mark_open(self.id)
        replace_text(self.folder / "status.json", json.dumps(to_plain(status)))

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """Read, change and write must not interleave: not with another thread, nor with a sync in another process.

        Whether that is certain: it is not where another process sleeps with the lock in its hands.
        """
        with _WRITING:
            lock = self._lock_status()
            try:
                yield lock is not None
            finally:
                if lock is not None:
                    os.close(lock)

    def _lock_status(self) -> int | None:
        """The lock of status.json; None once nothing was written for two seconds: a suspended process must not suspend the
        others, and where others only write all the time a turn will come."""
        while True:
            before = self._written()
            lock = locks.lock(self.folder / "status.lock", wait=2)
            if lock is not None or self._written() == before:
                return lock

    def _written(self) -> int:
        """Another number whenever status.json is another file; 0 while there is none."""
        with suppress(FileNotFoundError):
            stat = (self.folder / "status.json").stat()
            return hash((stat.st_ino, stat.st_mtime_ns))
        return 0

    def put(self, name: str, text: str) -> None:
        """Replace a file of the folder whole."""
        replace_text(self.folder / name, text)

    # --- what is asked of it

    def request(self, what: Literal["stop", "cancel"]) -> None:
        """Leave a word for the worker, seen at its next step. `stop` saves first, `cancel` does not."""
        folder = self.folder / "requests"
        folder.mkdir(exist_ok=True)
        (folder / what).touch()

    def requested(self, what: Literal["stop", "cancel"]) -> bool:
        return (self.folder / "requests" / what).exists()

    def forget_requests(self) -> None:
        for what in ("stop", "cancel"):
            (self.folder / "requests" / what).unlink(missing_ok=True)

    # --- what it measured

    def metrics(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Rows of metrics.jsonl from a byte offset, and the offset to go on from. A half-written last line waits."""
        rows: list[dict[str, Any]] = []
        with suppress(FileNotFoundError), self.metrics_path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                with suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows, offset

    def log_tail(self, size: int = 64_000) -> str:
        """The last `size` bytes of the log as text."""
        with suppress(FileNotFoundError), self.log_path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode("utf-8", errors="replace")
        return ""


class SilentRun(Run):
    """A run as its other processes have it: they read it, and only the first one writes."""

    def update(self, **changes: Any) -> Status:
        """The status as it would be."""
        before = self.status()
        return replace(before, **{n: v(before) if callable(v) else v for n, v in changes.items()})

    def write(self, status: Status) -> None:
        pass

    def put(self, name: str, text: str) -> None:
        pass


def open_marks() -> Path:
    """A folder with one empty file for each run that is open; see open_runs."""
    return paths.mlruns() / "open"


def mark_open(run_id: str) -> None:
    """Set the mark of a run that is about to be open. Raises OSError where it cannot be set."""
    mark = open_marks() / run_id
    if not mark.exists():
        mark.parent.mkdir(exist_ok=True)  # not its parents: a deleted studio stays deleted
        insist(mark.touch)


def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric out of metrics.jsonl rows; of a step logged twice (after a resume) the last."""
    points = {int(row["step"]): float(row[name]) for row in rows if isinstance(row.get(name), int | float)}
    steps = sorted(points)
    return steps, [points[s] for s in steps]


def fresh_name(values: Mapping[str, Any], taken: Collection[str] = ()) -> str:
    """A name that is none of the `taken`: stage, model and a number that goes up."""
    model = Path(str(values.get("model_name_or_path") or "model")).name
    stem = paths.slug(f"{values.get('stage') or 'run'}-{model}", 40)
    try:
        number = len(os.listdir(paths.runs())) + 1  # noqa: PTH208  ten thousand Path objects take their time
    except OSError:
        number = 1
    while (name := f"{stem}-{number:03d}") in taken:  # runs that were removed lower the count
        number += 1
    return name


def all_runs() -> list[Run]:
    """Every run with a folder here, newest first."""
    with suppress(FileNotFoundError):
        folders = [f for f in paths.runs().glob("[!.]*") if (f / "config.yaml").is_file()]
        return [Run(f.name) for f in sorted(folders, key=lambda f: f.stat().st_ctime, reverse=True)]
    return []


@lru_cache(maxsize=256)
def _read_once(path: Path, _written: int) -> dict[str, Any]:
    """A config as it was written then. Parsing one takes longer than all else that a live page asks of a run."""
    return stored(path)


def write_private(path: Path, text: str) -> None:
    """Replace a file that only this user can read."""
    with replacing(path) as fresh:  # who has the old one open reads nothing new
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, 0o600)
            file.write(text)
