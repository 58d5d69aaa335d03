"""A year of runs costs no more than a week of them: what is counted is what is read, so that a busy machine is no fault."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from examples import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scale import sessions, world
from streamlit.testing.v1 import AppTest

from tuner import cli, hardware
from tuner.config.config import make
from tuner.jobs import launch, queue
from tuner.jobs.supervisor import Supervisor, needed
from tuner.runs.run import Run
from tuner.runs.status import ENDED, STATES
from tuner.text.message import plain
from tuner.tracking import adapter_rows, client_reader, open_runs, runs, sqlite_reader, store, table
from tuner.tracking.client_reader import ClientReader
from tuner.tracking.runs import RunFilter
from tuner.tracking.sqlite_reader import SqliteReader
from tuner.tracking.sync_state import SyncState

pytestmark = pytest.mark.usefixtures("libraries_looked_through_once")
FEW, MANY = 50, 1000


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A studio with a few runs and one with many."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for count in (FEW, MANY):
            made[count] = tmp_path_factory.mktemp(f"studio{count}")
            patch.setenv("TUNER_HOME", str(made[count]))
            world.fill_runs(count)
            open_runs.walk()
    return made


class Cost:
    """What a question took: files opened in the folder of runs, and instructions of SQLite's machine."""

    def __init__(self) -> None:
        self.files = 0
        self.steps = 0
        self.thread = threading.get_ident()


_counting: list[Cost] = []


def _heard(event: str, given: tuple[Any, ...]) -> None:
    # Threads that other tests left behind open files, too.
    if not _counting or _counting[-1].thread != threading.get_ident():
        return
    if event == "open" and "/mlruns/runs/" in str(given[0]):
        _counting[-1].files += 1


sys.addaudithook(_heard)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cost]:
    """Count in this block."""
    cost, connect = Cost(), sqlite3.connect

    def counted(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        opened = connect(*args, **kwargs)
        opened.set_progress_handler(tick, 10)
        return opened

    def tick() -> int:
        cost.steps += 10
        return 0

    with monkeypatch.context() as patched:
        patched.setattr(sqlite_reader.sqlite3, "connect", counted)
        _counting.append(cost)
        try:
            yield cost
        finally:
            _counting.pop()


QUESTIONS: dict[str, tuple[Callable[[], object], int]] = {
    "queue": (queue.queue, 0),
    "one run": (lambda: runs.get_row(world.run_id(40)), 1),
    "one run by the beginning of its id": (lambda: runs.find_run(world.run_id(40)[:30]), 1),
    "newest": (lambda: runs.list_runs(size=20), 100),
    "the last that ended": (lambda: runs.first_runs(6, RunFilter(states=tuple(ENDED))), 100),
    "the best of those that finished": (lambda: next(runs.by_metric(runs.finished(500), "loss")), 200),
    "whether any finished": (lambda: runs.are_there(2, RunFilter(states=("finished",))), 2),
    "search": (lambda: runs.list_runs(RunFilter(text="ALPHA run"), size=20), 300),
    "failed": (lambda: runs.list_runs(RunFilter(states=("failed",)), size=5), 100),
    "of a stage": (lambda: runs.list_runs(RunFilter(stage="dpo"), size=15), 200),
    "what to filter by": (runs.choices, 100),
    "what can be compared": (lambda: runs.newest(50), 100),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_runs_that_ended_long_ago_cost_next_to_nothing(
    question: str, homes: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, each = QUESTIONS[question]
    costs = {}
    for count, home in homes.items():
        monkeypatch.setenv("TUNER_HOME", str(home))
        ask()  # what is kept is known from here on
        with counting(monkeypatch) as costs[count]:
            ask()
    assert costs[MANY].files <= costs[FEW].files + 2
    assert costs[MANY].steps - costs[FEW].steps <= each * (MANY - FEW) + 200


def test_the_best_are_first_and_one_of_them_is_read(
    homes: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(homes[FEW]))
    ended = runs.finished(500)
    assert len(ended) > 2
    with counting(monkeypatch) as first:
        best = next(runs.by_metric(ended, "loss"))
    assert first.files <= 2
    found = [row.metrics["loss"] for row in runs.by_metric(ended, "loss")]
    assert found == sorted(
        (row.metrics["loss"] for row in runs.first_runs(500) if row.id in ended), reverse=True
    )
    assert best.metrics["loss"] == found[0] and not list(runs.by_metric(ended, "none of theirs"))


def test_listing_all_holds_a_few_in_memory(homes: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_HOME", str(homes[MANY]))
    with counting(monkeypatch) as first:
        rows = runs.every_run()
        one = next(rows)
    with counting(monkeypatch) as rest:
        every = [one, *rows]
    assert [row.name for row in every] == [world.name(i) for i in reversed(range(MANY))]
    assert first.files < rest.files / 3


def test_the_shell_lists_all_or_says_that_there_are_more(
    homes: dict[int, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(homes[MANY]))
    assert cli.main(["runs", "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({row["id"] for row in told}) == MANY and told[-1]["name"] == world.name(0)
    assert cli.main(["runs", "--json", "--limit", "3", "--state", "failed"]) == 0
    assert {json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()} == {"failed"}
    assert cli.main(["runs"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 51 and f"50 of {MANY} runs" in err
    assert cli.main(["runs", "--limit", "0"]) == 2


# --- the queue ----------------------------------------------------------------------------------------------------


def queued(home: Path, count: int) -> list[str]:
    """A studio in which so many runs wait since a while."""
    ids = world.fill_runs(count + 10)[:count]
    for id in ids:
        Run(id).update(state="queued", ended=0.0)
        os.utime(Run(id).folder, (1e9, 1e9))
    with queue.changing() as now:
        now.ids = list(ids)
    return ids


@pytest.mark.parametrize("look", ["the supervisor's look", "the queue", "whether a supervisor is needed"])
def test_what_waits_is_read_once(look: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    opened = {}
    for count in (20, 200):
        home = tmp_path / str(count)
        home.mkdir()
        monkeypatch.setenv("TUNER_HOME", str(home))
        ids, supervisor = queued(home, count), Supervisor()
        ask = {
            "the supervisor's look": lambda s=supervisor: s._adopt(queue.unended()),
            "the queue": queue.queue,
            "whether a supervisor is needed": needed,
        }[look]
        ask()
        with counting(monkeypatch) as opened[count]:
            ask()
        assert queue.waiting() == ids
    assert opened[200].files <= opened[20].files + 2


def test_a_worker_that_was_started_by_somebody_else_is_seen(home: Path) -> None:
    first, second = queued(home, 2)
    supervisor = Supervisor()
    supervisor._adopt(queue.unended())
    assert not supervisor.watches and set(supervisor.untouched) == {first, second}
    launch.write_record(
        Run(second), launch.Launch(time.time(), hardware.boot_id(), os.getpid(), pid=os.getpid())
    )
    supervisor._adopt(queue.unended())
    assert set(supervisor.watches) == {second}


# --- the file's answer and the one found by looking at each run ----------------------------------------------------

WORDS = st.sampled_from(
    ["alpha", "BETA", "run 1", "m3", "set1", "%", "_", "\\", "step 7", "tried", "Überall", "é", "zz"]
)
FILTERS = st.builds(
    RunFilter,
    text=st.lists(WORDS, max_size=2).map(" ".join),
    states=st.lists(st.sampled_from(STATES), max_size=3, unique=True).map(tuple),
    stage=st.sampled_from(["", "", "dpo", "none"]),
    model=st.sampled_from(["", "", "models/m3"]),
    dataset=st.sampled_from(["", "", "set1", "set", "set1,set1"]),
    tags=st.sampled_from([{}, {}, {"purpose": ""}, {"purpose": "try"}, {"none": ""}]),
    sort=st.sampled_from(
        ["created", "created", "name", "state", "duration", "metrics.loss", "metrics.none", "params.stage"]
    ),
    descending=st.booleans(),
    deleted=st.booleans(),
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every sort: ended and told, live, waiting, deleted, of another machine, unknown to MLflow, oddly named."""
    home = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ids = world.fill_runs(60)
        for number, state in enumerate(("running", "queued", "stopping", "failed")):
            Run(ids[number]).update(state=state, ended=0.0)
        alone = Run("0" * 31 + "f")
        alone.create(
            make({"stage": "dpo", "model_name_or_path": "models/m3", "dataset": "set1"}), "beta alone"
        )
        with sqlite3.connect(store.database() or "") as db:
            db.execute(
                "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid IN (?, ?)", (ids[1], ids[20])
            )
            db.execute("UPDATE runs SET name = 'ÜBERALL 100%_é' WHERE run_uuid IN (?, ?)", (ids[2], ids[21]))
            db.execute("UPDATE runs SET start_time = ? WHERE run_uuid IN (?, ?)", (10**12, ids[3], ids[22]))
            db.execute("INSERT INTO tags VALUES ('tuner.run', 'made-away', ?)", (ids[23],))
            db.execute("DELETE FROM tags WHERE key = 'state' AND run_uuid = ?", (ids[24],))
            db.execute("UPDATE latest_metrics SET is_nan = 1 WHERE key = 'loss' AND run_uuid = ?", (ids[25],))
        for gone in (ids[23], ids[26], ids[27]):  # runs of another machine have no folder here
            shutil.rmtree(Run(gone).folder)
    return home


@given(filter=FILTERS, page=st.integers(1, 4))
@example(filter=RunFilter(), page=1)
@example(filter=RunFilter(descending=False), page=3)
@example(filter=RunFilter(), page=7)
@example(filter=RunFilter(), page=99)
@example(filter=RunFilter(deleted=True), page=1)
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_file_finds_what_a_look_at_each_run_finds(
    filter: RunFilter, page: int, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TUNER_HOME", str(mixed))
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        quick = runs.list_runs(filter, page, 9)
        first = runs.first_runs(9, filter)
        patched.setattr(table.Table, "_quick", None)
        one_by_one = runs.list_runs(filter, page, 9)
    assert [r.id for r in quick.items] == [r.id for r in one_by_one.items]
    assert repr(quick) == repr(one_by_one)  # by repr, for NaN is not equal to itself
    assert page > 1 or [r.id for r in first] == [r.id for r in quick.items]


def test_a_run_is_found_by_all_that_names_it(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_HOME", str(mixed))
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr(table.Table, "_quick", None)
        assert runs.find_run(world.run_id(9)) == runs.find_run(world.run_id(9)[:20]) == world.run_id(9)
        assert runs.find_run(world.name(9)) == world.run_id(9)
        assert runs.find_run("beta alone") == runs.find_run("0" * 31 + "f") == "0" * 31 + "f"
        assert runs.find_run("made-a") == "made-away"
        for nobody in (world.run_id(20), world.run_id(23), "nobody", ""):
            with pytest.raises(ValueError, match="There is no run"):
                runs.find_run(nobody)
        assert runs.get_row(world.run_id(20)) and runs.get_row("nobody") is None
        assert {"beta alone", "ÜBERALL 100%_é"} <= runs.names()


# --- the marks of open runs ----------------------------------------------------------------------------------------


def test_a_run_that_is_made_or_removed_is_known_at_once(home: Path) -> None:
    world.fill_runs(6)
    reader = SqliteReader(store.database())  # type: ignore[arg-type]
    for change in (
        f"DELETE FROM runs WHERE run_uuid = '{world.run_id(2)}'",
        "INSERT INTO runs (run_uuid, experiment_id) VALUES ('another', 1)",
        "DELETE FROM runs WHERE run_uuid = 'another'; INSERT INTO runs (run_uuid, experiment_id) VALUES ('b', 1)",
        f"DELETE FROM runs WHERE run_uuid IN ('{world.run_id(0)}', 'b'); INSERT INTO runs (run_uuid) VALUES ('c')",
    ):
        before = reader.ids()
        assert reader.ids() == before
        with sqlite3.connect(store.database() or "") as db:
            db.executescript(change)
            after = {id for (id,) in db.execute("SELECT run_uuid FROM runs")}
        assert reader.ids() == after != before


def test_a_param_that_comes_after_its_run_is_found(home: Path) -> None:
    world.fill_runs(3)
    assert runs.choices().models == ("models/m0", "models/m1", "models/m2")
    for change in (
        "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('late', 1, 'active')",
        "INSERT INTO params VALUES ('model_name_or_path', 'models/late', 'late')",
    ):
        assert "models/late" not in runs.choices().models
        with sqlite3.connect(store.database() or "") as db:
            db.execute(change)
    assert "models/late" in runs.choices().models


def test_a_studio_without_marks_gets_them_and_none_is_forgotten(home: Path) -> None:
    ids = world.fill_runs(12)
    for number, changes in enumerate(
        ({"state": "queued"}, {"state": "running"}, {"tracker": plain("not all of it is there")})
    ):
        Run(ids[number]).update(**changes)
    SyncState(mlflow_id=ids[3], state="queued").write(Run(ids[3]))
    (Run(ids[4]).folder / "metrics.jsonl").open("a").write('{"step": 6, "loss": 1}\n')
    shutil.rmtree(home / "mlruns" / "open")  # as it is where they were made before there were marks
    assert set(open_runs.ids()) == set(ids[:5])
    assert set(queue.unended()) == set(ids[:2])
    (home / "mlruns" / "open" / "gone").touch()
    Run(ids[0]).update(state="stopped")
    SyncState(mlflow_id=ids[0], state="stopped", offset=1000).write(Run(ids[0]))
    open_runs.walk()
    assert set(open_runs.ids()) == set(ids[1:5])


def test_a_mark_is_there_before_a_run_is_open_and_goes_once_all_is_told(home: Path) -> None:
    run = runs.create_run(make({"model_name_or_path": "m"}), "whole way")
    assert open_runs.ids() == [run.id]
    runs.sync(run)
    assert open_runs.ids() == [run.id]
    run.update(state="finished", ended=time.time())
    assert open_runs.ids() == [run.id] and not queue.unended()
    runs.sync(run)
    assert open_runs.ids() == []
    run.update(state="queued", ended=0.0)
    assert list(queue.unended()) == [run.id]
    assert [row.state for row in runs.list_runs().items] == ["queued"]


def test_a_close_never_takes_the_mark_of_a_run_that_waits_again(home: Path) -> None:
    (id,) = world.fill_runs(1)
    run, over = Run(id), threading.Event()

    def closing() -> None:
        while not over.is_set():
            open_runs.close(run)

    closer = threading.Thread(target=closing)
    closer.start()
    try:
        for _ in range(150):
            run.update(state="queued")
            assert list(queue.unended()) == [id]
            run.update(state=world.end(0))
    finally:
        over.set()
        closer.join()


def test_a_run_that_another_database_does_not_have_is_still_listed(home: Path) -> None:
    ids = world.fill_runs(5)
    open_runs.walk()
    assert runs.list_runs().total == 5
    backup = Path(str(store.database()) + ".backup")
    shutil.copy(store.database() or "", backup)
    world.fill_runs(2, begin=5)
    backup.replace(store.database() or "")
    assert {row.id for row in runs.list_runs().items} == {*ids, world.run_id(5), world.run_id(6)}


# --- adapters ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A studio with a few adapters and one with many; of some the run is gone, and some have an alias."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for count in (40, 600):
            made[count] = tmp_path_factory.mktemp(f"shelf{count}")
            patch.setenv("TUNER_HOME", str(made[count]))
            world.fill_runs(20)
            world.fill_adapters(count)
            with sqlite3.connect(store.database() or "") as db:
                aliases = [("champion", "adapter-3", 2), ("Ärmel_1", "adapter-4", 1)]
                db.executemany(
                    "INSERT INTO registered_model_aliases (alias, name, version) VALUES (?, ?, ?)", aliases
                )
    return made


def drawn(page: str, monkeypatch: pytest.MonkeyPatch, /, **query: str) -> tuple[AppTest, list[str]]:
    """A page of the studio, and the questions that were asked of the database for it."""
    asked: list[str] = []
    connect = sqlite3.connect

    def heard(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        opened = connect(*args, **kwargs)
        opened.set_trace_callback(asked.append)
        return opened

    monkeypatch.chdir(ROOT)
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.run()
    app.switch_page(f"pages/{page}.py")
    for name, value in query.items():
        app.query_params[name] = value
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_reader.sqlite3, "connect", heard)
        app.run()
    assert not app.exception and not [m for m in app.markdown if "could not be drawn" in m.value]
    return app, asked


def test_many_adapters_take_the_questions_and_the_room_of_a_few(
    shelves: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for count, home in shelves.items():
        monkeypatch.setenv("TUNER_HOME", str(home))
        app, asked = drawn("adapters", monkeypatch)
        found[count] = len(asked), len(list(app.main))
        assert any(f"{count} versions" in said.value for said in app.caption)
    assert found[40] == found[600]
    assert found[600][0] < 40


def test_the_address_keeps_what_is_searched_for_and_what_is_open(
    shelves: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(shelves[600]))
    app, _ = drawn("adapters", monkeypatch, q="m1 SET4", adapter="adapter-3/2")
    assert [said.value for said in app.subheader] == ["adapter\\-3"]
    assert any(said.value == "19 versions" for said in app.caption)
    assert any("champion" in badge.value for badge in app.markdown)
    app, _ = drawn("adapters", monkeypatch, page="2")
    assert app.session_state["page"] == 2
    app.text_input(key="q").set_value("champion").run()
    assert any(said.value == "1 version" for said in app.caption) and not app.exception
    app.text_input(key="q").set_value("").run()
    assert app.session_state["page"] == 1
    app, _ = drawn("adapters", monkeypatch, adapter="adapter-3/9999")
    assert [said.value for said in app.warning] == ["There is no adapter adapter\\-3/9999; choose one above."]


@pytest.mark.parametrize(
    "words", ["", "m1", "set1 dpo", "adapter-1", "CHAMPION", "ärmel", "armel", "%", "_1", "set1,"]
)
def test_the_file_and_the_api_find_the_same_adapters(
    words: str, shelves: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(shelves[40]))
    monkeypatch.setattr(client_reader, "PAGE", 7)
    quick, through_api = SqliteReader(store.database()), ClientReader()  # type: ignore[arg-type]
    ids = quick.find_adapters(words.lower().split())
    assert ids == through_api.find_adapters(words.lower().split())
    assert bool(ids) == (words not in ("armel", "%", "set1,"))
    by_place = [
        sorted(r.adapters(ids[:5]), key=lambda row: (row["name"], row["version"]))
        for r in (quick, through_api)
    ]
    assert [[row["tags"] for row in rows] for rows in by_place][0] == [row["tags"] for row in by_place[1]]
    assert [row["aliases"] for row in by_place[0]] == [row["aliases"] for row in by_place[1]]


def test_adapters_are_listed_as_a_tree(shelves: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases, below them their adapters, below those their versions: none is torn apart, and what is newest is first."""
    monkeypatch.setenv("TUNER_HOME", str(shelves[40]))
    everything = adapter_rows.list_adapters()
    rows = adapter_rows.find_adapters(size=1000).items
    assert rows[0] == everything[0] and len(rows) == 40
    for level in (lambda row: row.base, lambda row: (row.base, row.name)):
        groups = [group for group, _ in itertools.groupby(rows, level)]
        assert len(groups) == len(set(groups)) > 1
    bases = list(dict.fromkeys(row.base for row in rows))
    newest = {base: max(row.created for row in rows if row.base == base) for base in bases}
    assert bases == sorted(bases, key=lambda base: -newest[base])


def test_the_adapters_of_a_few_runs_are_found_without_reading_all(
    shelves: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(shelves[600]))
    everything = adapter_rows.list_adapters()
    wanted = {row.run_id for row in everything[:3]}
    read: list[str] = []
    made = adapter_rows._row
    monkeypatch.setattr(adapter_rows, "_row", lambda found: read.append(found["name"]) or made(found))
    assert adapter_rows.adapters_of(wanted) == everything[:3] and len(read) == 3
    of_api = {tuple(pair) for pair in ClientReader().adapters_of(wanted)}
    assert of_api == {(row.name, row.version) for row in everything[:3]}


def test_the_shell_lists_a_screen_of_adapters_or_all(
    shelves: dict[int, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(shelves[600]))
    assert cli.main(["adapters"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 51 and "50 of 600 versions" in err
    assert cli.main(["adapters", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({(row["name"], row["version"]) for row in rows}) == 600
    assert cli.main(["adapters", "champion", "--json"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["name"], row["version"], row["aliases"]) == ("adapter-3", 2, ["champion"])


# --- data sets -----------------------------------------------------------------------------------------------------

_read: list[str] = []
sys.addaudithook(lambda event, given: _read.append(str(given[0])) if event == "open" else None)


def test_of_a_long_catalog_only_the_set_that_is_open_is_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elements = []
    for count in (30, 300):
        world.fill_datasets(home / "data", count)
        (home / "data" / "set7.jsonl").write_text('{"prompt": "only text"}\n')
        _read.clear()
        app, _ = drawn("datasets", monkeypatch, dataset="set7", q="set2")
        opened = {Path(name).name for name in _read if name.startswith(str(home / "data"))}
        assert opened == {"dataset_info.json", "set7.jsonl"}
        assert any(said.value == f"{11 if count == 30 else 111} sets" for said in app.caption)
        assert [said.value for said in app.subheader] == ["set7"]
        elements.append(len(list(app.main)))
    assert elements[0] == elements[1]
    app, _ = drawn("datasets", monkeypatch, q="no such set")
    assert any(said.value == "Change the search." for said in app.caption)


# --- the dashboard -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_page_left_open_for_an_hour_takes_no_more_memory(home: Path) -> None:
    """The redraws of its three pieces in an hour, as fast as they come."""
    assert sessions.soak(home, ROOT, warm=400, redraws=3600)["grown_mib"] < 30


@pytest.mark.slow
def test_thirty_browsers_take_a_small_part_of_the_machine(home: Path) -> None:
    found = sessions.beside(home, ROOT, 30, 40.0)
    assert found["redraws"] >= 30 and found["share"] < 0.05 and found["mib_a_session"] < 3
