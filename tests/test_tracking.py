"""Tracking, on real MLflow over SQLite: what a run leaves behind is complete, once, and read back the same."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from servers import free_port, mlflow_server, postgres

from tuner import hardware
from tuner.config.config import make
from tuner.runs import checkpoints, metrics, points, weights
from tuner.runs.run import Run
from tuner.text.message import Message, of_tag, plain
from tuner.tracking import adapters, mirror, new_row, outcome, runs, store, sync_state, table
from tuner.tracking.client_reader import ClientReader
from tuner.tracking.client_reader import _seen as client_cache
from tuner.tracking.sqlite_reader import SqliteReader
from tuner.tracking.store import TrackerError
from tuner.ui import history

CONFIG = {"stage": "dpo", "model_name_or_path": "models/tiny", "dataset": "hh,chat", "learning_rate": 3e-4}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A studio of its own."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client_cache.clear()
    return tmp_path


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture
def studio(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One studio for the tests that only add to it."""
    monkeypatch.setenv("TUNER_HOME", str(shared_home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client_cache.clear()
    return shared_home


def new_run(name: str = "a run", **values: Any) -> Run:
    """A run that MLflow has, as one has that trains."""
    run = runs.create_run(make({**CONFIG, **values}), name)
    runs.sync(run)
    return run


def points_in_mlflow(run: Run, metric: str = "loss") -> list[tuple[int, float]]:
    history = store.open_store().get_metric_history(sync_state.mlflow_id(run.id), metric)
    return sorted((p.step, p.value) for p in history)


def wait_for(what: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.05)
    return False


# --- the whole way


def test_a_run_from_queue_to_outcome(studio: Path) -> None:
    run = runs.create_run(make(CONFIG), "whole way", tags={"team": "blue"})
    assert not sync_state.SyncState.of(run).mlflow_id
    waits = runs.get_row(run.id)
    assert (waits.state, waits.name, waits.stage, waits.tags) == (
        "queued",
        "whole way",
        "dpo",
        {"team": "blue"},
    )
    assert runs.find_run("whole way") == run.id and run.id in {r.id for r in runs.list_runs().items}
    runs.set_note(run.id, "watch the margin")  # which brings it there
    client = store.open_store()
    assert client.get_run(run.id).info.status == "SCHEDULED"
    row = runs.get_row(run.id)
    assert row == replace(
        waits, note="watch the margin", facts=row.facts, params=row.params, created=row.created
    )

    run.update(state="running", started=time.time())
    source = studio / "hh.json"
    source.write_text("[]")
    outcome.record_inputs(run, [SimpleNamespace(name="hh", source=str(source), digest="abc123", rows=7)])
    log = metrics.MetricsLog(run)
    mirroring = mirror.Mirror(run, every=0.1)
    for step in range(1, 41):
        log.log(step, {"loss": 1 / step, "rewards/margins": step * 0.1})
    assert wait_for(lambda: client.get_run(run.id).info.status == "RUNNING")
    log.close()
    assert mirroring.close()
    (run.folder / "output").mkdir()
    (run.folder / "output" / "all_results.json").write_text("{}")
    assert outcome.finish(run, "finished", seconds={"load": 1.5}, tokens=1234)

    recorded = client.get_run(run.id)
    assert recorded.info.status == "FINISHED" and recorded.info.run_name == "whole way"
    assert recorded.data.params["learning_rate"] == "0.0003" and recorded.data.params["dataset"] == "hh,chat"
    assert set(recorded.data.params) == set(make(CONFIG).plain())
    assert recorded.data.tags["seconds/load"] == "1.5" and recorded.data.tags["tokens"] == "1234"
    assert recorded.data.tags["version/mlflow"] and recorded.data.tags["hardware"]
    assert points_in_mlflow(run) == [(s, 1 / s) for s in range(1, 41)]
    names = {a.path for a in client.list_artifacts(run.id)}
    assert {"config.yaml", "all_results.json"} <= names

    import mlflow

    given = recorded.inputs.dataset_inputs[0]
    assert (given.dataset.name, given.dataset.digest) == ("hh", "abc123")
    assert {t.key: t.value for t in given.tags} == {"mlflow.data.context": "training"}
    assert mlflow.data.get_source(given.dataset).load() == str(source)

    row = runs.get_row(run.id)
    assert (row.state, row.stage, row.datasets, row.tags) == (
        "finished",
        "dpo",
        ("hh", "chat"),
        {"team": "blue"},
    )
    assert row.metrics["loss"] == 1 / 40 and len(row.spark) > 10 and row.duration is not None


@pytest.mark.parametrize(
    ("state", "status"), [("failed", "FAILED"), ("stopped", "KILLED"), ("interrupted", "KILLED")]
)
def test_every_end_is_an_end_in_mlflow(studio: Path, state: Any, status: str) -> None:
    run = new_run()
    run.update(state="running", started=time.time())
    assert outcome.finish(run, state, plain("Out of memory at step 3."))
    recorded = store.open_store().get_run(run.id)
    assert recorded.info.status == status and recorded.info.end_time
    assert str(of_tag(recorded.data.tags["reason"])) == "Out of memory at step 3."
    assert runs.get_row(run.id).reason == "Out of memory at step 3."


def test_a_run_does_not_end_as_running(studio: Path) -> None:
    with pytest.raises(ValueError, match="does not end as running"):
        outcome.finish(new_run(), "running")


def test_no_secret_leaves_the_folder(studio: Path) -> None:
    run = new_run(hf_hub_token="hf_verysecret")
    outcome.finish(run, "finished")
    recorded = store.open_store().get_run(run.id)
    assert "hf_verysecret" not in json.dumps(recorded.to_dictionary())
    assert "hf_hub_token" not in recorded.data.params
    assert not (run.folder / "secrets.json").exists()


def test_long_values_are_cut_with_a_word(studio: Path) -> None:
    run = new_run(dataset=",".join(f"set{i:05}" for i in range(2000)))
    value = store.open_store().get_run(run.id).data.params["dataset"]
    assert len(value) <= 6000 and value.endswith("characters, see config.yaml]")


# --- exactly once


def test_a_lost_note_doubles_nothing(studio: Path) -> None:
    run = new_run()
    runs.sync(run)
    log = metrics.MetricsLog(run)
    before = (run.folder / "tracking.json").read_text()
    for step in range(500):
        log.log(step, {"loss": random.random(), "nan": math.nan})
    log.close()
    assert runs.sync(run) == 1000
    once = points_in_mlflow(run)
    (run.folder / "tracking.json").write_text(before)  # killed after the send, before the note
    runs.sync(run)
    assert points_in_mlflow(run) == once and len(once) == 500
    assert len(points_in_mlflow(run, "nan")) == 500
    assert runs.sync(run) == 0


def test_a_resumed_run_goes_on_without_doubled_steps(studio: Path) -> None:
    run = new_run()
    for first, last in ((0, 50), (40, 80)):
        run.update(state="running", started=time.time(), cause=Message())
        log, mirroring = metrics.MetricsLog(run), mirror.Mirror(run, every=0.1)
        for step in range(first, last):
            log.log(step, {"loss": first + step / 100})
        log.close()
        assert mirroring.close()
        if first == 0:
            outcome.finish(run, "failed", plain("Killed by signal 9."))
    assert store.open_store().get_run(run.id).info.status == "RUNNING"
    assert [step for step, _ in points_in_mlflow(run)] == list(range(80))
    # The page shows what the resumed run measured.
    steps, values = runs.history([run.id], "loss")[run.id]
    assert list(steps) == list(range(80)) and values[45] == 40.45
    outcome.finish(run, "finished")
    recorded = store.open_store().get_run(run.id)
    assert recorded.info.status == "FINISHED" and recorded.data.tags["reason"] == ""


def test_two_senders_never_send_at_once(studio: Path) -> None:
    run = new_run()
    with sync_state.held(run) as mine:
        assert mine
        metrics.MetricsLog(run).log(1, {"loss": 1.0})
        assert runs.sync(run) is None
    assert runs.sync(run) == 1


def test_a_torn_line_costs_one_row(studio: Path) -> None:
    run = new_run()
    metrics.MetricsLog(run).log(1, {"loss": 1.0})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "time": 1.0, "lo')  # the power went
    log = metrics.MetricsLog(run)
    log.log(3, {"loss": 3.0})
    assert runs.sync(run) == 2
    assert points_in_mlflow(run) == [(1, 1.0), (3, 3.0)]


def test_names_mlflow_forbids_are_mapped(studio: Path) -> None:
    run = new_run()
    odd = ["a(b)", "/absolute", "../up", "x//y", "précision@1", "100%", "", ".", "a/../../b", "n" * 400]
    log = metrics.MetricsLog(run)
    log.log(1, dict.fromkeys(odd, 1.0) | {"word": "x", "flag": True, "none": None})  # type: ignore[dict-item]
    assert runs.sync(run) > 5
    assert set(store.open_store().get_run(run.id).data.metrics) == {metrics.metric_name(n) for n in odd}


def test_nan_and_infinity_stay_themselves(studio: Path) -> None:
    run = new_run()
    log = metrics.MetricsLog(run)
    for step, value in enumerate((1.0, math.nan, math.inf, -math.inf)):
        log.log(step, {"loss": value})
    outcome.finish(run, "failed", plain("The loss is NaN."))
    for source in (SqliteReader(store.database()), ClientReader()):  # type: ignore[arg-type]
        ((steps, values),) = source.history(run.id, "loss")
        assert list(steps) == [0, 1, 2, 3]
        assert repr(list(map(float, values))) == "[1.0, nan, inf, -inf]"
        assert source.details([run.id])[run.id].metrics["loss"] == -math.inf


# --- the tracker away


class Training:
    """Logs like a training loop, while something happens to the tracker."""

    def __init__(self, run: Run):
        run.update(state="running", started=time.time())
        self.run, self.step = run, 0
        self.log = metrics.MetricsLog(run)
        self.mirror = mirror.Mirror(run, every=0.05, longest_wait=0.5)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            self.log.log(self.step, {"loss": 1 / self.step, "lr": 1.0})
            time.sleep(0.002)

    def check_all_arrived_once(self, timeout: float = 30) -> None:
        self.log.close()
        assert self.mirror.close(timeout)
        assert outcome.finish(self.run, "finished", timeout=timeout)
        assert points_in_mlflow(self.run) == [(s, 1 / s) for s in range(1, self.step + 1)]
        assert len(points_in_mlflow(self.run, "lr")) == self.step
        assert self.run.status().tracking == ""


def test_locked_tracker_loses_nothing(home: Path) -> None:
    training = Training(new_run())
    training.train(50)
    with closing(sqlite3.connect(store.database(), isolation_level=None)) as db:  # type: ignore[arg-type]
        db.execute("BEGIN IMMEDIATE")
        training.train(300)
        assert training.step == 350  # nobody waited for the lock
        time.sleep(0.5)
        db.execute("ROLLBACK")
    training.train(50)
    training.check_all_arrived_once()


def test_moved_tracker_loses_nothing(home: Path) -> None:
    training = Training(new_run())
    training.train(50)
    database = store.database()
    assert database is not None
    away = database.with_name("elsewhere.db")
    database.rename(away)
    training.train(200)
    assert wait_for(lambda: "missing" in training.run.status().tracking)
    assert not database.exists()  # an empty one in its place would hide the loss
    assert "missing" in runs.list_runs().notice and runs.list_runs().total == 1
    with pytest.raises(TrackerError, match="missing"):
        runs.set_note(training.run.id, "x")
    away.rename(database)
    training.train(50)
    training.check_all_arrived_once()
    assert runs.list_runs().notice == ""


def test_a_lost_database_is_made_anew_from_the_folders(home: Path) -> None:
    run = new_run("survivor")
    run.update(started=time.time())
    metrics.MetricsLog(run).log(1, {"loss": 0.5})
    outcome.finish(run, "finished")
    with pytest.raises(ValueError, match="nothing was changed"):
        mirror.start_anew()
    before = runs.get_row(run.id)
    store._let_go(store.open_store())
    store.database().unlink()  # type: ignore[union-attr]
    with pytest.raises(TrackerError, match="missing"):
        store.open_store()
    mirror.start_anew()
    assert runs.sync(run) == 1
    after = runs.get_row(run.id)
    assert after == replace(before, facts=after.facts, created=after.created)
    assert abs(after.created - before.created) < 1 and points_in_mlflow(run) == [(1, 0.5)]
    assert store.open_store().get_run(sync_state.mlflow_id(run.id)).info.status == "FINISHED"


READ_ONLY_CHILD = """
import sys, time
from tuner.runs import metrics
from tuner.runs.run import Run
from tuner.tracking.mirror import Mirror
run = Run(sys.argv[1])
log, mirror = metrics.MetricsLog(run), Mirror(run, every=0.05, longest_wait=0.2)
for step in range(1, 101):
    log.log(step, {"loss": 1 / step})
log.close()
print(mirror.close(60), run.status().tracking)
"""


def test_read_only_tracker_loses_nothing(home: Path) -> None:
    """In a process of its own, for root may write where nobody may."""
    run = new_run()
    bound: list[str] = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may write everywhere, and setpriv is not here to take that away")
        bound = ["setpriv", "--bounding-set", "-dac_override"]
    locked = [home / "mlruns", *(home / "mlruns").glob("mlflow.db*")]
    modes = {path: path.stat().st_mode for path in locked}
    for path in locked:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        child = subprocess.run(
            [*bound, sys.executable, "-c", READ_ONLY_CHILD, run.id],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
        )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert child.stdout.startswith("False") and "cannot be written" in child.stdout, child
    assert runs.sync(run) == 100
    assert points_in_mlflow(run) == [(s, 1 / s) for s in range(1, 101)]


def test_a_row_made_here_is_like_one_that_mlflow_makes(studio: Path) -> None:
    client = store.open_store()
    experiment = store.experiment_id(client)
    theirs = client.create_run(experiment, 1234, {"team": "red"}, "a name").info.run_id
    ours = uuid.uuid4().hex
    for _ in range(2):
        new_row.insert(store.database(), experiment, ours, "a name", "RUNNING", 1234, {"team": "red"})  # type: ignore[arg-type]
    with closing(sqlite3.connect(store.database())) as db:  # type: ignore[arg-type]
        rows = db.execute("SELECT * FROM runs WHERE run_uuid IN (?, ?)", (ours, theirs)).fetchall()
        tags = db.execute(
            "SELECT run_uuid, key, value FROM tags WHERE run_uuid IN (?, ?)", (ours, theirs)
        ).fetchall()
    for found in (rows, tags):
        assert len({str(row).replace(ours, "it").replace(theirs, "it") for row in found}) == len(found) / 2
    for id in (ours, theirs):
        client.set_terminated(id)
        client.delete_run(id)


def test_a_run_made_while_the_tracker_is_away_arrives_later(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_run("first")
    with monkeypatch.context() as patch:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        run = runs.create_run(make(CONFIG), "orphan", tags={"team": "red"})
        metrics.MetricsLog(run).log(1, {"loss": 0.5})
        assert not outcome.finish(run, "finished")
        page = runs.list_runs()
        assert {r.name for r in page.items} == {"first", "orphan"} and "does not answer" in page.notice
    row = next(r for r in runs.list_runs().items if r.name == "orphan")
    assert (row.state, row.metrics["loss"], row.stage, row.tags) == ("finished", 0.5, "dpo", {"team": "red"})
    assert runs.sync(run) == 1
    assert runs.sync(run) == 0
    again = runs.get_row(run.id)
    assert again == replace(
        row, params=again.params, facts=again.facts, spark=again.spark, created=again.created
    )
    assert runs.list_runs().total == 2 and first.id != run.id
    runs.set_note(run.id, "brought home")
    assert runs.get_row(run.id).note == "brought home"


def test_a_full_disk_does_not_stop_training(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run()
    log = metrics.MetricsLog(run)
    real = os.write
    full = True

    def write(file: int, data: bytes) -> int:
        if full and file == log._file:
            real(file, bytes(data)[:5])  # what still fitted
            del log._waiting[:5]
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    log.log(1, {"loss": 1.0})
    log.log(2, {"loss": 2.0})
    full = False
    log.log(3, {"loss": 3.0})
    assert [row["loss"] for row in run.metrics()[0]] == [1.0, 2.0, 3.0]


def through_a_killed_server(home: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with mlflow_server(backend, port, home):
        training = Training(new_run())
        training.train(200)
        assert wait_for(lambda: sync_state.is_mirrored(training.run))
    training.train(500)
    assert wait_for(lambda: training.run.status().tracking != "", 60)
    with mlflow_server(backend, port, home):
        training.train(200)
        training.check_all_arrived_once(timeout=120)
        row = runs.list_runs().items[0]
        assert row.state == "finished" and row.params["learning_rate"] == "0.0003"


@pytest.mark.slow
def test_a_real_server_killed_and_restarted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.new_database(home / "server.db")
    through_a_killed_server(home, f"sqlite:///{home / 'server.db'}", monkeypatch)


@pytest.mark.slow
def test_postgresql_behind_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres() as uri, tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TUNER_HOME", folder)
        through_a_killed_server(Path(folder), uri, monkeypatch)


@pytest.mark.slow
def test_a_lock_longer_than_mlflow_waits(home: Path) -> None:
    training = Training(new_run())
    with closing(sqlite3.connect(store.database(), isolation_level=None)) as db:  # type: ignore[arg-type]
        db.execute("BEGIN IMMEDIATE")
        training.train(500)
        assert wait_for(lambda: "locked" in training.run.status().tracking, 60)
        db.execute("ROLLBACK")
    training.train(50)
    training.check_all_arrived_once(timeout=60)


# --- the store


@pytest.mark.slow
def test_the_shipped_schema_is_what_mlflow_makes() -> None:
    """In any order, for MLflow's migrations make some indexes out of sets."""
    made, shipped = store.make_schema(), store.SHIPPED_SCHEMA.read_text()
    assert sorted(made.splitlines()) == sorted(shipped.splitlines()), "run python -m tuner.tracking.store"


def test_the_default_store_stays_until_the_last_thread_has_done_with_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or MLflow makes another database, in the folder the process runs in."""
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with store.as_default():
            entered.set()
            left.wait(10)

    first = store.as_default()
    first.__enter__()
    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    first.__exit__(None, None, None)
    assert os.environ["MLFLOW_TRACKING_URI"] == store.tracking_uri()
    left.set()
    thread.join()
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine")
    with store.as_default():
        pass
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://mine"


def test_a_new_store_is_wal_and_has_the_experiment(home: Path) -> None:
    client = store.open_store()
    assert store.SHIPPED_SCHEMA.read_text().startswith(f"-- mlflow {importlib.metadata.version('mlflow')}\n")
    experiment = client.get_experiment_by_name("tuner")
    assert experiment.artifact_location == str(home / "mlruns" / "artifacts")
    with closing(sqlite3.connect(store.database())) as db:  # type: ignore[arg-type]
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_damaged_store_is_said_in_a_sentence(home: Path) -> None:
    new_run()
    database = store.database()
    assert database is not None
    store._let_go(store.open_store())
    database.write_bytes(b"not a database at all" * 500)
    page = runs.list_runs()
    assert page.total == 1 and "damaged" in page.notice


def test_reading_never_imports_mlflow(studio: Path) -> None:
    run = new_run()
    metrics.MetricsLog(run).log(1, {"loss": 1.0})
    outcome.finish(run, "finished")
    code = (
        "import sys; from tuner.runs import checkpoints, metrics\n"
        "from tuner.tracking import adapters, sync_state, outcome, runs, store\n"
        "page = runs.list_runs(); assert page.total, page\n"
        f"assert runs.get_row({run.id!r}).metrics['loss'] == 1.0\n"
        f"assert runs.history([{run.id!r}], 'loss') and runs.metric_names([{run.id!r}]) and runs.choices()\n"
        "adapters.list_adapters()\n"
        "heavy = {'mlflow', 'sqlalchemy', 'torch', 'pandas', 'streamlit'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# --- lists


@pytest.fixture(scope="module")
def many(shared_home: Path) -> list[Run]:
    """A dozen runs that differ in everything lists can ask for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(shared_home))
        made = []
        for i in range(12):
            stage = ("sft", "dpo", "kto")[i % 3]
            values = {
                **CONFIG,
                "stage": stage,
                "dataset": ["hh", "chat,hh", "hh_zh"][i % 3],
                "learning_rate": 1e-5 * (12 - i),
            }
            run = runs.create_run(
                make(values), f"Run {i} 测试", tags={"batch": str(i % 2)} if i % 4 else None
            )
            made.append(run)
            log = metrics.MetricsLog(run)
            for step in range(5):
                log.log(step, {"loss": math.nan if i == 5 else (i * 7) % 12 + step / 10})
            log.close()
            run.update(started=time.time())
            if i < 9:
                outcome.finish(run, ("finished", "failed", "stopped")[i % 3], plain(f"reason {i}"))  # type: ignore[arg-type]
            else:
                runs.sync(run)
        runs.set_note(made[3].id, "a Remarkable note")
        runs.delete_run(made[0].id)
        return made


FILTERS = [
    runs.RunFilter(tags={"batch": ""}),
    runs.RunFilter(tags={"batch": "1"}, sort="metrics.loss"),
    runs.RunFilter(tags={"batch": ""}, sort="metrics.loss", descending=False),
    runs.RunFilter(tags={"batch": ""}, sort="params.learning_rate"),
    runs.RunFilter(tags={"batch": ""}, stage="dpo", sort="name"),
    runs.RunFilter(text="run 测试 chat"),
    runs.RunFilter(text="remarkable"),
    runs.RunFilter(dataset="hh", text="Run", sort="state"),
    runs.RunFilter(states=("failed",), text="测试", sort="duration"),
    runs.RunFilter(deleted=True, text="测试"),
    runs.RunFilter(model="models/tiny", text="测试", sort="metrics.nothing"),
]


@pytest.mark.parametrize("filter", FILTERS, ids=range(len(FILTERS)))
def test_the_file_and_the_api_say_the_same(
    filter: runs.RunFilter, studio: Path, many: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = runs.list_runs(filter)
    monkeypatch.setattr(table, "reader", ClientReader)
    through_api = runs.list_runs(filter)
    assert repr(quick) == repr(through_api)  # by repr, for NaN is not equal to itself
    assert quick.total > 0


def test_lists_filter_sort_and_page(studio: Path, many: list[Run]) -> None:
    ours = runs.RunFilter(text="测试")
    first, second = runs.list_runs(ours, 1, 5), runs.list_runs(ours, 2, 5)
    assert (first.total, first.pages, len(first.items), len(second.items)) == (11, 3, 5, 5)
    assert [r.name for r in first.items] == [f"Run {i} 测试" for i in (11, 10, 9, 8, 7)]
    assert not {r.id for r in first.items} & {r.id for r in second.items}
    assert runs.list_runs(ours, 99, 5).number == 3
    by_loss = runs.list_runs(replace(ours, sort="metrics.loss", descending=False)).items
    losses = [r.metrics["loss"] for r in by_loss]
    assert losses[:-1] == sorted(losses[:-1]) and math.isnan(losses[-1])
    rates = [
        float(r.params["learning_rate"])
        for r in runs.list_runs(replace(ours, sort="params.learning_rate")).items
    ]
    assert rates == sorted(rates, reverse=True)
    assert {r.state for r in runs.list_runs(replace(ours, states=("queued",))).items} == {"queued"}
    assert runs.list_runs(replace(ours, dataset="h")).total == 0
    chosen = runs.choices()
    assert {"sft", "dpo", "kto"} <= set(chosen.stages) and chosen.tags["batch"] == ("0", "1")
    assert {"hh", "chat", "hh_zh"} <= set(chosen.datasets)


def test_the_folder_knows_better_than_mlflow(studio: Path) -> None:
    run = new_run("live one")
    run.update(state="running", started=time.time())
    metrics.MetricsLog(run).log(3, {"loss": 0.25})
    row = runs.list_runs(runs.RunFilter(states=("running",), text="live one")).items[0]
    assert row.metrics["loss"] == 0.25 and row.duration is None
    assert runs.history([run.id], "loss")[run.id][1][0] == 0.25
    assert runs.metric_names([run.id]) == ["loss"]


def test_a_run_that_waits_to_go_on_is_listed_as_queued(studio: Path) -> None:
    run = new_run("goes on")
    run.update(state="running", started=time.time())
    outcome.finish(run, "stopped")
    run.update(state="queued", ended=0.0)  # MLflow hears of it when the worker starts

    def listed(*states: str) -> list[str]:
        return [r.id for r in runs.list_runs(runs.RunFilter(states=states, text="goes on")).items]

    assert listed("queued") == [run.id] and listed("stopped") == []


def test_elapsed_is_work_alone_whatever_the_clock_says(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=50.0)
    run = new_run("a day's work")
    with monkeypatch.context() as patched:
        patched.setattr(time, "monotonic", lambda: clock.now)
        for seconds in (30, 12):
            # Somebody set the clock forward by an hour since the worker started.
            began = {"started": time.time() - 3600, "began": clock.now, "boot_id": hardware.boot_id()}
            run.update(state="running", ended=0.0, **began)
            clock.now += seconds
            live = run.status().elapsed
            run.update(state="stopped", began=0.0, worked=run.status().worked_now())
            run.update(state="queued", boot_id="")
            clock.now += 500  # waits, or the machine sleeps
            assert run.status().elapsed == live
    assert run.status().elapsed == 42
    outcome.finish(run, "finished")
    row = runs.get_row(run.id)
    assert row.duration == 42 and row.facts["seconds/total"] == "42.0"
    before_a_reboot = replace(
        run.status(), state="running", began=9.0, boot_id="another", started=1000.0, updated=1005.0
    )
    assert before_a_reboot.elapsed == 47


def test_tags_notes_names_and_deleting(studio: Path) -> None:
    run = new_run("to be changed")
    runs.set_tag(run.id, "quality", "good")
    runs.set_note(run.id, "**bold** <script>")
    runs.rename_run(run.id, "changed")
    row = runs.get_row(run.id)
    assert (row.name, row.note, row.tags, run.name) == (
        "changed",
        "**bold** <script>",
        {"quality": "good"},
        "changed",
    )
    assert runs.find_run("changed") == runs.find_run(run.id[:12]) == run.id
    runs.delete_tag(run.id, "quality")
    runs.delete_tag(run.id, "quality")
    assert runs.get_row(run.id).tags == {}
    for name in ("state", "mlflow.x", "a(b)", ""):
        with pytest.raises(ValueError, match="tag"):
            runs.set_tag(run.id, name, "x")
    with pytest.raises(ValueError, match="stop it"):
        run.update(state="running")
        runs.delete_run(run.id)
    outcome.finish(run, "stopped")
    with pytest.raises(ValueError, match="delete it first"):
        runs.purge(run.id)
    runs.delete_run(run.id)
    assert runs.get_row(run.id).deleted
    runs.restore_run(run.id)
    assert not runs.get_row(run.id).deleted
    runs.delete_run(run.id)
    runs.purge(run.id)
    assert runs.get_row(run.id) is None and not run.folder.exists()
    with pytest.raises(ValueError, match="no run"):
        runs.find_run(run.id)


def test_children_know_their_parent(studio: Path) -> None:
    tags = runs.sweep_tags("sweep")
    parent = tags["mlflow.parentRunId"]
    children = [runs.create_run(make(CONFIG), f"child {i}", tags=tags) for i in range(2)]
    runs.sync(children[0])  # of one MLflow knows, of the other its folder
    found = runs.list_runs(runs.RunFilter(parent=parent))
    assert {r.id for r in found.items} == {c.id for c in children}
    assert found.items[0].parent == parent
    assert history.of_sweep(parent) == [c.id for c in children]
    assert parent not in {r.id for r in runs.list_runs(runs.RunFilter(text="sweep")).items}
    assert store.open_store().get_run(parent).info.status == "FINISHED"


# --- curves


@pytest.mark.parametrize("length", [5, 100, 101, 12_345])
def test_thinning_keeps_spikes_ends_and_order(length: int) -> None:
    values = np.random.default_rng(0).normal(size=length)
    spike, dip = length // 3, length // 2
    values[spike], values[dip], values[1] = 1e6, -1e6, np.nan
    steps, kept = points.thinned((np.arange(length), values), 100)
    assert len(steps) <= 100 and (np.diff(steps) > 0).all()
    assert {0, spike, dip, length - 1} <= set(steps.tolist())
    assert np.array_equal(kept, values[steps], equal_nan=True)


def test_a_tail_reads_on_and_follows_a_rewind(studio: Path) -> None:
    run = new_run()
    log = metrics.MetricsLog(run)
    log.log(1, {"loss": 1.0, "lr": 0.1})
    log.log(2, {"loss": 2.0})
    assert points.tail(run).last() == {"loss": 2.0, "lr": 0.1}
    log.log(2, {"loss": 9.0})
    log.log(3, {"loss": 3.0})
    steps, values = points.tail(run).series("loss")
    assert (steps.tolist(), values.tolist()) == ([1, 2, 3], [1.0, 9.0, 3.0])


def test_system_metrics_go_on_after_a_resume(studio: Path) -> None:
    run = new_run()
    metrics.MetricsLog(run).log(100, {"system/cpu_utilization_percentage": 5.0}, at=time.time() - 50)
    log = metrics.MetricsLog(run)
    sampler = metrics.SystemMetrics(run, log, every=0.05)
    assert wait_for(lambda: len(run.metrics()[0]) > 1)
    sampler.close()
    log.close()
    rows = run.metrics()[0]
    assert rows[1]["step"] - 100 in (49, 50, 51)
    assert rows[-1]["system/process_memory_usage_megabytes"] > 10


def test_system_metrics_go_on_when_the_clock_is_set_back(
    studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = new_run(), time.time
    log = metrics.MetricsLog(run)
    sampler = metrics.SystemMetrics(run, log, every=0.4)
    assert wait_for(lambda: len(run.metrics()[0]) > 1)
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    before = len(run.metrics()[0])
    assert wait_for(lambda: len(run.metrics()[0]) > before + 3)
    sampler.close()
    log.close()
    steps = [row["step"] for row in run.metrics()[0]]
    assert steps == sorted(steps) and steps[-1] > steps[0]
    again = metrics.SystemMetrics(run, log, every=60)
    assert again._before > steps[-1]
    again.close()


# --- adapters


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny Llama with a LoRA adapter whose weights do something."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(shape).save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(folder / "adapter")
    (folder / "adapter" / "trainer_state.json").write_text("{}")
    ids = [[1, 2, 3, 4, 5]]
    plain = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    with torch.no_grad():
        without = plain(torch.tensor(ids)).logits
        logits = PeftModel.from_pretrained(plain, folder / "adapter").eval()(torch.tensor(ids)).logits
    assert (logits - without).abs().max() > 1e-3
    return SimpleNamespace(base=folder / "base", adapter=folder / "adapter", ids=ids, logits=logits)


def test_a_version_names_the_layers_that_its_weights_lie_on(
    home: Path, trained: SimpleNamespace, tmp_path: Path
) -> None:
    """What `lora_target all` named is in the config: of a model that sees also what the frozen parts have."""
    folder = tmp_path / "adapter"
    shutil.copytree(trained.adapter, folder)
    described = json.loads((folder / "adapter_config.json").read_text())
    described["target_modules"] = ["fc1", "fc2", "proj", "q_proj", "qkv", "v_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(described))
    row = adapters.register(new_run("seeing", model_name_or_path=str(trained.base)), folder)
    assert row.targets == ("q_proj", "v_proj")


def test_an_adapter_loads_back_by_alias_with_the_same_logits(
    studio: Path, trained: SimpleNamespace, recwarn: pytest.WarningsRecorder
) -> None:
    run = new_run("my / adapter:run", model_name_or_path=str(trained.base))
    outcome.record_inputs(run, [SimpleNamespace(name="hh", source="org/hh", digest="d1", rows=None)])
    before = set(store.open_store().get_run(run.id).data.params)
    row = adapters.register(run, trained.adapter, aliases=["champion"], note="first")
    assert (row.name, row.version, row.aliases, row.note) == ("my-adapter-run", 1, ("champion",), "first")
    assert (row.base, row.rank, row.targets, row.method) == (
        str(trained.base),
        "4",
        ("q_proj", "v_proj"),
        "lora",
    )
    assert (row.run_id, row.stage, row.datasets, row.digests) == (run.id, "dpo", ("hh",), ("d1",))
    assert row.sha256 == checkpoints.sha256(trained.adapter / "adapter_model.safetensors")
    assert row.size == sum(size for size, _ in row.files.values()) and "trainer_state.json" not in row.files
    assert adapters.check(row) == row.state == "ok"
    assert set(store.open_store().get_run(run.id).data.params) == before

    import mlflow

    with store.as_default():
        loaded = mlflow.pyfunc.load_model("models:/my-adapter-run@champion")
    logits = loaded.unwrap_python_model().logits(trained.ids)
    assert (logits - trained.logits).abs().max() == 0
    assert not [w for w in recwarn.list if "predict" in str(w.message)]  # nobody can act on MLflow's advice
    client = store.open_store()
    assert client.get_model_version_by_alias("my-adapter-run", "champion").run_id == run.id
    assert client.get_run(run.id).outputs.model_outputs

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = adapters.adapter_folder("my-adapter-run", "champion")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trained.base), folder)

    assert adapters.register(run, trained.adapter).version == 1  # the same weights once
    quick, through_api = SqliteReader(store.database()).adapters(), ClientReader().adapters()  # type: ignore[arg-type]
    assert [{**q, "location": 0} for q in quick] == [{**a, "location": 0} for a in through_api]


def test_aliases_move_and_bad_ones_are_refused(studio: Path, trained: SimpleNamespace) -> None:
    names = []
    for _ in range(2):
        run = new_run("aliased", model_name_or_path=str(trained.base))
        names.append(adapters.register(run, trained.adapter).version)
    assert names == [1, 2]
    adapters.set_alias("aliased", 1, "best")
    adapters.set_alias("aliased", 2, "best")
    found = {row.version: row.aliases for row in adapters.list_adapters() if row.name == "aliased"}
    assert found == {1: (), 2: ("best",)}
    adapters.delete_alias("aliased", "best")
    for word in ("v1", "latest", "a b", ""):
        with pytest.raises(ValueError, match="alias"):
            adapters.set_alias("aliased", 1, word)
    with pytest.raises(ValueError, match="no version"):
        adapters.adapter_folder("aliased", 9)
    adapters.delete_adapter("aliased", 1)
    adapters.delete_adapter("aliased", 2)
    with pytest.raises(ValueError, match="no adapter"):
        adapters.adapter_folder("aliased", 1)


def test_broken_files_are_found(studio: Path, trained: SimpleNamespace) -> None:
    run = new_run("breakable", model_name_or_path=str(trained.base))
    row = adapters.register(run, trained.adapter)
    assert row.folder is not None
    file = row.folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert adapters.check(row) == "changed" and row.state == "ok"  # as long as before: only reading tells
    file.write_bytes(whole[:-1])
    assert row.state == "changed"
    file.unlink()
    assert row.state == adapters.check(row) == "missing"
    with pytest.raises(ValueError, match="are missing"):
        adapters.adapter_folder("breakable", 1)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, kind: str, bad: float) -> None:
    import torch
    from safetensors.torch import save_file

    good = torch.full((3, 5), -0.5).to(getattr(torch, kind))
    good[0, 0] = torch.finfo(good.dtype).max
    save_file(
        {"fine": good, "steps": torch.tensor([2**15 - 1], dtype=torch.int16)}, tmp_path / "good.safetensors"
    )
    weights.check_finite(tmp_path / "good.safetensors")
    spoilt = good.clone()
    spoilt[2, 4] = bad
    save_file({"fine": good, "layer.lora_B": spoilt}, tmp_path / "bad.safetensors")
    with pytest.raises(weights.BrokenWeights, match=r"layer\.lora_B"):
        weights.check_finite(tmp_path / "bad.safetensors")


def test_a_diverged_or_half_written_adapter_is_never_registered(
    studio: Path, trained: SimpleNamespace, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    run = new_run("diverged", model_name_or_path=str(trained.base))
    tensors = load_file(trained.adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(adapters.BrokenWeights, match="NaN or infinite"):
        adapters.register(run, tmp_path)
    whole = (trained.adapter / "adapter_model.safetensors").read_bytes()
    for content in (whole[:-10], b"", b"\xff" * 64):
        (tmp_path / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(adapters.BrokenWeights):
            adapters.register(run, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(adapters.BrokenWeights, match=r"holds no \.safetensors"):
        adapters.register(run, tmp_path)
    assert "diverged" not in {row.name for row in adapters.list_adapters()}


def test_an_adapter_trained_while_the_tracker_is_away_is_registered_later(
    home: Path, trained: SimpleNamespace
) -> None:
    run = new_run("late", model_name_or_path=str(trained.base))
    database = store.database()
    assert database is not None
    database.rename(home / "away.db")
    with pytest.raises(TrackerError):
        adapters.register(run, trained.adapter, aliases=["first"])
    assert not outcome.finish(run, "finished", timeout=5)
    (home / "away.db").rename(database)
    runs.sync(run)
    assert [(r.name, r.aliases) for r in adapters.list_adapters()] == [("late", ("first",))]
    assert store.open_store().get_run(run.id).info.status == "FINISHED"
