"""A run: one folder under mlruns/runs, which is all that the two towers share while it lives.

config.yaml     the resolved config, never changed afterwards
plan.json       what it was to do, and what came true of it
status.json     state, phase, progress, reason; replaced whole at each write
metrics.jsonl   one line a logged step, written before anything is sent to MLflow
log.txt         everything the worker printed
lock            held by the worker as long as it lives (flock)
requests/       what others ask of the worker: stop, cancel
checkpoints/    what a run can go on from
output/         the adapter and its files, where no output_dir is given
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from tuner import hardware, paths, redact
from tuner.config.config import load, read, to_yaml
from tuner.config.run_config import RunConfig
from tuner.redact import redacted
from tuner.text import message
from tuner.text.message import Message, render
from tuner.tracking.disk import insist, replace_text

State = Literal["queued", "preparing", "running", "stopping", "finished", "failed", "stopped", "interrupted"]
STATES: tuple[State, ...] = get_args(State)
LIVE: frozenset[State] = frozenset({"preparing", "running", "stopping"})
ENDED: frozenset[State] = frozenset({"finished", "failed", "stopped", "interrupted"})
_ID = re.compile(r"\w[\w-]*")
# A worker's threads (training, mirror) change the same status.
_WRITING = threading.RLock()


@dataclass(frozen=True)
class Status:
    """Where a run stands. Times in seconds since the epoch; `seconds` maps a phase to what it took.

    `name` and `tags` are what it was made with, `gpus` and `use_cpu` what it asked for, of which it takes `devices`. `cause` is why it ended, `said` are
    notes for whoever reads its page, `tracker` what keeps it from MLflow. `doing` tells how far a phase is, `part` the same
    from 0 to 1. `resume_from` is the checkpoint that its next worker is to go on from, `began_from` the one that the last
    worker did, `continues` the run that this one goes on from. Memory in bytes.

    `trained_seconds` are those since `first_step`, where this process began to train, by a clock that nobody sets; by
    the same clock `began` is when the worker started, 0 while there is none, and `worked` what earlier workers took.
    """

    state: State = "queued"
    phase: str = ""
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    cause: Message = field(default_factory=Message)
    remedies: list[dict[str, Any]] = field(default_factory=list)
    created: float = 0.0
    started: float = 0.0
    began: float = 0.0
    worked: float = 0.0
    first_step: int = 0
    trained_seconds: float = 0.0
    updated: float = 0.0
    ended: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    pid: int = 0
    boot_id: str = ""
    exit_code: int | None = None
    tokens: int = 0
    tokens_per_second: float = 0.0
    tracker: Message = field(default_factory=Message)
    said: list[Message] = field(default_factory=list)
    name: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    gpus: list[int] = field(default_factory=list)
    use_cpu: bool = False
    devices: int = 1
    doing: Message = field(default_factory=Message)
    part: float = 0.0
    checkpoint: str = ""
    checkpoint_step: int | None = None
    checkpoint_time: float = 0.0
    resume_from: str = ""
    began_from: str = ""
    continues: str = ""
    resumes: int = 0
    auto_resumed: str = ""
    artifacts: list[str] = field(default_factory=list)
    adapter: str = ""
    adapter_version: int = 0
    memory_peak: int = 0

    @property
    def reason(self) -> str:
        """Why it ended, as a sentence; empty where it finished or has not ended."""
        return render(self.cause)

    @property
    def reason_code(self) -> str:
        """The same for programs: the code's first part."""
        return self.cause.code.partition(".")[0]

    @property
    def notes(self) -> list[str]:
        """What the run's page is to tell, as sentences."""
        return [render(one) for one in self.said]

    @property
    def tracking(self) -> str:
        """What keeps MLflow from having all of it, as a sentence; empty where nothing does."""
        return render(self.tracker)

    @property
    def eta(self) -> float | None:
        """Seconds left at the pace since this process began training; None before there is a pace."""
        done = self.step - self.first_step
        if self.state not in LIVE or done <= 0 or not self.trained_seconds:
            return None
        return max(0.0, (self.total_steps - self.step) * self.trained_seconds / done)

    def ended_now(self) -> float:
        """The time of an end that is now: never before the beginning, whatever was done to the clock meanwhile."""
        return max(time.time(), self.started, self.created)

    def worked_now(self) -> float:
        """Seconds that workers have spent on it until now, without the time it waited or the machine slept."""
        if not self.began:
            return self.worked
        if self.boot_id == hardware.boot_id():
            return self.worked + max(0.0, time.monotonic() - self.began)
        # That clock ended with the machine's reboot.
        return self.worked + max(0.0, self.updated - self.started)

    @property
    def elapsed(self) -> float | None:
        """Seconds of work on it so far; None before there was any."""
        if self.worked or self.began:
            return self.worked_now()
        return max(0.0, self.ended - self.started) if self.started and self.ended else None

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0


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
        """Write the folder: config first, secrets apart and private, status last. All of it or nothing.

        Raises FileExistsError if there is one already, OSError where it cannot be written.
        """
        insist(lambda: self.folder.mkdir(0o700, parents=True, exist_ok=False))
        try:
            replace_text(self.folder / "config.yaml", to_yaml(config.plain()))
            self.keep_secrets(config.secrets())
            self.write(Status(created=time.time(), name=name, tags=dict(tags or {})))
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def bury(self) -> None:
        """Remove what a save brought back of a folder that was deleted, and the empty folders above: no run is there."""
        if self.exists:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for above in (paths.runs(), paths.mlruns()):
            with suppress(OSError):  # others' files are in it
                above.rmdir()

    def config(self) -> RunConfig:
        """The config this run was made with, secrets included while a worker may still need them. Raises ConfigError."""
        return load(read(self.folder / "config.yaml") | self.secrets())

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
            _write_private(self.secrets_path, json.dumps({**self.secrets(), **secrets}))

    def forget_secrets(self) -> None:
        """Remove them; where they could not be removed they are emptied."""
        try:
            self.secrets_path.unlink(missing_ok=True)
        except OSError:
            with suppress(OSError):
                os.truncate(self.secrets_path, 0)

    def values(self) -> dict[str, Any]:
        """The config as plain values, unchecked: for pages that only show it."""
        with suppress(OSError, yaml.YAMLError):
            return read(self.folder / "config.yaml")
        return {}

    @property
    def name(self) -> str:
        return self.status().name or self.id

    # --- where it stands

    def status(self) -> Status:
        """The last status written; a fresh one where there is none or it cannot be read."""
        with suppress(OSError, json.JSONDecodeError):
            return _read_status(json.loads((self.folder / "status.json").read_text(encoding="utf-8")))
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
        replace_text(self.folder / "status.json", json.dumps(_plain_status(status)))

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """Read, change and write must not interleave: not with another thread, nor with a sync in another process.

        Whether that is certain: it is not where another process sleeps with the lock in its hands.
        """
        with _WRITING, (self.folder / "status.lock").open("w") as file:
            end, held = time.monotonic() + 2, False
            while not held and time.monotonic() < end:  # a suspended process must not suspend the others
                with suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = True
                    break
                time.sleep(0.002)
            yield held

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


_MESSAGES = ("cause", "tracker", "doing")
"""Fields of a status that hold a message; `said` holds several."""


def _plain_status(status: Status) -> dict[str, Any]:
    plain = asdict(replace(status, updated=time.time()))
    # What people read may repeat an error's words; paths and names are used again and stay as they are.
    plain |= {name: redacted(message.to_plain(getattr(status, name))) for name in _MESSAGES}
    return plain | {"said": [redacted(message.to_plain(one)) for one in status.said]}


def _read_status(raw: dict[str, Any]) -> Status:
    """A status as this version writes it, or as one did that had sentences and a bag of further facts in it."""
    known = {f.name for f in fields(Status)}
    old = raw.pop("extra", {})
    if old:
        raw |= {"cause": _old_cause(raw), "tracker": raw.get("tracking"), "said": raw.get("notes") or []}
        raw = old | {"began_from": old.get("resumed_from", "")} | raw
        raw["doing"] = None  # of the phase that it was in
    raw |= {name: message.of(raw.get(name)) for name in _MESSAGES}
    raw["said"] = [message.of(one) for one in raw.get("said") or []]
    return Status(**{k: v for k, v in raw.items() if k in known})


def _old_cause(raw: Mapping[str, Any]) -> Any:
    """The reason of an older studio: its sentence, under its code."""
    code, text = str(raw.get("reason_code") or ""), str(raw.get("reason") or "")
    return {"code": f"{code}.told", "values": {"text": text}} if code else text


def open_marks() -> Path:
    """A folder with one empty file for each run that is open; see open_runs."""
    return paths.mlruns() / "open"


def mark_open(run_id: str) -> None:
    """Set the mark of a run that is about to be open. Raises OSError where it cannot be set."""
    mark = open_marks() / run_id
    if not mark.exists():
        mark.parent.mkdir(exist_ok=True)  # not its parents: a deleted studio stays deleted
        insist(mark.touch)


def series(rows: list[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
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
        folders = [f for f in paths.runs().iterdir() if (f / "config.yaml").is_file()]
        return [Run(f.name) for f in sorted(folders, key=lambda f: f.stat().st_ctime, reverse=True)]
    return []


def _write_private(path: Path, text: str) -> None:
    fresh = path.with_name(
        f".{path.name}.{os.getpid()}"
    )  # a new file: who has the old one open reads nothing new
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        os.fchmod(handle, 0o600)
        file.write(text)
    fresh.replace(path)
