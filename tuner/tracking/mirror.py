"""Brings MLflow up to what a run's folder says: the folder is written first and is the truth, MLflow follows.

Everything here may be repeated: what was sent is noted in tracking.json after it arrived, and a row that was sent
twice because the note got lost is one row to MLflow, for its key is (name, time, step, value). So no point is lost
and none is doubled, whatever is killed when.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner import private
from tuner.config.knobs import ConfigError
from tuner.config.spelling import word
from tuner.config.writing import params
from tuner.redact import redacted
from tuner.runs.facts import facts
from tuner.runs.inputs import InputRow, recorded
from tuner.runs.metrics import metric_name
from tuner.runs.points import spark
from tuner.runs.run import Run, all_runs, mark_open
from tuner.runs.status import ENDED, State, Status
from tuner.text.lookup import tr
from tuner.text.message import Message, message, plain, to_tag
from tuner.tracking import new_row, open_runs, store
from tuner.tracking.evaluations import tell_versions
from tuner.tracking.registration import register_pending
from tuner.tracking.store import TrackerError, explained, open_store
from tuner.tracking.sync_state import SyncState, held, is_mirrored

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

MOST_POINTS = 1000  # MLflow's limits for one batch
MOST_PAIRS = 100
LONGEST_PARAM = 6000
LONGEST_TAG = 8000
MLFLOW_STATUS: dict[State, str] = {
    "queued": "SCHEDULED",
    "preparing": "RUNNING",
    "running": "RUNNING",
    "stopping": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
}


def sync(run: Run, wait: float = 0.0) -> int | None:
    """Bring MLflow up to a run's folder; the number of points sent. Raises TrackerError.

    None where another process is sending for this run (its worker, mostly), after waiting `wait` seconds for it.
    """
    with held(run, wait) as mine:
        if not mine:
            return None
        sent = bring(run, SyncState.of(run))
        register_pending(run)
    if run.status().tracker:
        run.update(tracker=Message())
    open_runs.close(run)
    return sent


def start_anew() -> None:
    """Make a new database where the one that was used is gone for good; a sync then records every run here again.

    Raises ValueError where the database is there or is a server's.
    """
    file = store.database()
    if file is None or file.exists():
        raise ValueError(
            tr("The tracker at {file} exists; nothing was changed.", file=file or store.shown_uri())
        )
    for run in all_runs():
        mark_open(run.id)
        (run.folder / "tracking.json").unlink(missing_ok=True)
    for rest in ("-wal", "-shm"):  # of the old one: they would be replayed into the new
        file.with_name(file.name + rest).unlink(missing_ok=True)
    store.new_database(file)


def bring(run: Run, ledger: SyncState) -> int:
    """One pass over all that MLflow may lack, in the order in which it makes sense there. Raises TrackerError."""
    client = open_store(create=not ledger.mlflow_id)
    status = run.status()
    with explained():
        if not ledger.described:
            _describe(client, run, ledger)
        _send_facts(client, run, ledger)
        _send_inputs(client, run, ledger)
        if status.state not in ENDED:
            _send_state(client, run, ledger, status)
        sent = _send_metrics(client, run, ledger)
        if status.state in ENDED:
            _send_artifacts(client, run, ledger)
            if ledger.state != state_mark(status):
                tell_versions(client, run)
            _send_state(client, run, ledger, status)
    return sent


# --- the parts of a run


def _describe(client: MlflowClient, run: Run, ledger: SyncState) -> None:
    """The run itself, its params and its config file."""
    if not ledger.mlflow_id:
        ledger.mlflow_id = new_row.create(client, run)
        ledger.write(run)
    from mlflow.entities import Param

    pairs = [Param(name, shortened(value, LONGEST_PARAM)) for name, value in _params(run).items()]
    for start in range(0, len(pairs), MOST_PAIRS):
        client.log_batch(ledger.mlflow_id, params=pairs[start : start + MOST_PAIRS])
    _log_artifact(client, ledger.mlflow_id, run.folder / "config.yaml")
    ledger.described = True
    ledger.write(run)


def _params(run: Run) -> dict[str, str]:
    try:
        return params(run.config())
    except ConfigError:
        # Made by a version that knew other knobs: recorded as it is written.
        return {name: word(value) for name, value in run.values().items()}


def _send_facts(client: MlflowClient, run: Run, ledger: SyncState) -> None:
    """Versions, commit and machine, as the worker found them."""
    file = run.folder / "facts.json"
    if ledger.facts or not file.exists():
        return
    _tag(client, ledger.mlflow_id, json.loads(file.read_text(encoding="utf-8")))
    ledger.facts = True
    ledger.write(run)


def _send_inputs(client: MlflowClient, run: Run, ledger: SyncState) -> None:
    rows = recorded(run)
    if len(rows) <= ledger.inputs:
        return
    client.log_inputs(ledger.mlflow_id, datasets=[to_mlflow(row) for row in rows[ledger.inputs :]])
    ledger.inputs = len(rows)
    ledger.write(run)


def _send_metrics(client: MlflowClient, run: Run, ledger: SyncState) -> int:
    from mlflow.entities import Metric

    sent = 0
    for rows, offset in batches(run, ledger.offset):
        points, steps = fresh_points(rows, ledger.steps)
        for start in range(0, len(points), MOST_POINTS):
            client.log_batch(
                ledger.mlflow_id, metrics=[Metric(*point) for point in points[start : start + MOST_POINTS]]
            )
        ledger.offset, ledger.steps = offset, steps
        ledger.write(run)
        sent += len(points)
    return sent


def _send_state(client: MlflowClient, run: Run, ledger: SyncState, status: Status) -> None:
    if ledger.state == state_mark(status):
        return
    tags: dict[str, str] = {"state": status.state}
    if status.cause or ledger.state:
        tags |= {"reason": to_tag(status.cause), "reason_code": status.reason_code}
    if status.state in ENDED:
        tags |= _outcome_tags(run, status)
        _tag(client, ledger.mlflow_id, tags)
        end = int((status.ended or time.time()) * 1000)
        client.set_terminated(ledger.mlflow_id, MLFLOW_STATUS[status.state], end_time=end)
    else:
        _tag(client, ledger.mlflow_id, tags)
        client.update_run(ledger.mlflow_id, status=MLFLOW_STATUS[status.state])
    ledger.state = state_mark(status)
    ledger.write(run)


def state_mark(status: Status) -> str:
    """A state as it is noted once MLflow knows of it."""
    # A run that fails, is resumed and fails again has ended twice.
    return f"{status.state}@{status.ended:.3f}" if status.state in ENDED else status.state


def _outcome_tags(run: Run, status: Status) -> dict[str, str]:
    tags = {f"seconds/{phase}": f"{seconds:.1f}" for phase, seconds in status.seconds.items()}
    if status.started:
        tags["seconds/total"] = f"{status.elapsed or 0.0:.1f}"
        tags["tuner.started"] = f"{status.started:.3f}"
    if status.tokens:
        tags["tokens"] = str(status.tokens)
    tags["tuner.spark"] = json.dumps(spark(run))
    return tags


def _send_artifacts(client: MlflowClient, run: Run, ledger: SyncState) -> None:
    for path in map(Path, run.status().artifacts):
        mark = f"{path}@{path.stat().st_mtime_ns}" if path.exists() else ""
        if mark and mark not in ledger.artifacts:
            _log_artifact(client, ledger.mlflow_id, path)
            ledger.artifacts.append(mark)
            ledger.write(run)


def _log_artifact(client: MlflowClient, run_id: str, path: Path) -> None:
    client.log_artifact(run_id, str(path))
    if store.database():  # MLflow copies the file's permissions too
        private.close(store.artifacts() / run_id)


def _tag(client: MlflowClient, run_id: str, tags: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    pairs = [RunTag(name, shortened(str(value), LONGEST_TAG)) for name, value in tags.items()]
    for start in range(0, len(pairs), MOST_PAIRS):
        client.log_batch(run_id, tags=pairs[start : start + MOST_PAIRS])


def shortened(text: str, longest: int) -> str:
    """Text that fits MLflow and the databases behind it, with a word on what was left out."""
    text = text.replace("\0", "\ufffd")  # PostgreSQL has no text with a NUL in it
    if len(text) <= longest:
        return text
    mark = f" ... [{len(text)} characters, see config.yaml]"
    return text[: longest - len(mark)] + mark


def to_mlflow(row: InputRow) -> DatasetInput:
    """MLflow's entity, with the source its own loader understands: a local path or a hub id."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind, source = _source_of(row.source)
    return DatasetInput(
        Dataset(
            name=row.name,
            digest=row.digest,
            source_type=kind,
            source=json.dumps(source),
            schema=None,
            profile=json.dumps({"num_rows": row.rows}),
        ),
        tags=[InputTag("mlflow.data.context", row.context)],
    )


def _source_of(source: str) -> tuple[str, dict[str, Any]]:
    if Path(source).exists():
        return "local", {"uri": str(Path(source).absolute())}
    if "://" in source:
        return "http", {"url": source}
    return "hugging_face", {
        "path": source,
        "config_name": None,
        "data_dir": None,
        "data_files": None,
        "split": None,
    }


# --- points


Point = tuple[str, float, int, int]


def batches(run: Run, offset: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Rows from a byte offset on, some hundred points at a time, each with the offset behind it."""
    rows: list[dict[str, Any]] = []
    points = 0
    with suppress(FileNotFoundError), run.metrics_path.open("rb") as file:
        # "Written before it is sent" shall hold through a power cut too.
        with suppress(OSError):
            os.fsync(file.fileno())
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            with suppress(ValueError):
                rows.append(json.loads(line))
                points += len(rows[-1]) - 2
            if points >= MOST_POINTS * 0.9:
                yield rows, offset
                rows, points = [], 0
    if rows:
        yield rows, offset


def fresh_points(rows: list[dict[str, Any]], steps: dict[str, int]) -> tuple[list[Point], dict[str, int]]:
    """The points (name, value, milliseconds, step) of rows whose step MLflow does not have, and the steps it has then.

    A run that went on from a checkpoint logs some steps again; MLflow cannot forget a point, so the first one stays.
    """
    steps = dict(steps)
    points: list[Point] = []
    for row in rows:
        step, when = int(row["step"]), int(float(row.get("time", 0)) * 1000)
        for name, value in row.items():
            if name in ("step", "time") or not isinstance(value, int | float) or isinstance(value, bool):
                continue
            name = metric_name(name)
            if step > steps.get(name, -1):
                points.append((name, float(value), when, step))
                steps[name] = step
    return points, steps


# --- the worker's thread


class Mirror:
    """A thread that keeps MLflow up with a run while it lives. It never raises into training and never blocks it.

    While MLflow is away, `status.tracker` says so; all that waits goes out when it is back.
    """

    def __init__(self, run: Run, every: float = 2.0, longest_wait: float = 15.0):
        self._run, self._every, self._longest = run, every, longest_wait
        self._end = threading.Event()
        self.tried = threading.Event()
        """Set once MLflow has the run, or could not be told of it at the first attempt."""
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 30.0) -> bool:
        """Send what is left, for at most `timeout` seconds; whether MLflow has every point."""
        self._end.set()
        self._thread.join(timeout)
        return not self._thread.is_alive() and is_mirrored(self._run)

    def _work(self) -> None:
        with suppress(OSError):
            self._write_facts()
        # Whoever sends for this run now (a sync that was begun before the resume) is soon done.
        with held(self._run, wait=600.0) as mine:
            if mine:
                self._follow(SyncState.of(self._run))

    def _write_facts(self) -> None:
        (self._run.folder / "facts.json").write_text(json.dumps(redacted(facts())), encoding="utf-8")

    def _follow(self, ledger: SyncState) -> None:
        wait = self._every
        while True:
            last = self._end.is_set()
            said = self._pass(ledger)
            self.tried.set()
            wait = min(wait * 2, self._longest) if said else self._every
            if last:
                return
            self._end.wait(wait)

    def _pass(self, ledger: SyncState) -> Message:
        """One attempt; what went wrong."""
        said = Message()
        try:
            bring(self._run, ledger)
        except TrackerError as error:
            said = plain(str(error))
        except Exception as error:  # noqa: BLE001  whatever it is, training goes on and the page says so
            said = message("tracker.failed", kind=type(error).__name__, detail=str(error))
        with suppress(OSError):
            if self._run.status().tracker != said:
                self._run.update(tracker=said)
        return said
