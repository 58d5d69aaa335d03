"""Room is made by what the preview lists and nothing else; what stays can be loaded and resumed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.numpy import load_file

from tuner import cli, worker
from tuner.config.config import make
from tuner.jobs import cleaning, control, room
from tuner.runs import checkpoints, locks
from tuner.runs.run import Run, series
from tuner.tracking import store
from tuner.tracking.adapters import list_adapters
from tuner.tracking.runs import create_run

BOTH = ("best", "last")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, mirror_here: None) -> Path:
    """A studio with a finished run that measured itself, a stopped one that did not, and one in an output_dir."""
    home = tmp_path_factory.mktemp("trained")
    tiny.model(home / "model")
    tiny.data(home / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        measured = {"val_size": 8, "eval_strategy": "steps", "eval_steps": 4, "learning_rate": 0.05}
        run(home, "finished", max_steps=12, save_steps=4, **measured)
        stopped = made(home, "stopped", max_steps=400, save_steps=3)
        stopper = threading.Thread(target=stop_at, args=(stopped, 8))
        stopper.start()
        assert worker.run_here(stopped) == 0
        stopper.join()
        run(home, "elsewhere", max_steps=4, save_steps=2, output_dir="saves/elsewhere")
    return home


def made(home: Path, name: str, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "model_name_or_path": "model",
        "stage": "dpo",
        "do_train": True,
        "dataset": "pairs",
    }
    values |= {"per_device_train_batch_size": 4, "logging_steps": 1}
    return create_run(make(values | changes), name)


def run(home: Path, name: str, **changes: Any) -> None:
    assert worker.run_here(made(home, name, **changes)) == 0


def stop_at(run: Run, step: int) -> None:
    end = time.monotonic() + 120
    while run.status().step < step and time.monotonic() < end:
        time.sleep(0.02)
    run.request("stop")


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that studio for each test."""
    shutil.copytree(trained, tmp_path / "studio", symlinks=True)
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "studio"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "studio"


@pytest.fixture
def studio(home: Path) -> dict[str, Run]:
    """Its runs by name."""
    return {Run(f.name).name: Run(f.name) for f in (home / "mlruns" / "runs").iterdir()}


def names(items: tuple[cleaning.Item, ...]) -> set[str]:
    return {f"{item.name}/{item.path.name}" for item in items}


def files(folder: Path) -> set[Path]:
    """Every file but the locks, marks and journals that looking makes."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "open")
    return {path for path in found if not path.name.endswith(("lock", "-wal", "-shm"))}


def test_what_the_preview_says_is_what_goes_and_what_stays_goes_on(
    studio: dict[str, Run], home: Path
) -> None:
    finished, stopped = studio["finished"], studio["stopped"]
    steps, losses = series(finished.metrics()[0], "eval_loss")
    best = min(zip(losses, steps, strict=True))[1]
    assert [checkpoints.step_of(c) for c in checkpoints.of(finished)] == [4, 8, 12] == steps
    before, last = files(home), checkpoints.of(stopped)[-1]
    plan = cleaning.plan(BOTH)
    assert files(home) == before
    wanted = {f"finished/checkpoint-{step}" for step in (4, 8) if step != best}
    wanted |= {f"stopped/{c.name}" for c in checkpoints.of(stopped)[:-1]}
    assert names(plan.items) == wanted and len(wanted) >= 2
    assert not any(item.warning for item in plan.items)
    assert f"stopped: {last.name} stays, the last, and there is no measure of the best." in plan.stays
    assert any("a folder of your own" in said for said in plan.stays)

    gone = cleaning.clean(plan)
    assert gone.items == plan.items and gone.stays == ()
    removed = before - files(home)
    assert removed == {path for path in before if any(path.is_relative_to(item.path) for item in plan.items)}
    assert sum(item.size for item in plan.items) > 100_000

    assert load_file(checkpoints.of(finished)[-1] / "adapter_model.safetensors")
    assert {row.state for row in list_adapters()} == {"ok"} and len(list_adapters()) == 2
    assert checkpoints.latest(stopped) == last and control.why_not_resumable(stopped) is None
    (stopped.folder / "config.yaml").write_text(
        (stopped.folder / "config.yaml")
        .read_text()
        .replace("max_steps: 400", f"max_steps: {checkpoints.step_of(last) + 2}")
    )
    leader = locks.lock(home / "mlruns" / "supervisor.lock")  # no other one starts it
    control.resume(stopped)
    assert worker.run_here(stopped) == 0
    os.close(leader or 0)
    assert stopped.status().state == "finished" and stopped.status().first_step == checkpoints.step_of(last)
    assert cleaning.plan(BOTH, runs=["nobody"]).items == ()


def test_all_checkpoints_go_only_with_a_word_on_what_is_lost(studio: dict[str, Run], home: Path) -> None:
    stopped = studio["stopped"]
    plan = cleaning.plan(())
    assert {item.run for item in plan.items} == {studio["finished"].id, stopped.id}
    (lost,) = [item for item in plan.items if "resumed" in item.warning]
    assert lost.path == checkpoints.of(stopped)[-1]
    assert {item.path.name for item in plan.items if item.name == "finished" and "the last" in item.warning}
    weights = files(home / "mlruns" / "artifacts") | files(studio["finished"].folder / "output")
    cleaning.clean(plan)
    assert not checkpoints.within(studio["finished"].checkpoints) and not checkpoints.within(
        stopped.checkpoints
    )
    assert control.why_not_resumable(stopped)
    assert weights and all(path.exists() for path in weights)
    assert checkpoints.within(studio["elsewhere"].checkpoints)  # a folder that a person named


def test_a_run_that_works_or_waits_keeps_everything(studio: dict[str, Run], home: Path) -> None:
    finished, stopped = studio["finished"], studio["stopped"]
    before, plan = files(home), cleaning.plan(())
    waiting = made(home, "waiting", resume_from_checkpoint=str(checkpoints.of(finished)[0]))
    lock = locks.lock(stopped.lock_path)
    gone = cleaning.clean(plan)  # made before there was anybody to wait
    assert {item.name for item in gone.items} == {"finished"} and len(gone.items) == 2
    assert any("waiting begins with it" in said for said in gone.stays)
    assert sum("its run is running" in said for said in gone.stays) == len(checkpoints.of(stopped))
    os.close(lock or 0)
    stopped.update(state="queued")
    assert not [item for item in cleaning.plan(()).items if item.name in ("stopped", "waiting")]
    assert (
        cleaning.clean(
            cleaning.Plan(tuple(i for i in plan.items if i.name == "stopped"), keep=frozenset())
        ).items
        == ()
    )
    assert before - files(home) == {
        path for path in before if any(path.is_relative_to(i.path) for i in gone.items)
    }
    assert waiting.exists


def test_a_damaged_last_checkpoint_saves_the_ones_before_it(studio: dict[str, Run]) -> None:
    stopped = studio["stopped"]
    plan = cleaning.plan(BOTH, runs=[stopped.id])
    weights = checkpoints.of(stopped)[-1] / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # as long as before
    gone = cleaning.clean(plan)
    assert plan.items and gone.items == () and all("damaged" in said for said in gone.stays)
    assert checkpoints.latest(stopped) == checkpoints.of(stopped)[-2]


def test_links_and_foreign_paths_are_left_alone(studio: dict[str, Run], home: Path, tmp_path: Path) -> None:
    finished = studio["finished"]
    outside = tmp_path / "outside"
    for name in ("checkpoint-1", "references"):
        (outside / name).mkdir(parents=True)
        (outside / name / "weights.npz").write_text("precious")
    (finished.checkpoints / "checkpoint-1").symlink_to(outside / "checkpoint-1")
    shutil.rmtree(home / "mlruns" / "references", ignore_errors=True)
    (home / "mlruns" / "references").symlink_to(outside / "references")
    plan = cleaning.plan((), caches=True)
    assert not [
        item for item in plan.items if item.path.name == "checkpoint-1" or "references" in str(item.path)
    ]
    forged = [
        cleaning.Item(finished.checkpoints / "checkpoint-1", 1, "checkpoint", finished.id),
        cleaning.Item(finished.folder / "output", 1, "checkpoint", finished.id),
        cleaning.Item(finished.checkpoints / ".." / "output", 1, "checkpoint", finished.id),
        cleaning.Item(home / "mlruns" / "references" / "weights.npz", 1, "cache"),
        cleaning.Item(home / "mlruns" / "artifacts", 1, "cache"),
        cleaning.Item(outside / "references", 1, "cache"),
    ]
    before = files(home) | files(outside)
    gone = cleaning.clean(cleaning.Plan(tuple(forged), keep=frozenset()))
    assert gone.items == () and len(gone.stays) == len(forged)
    assert files(home) | files(outside) == before


def test_what_an_adapter_was_trained_on_stays(studio: dict[str, Run]) -> None:
    first = checkpoints.of(studio["finished"])[0]
    with sqlite3.connect(store.database() or "") as db:
        db.execute(
            "UPDATE model_version_tags SET value = ? WHERE key = 'base' AND version = 2", (str(first),)
        )
    plan = cleaning.plan((), runs=[studio["finished"].id])
    assert first not in {item.path for item in plan.items}
    assert any("the adapter model-pairs-dpo 2 needs it" in said for said in plan.stays)


def test_what_a_run_began_with_stays_until_it_has_finished(studio: dict[str, Run], home: Path) -> None:
    first = checkpoints.of(studio["finished"])[0]
    follower = made(home, "follower", adapter_name_or_path=str(first))
    for state, stays in (("failed", True), ("finished", False)):
        follower.update(state=state)
        plan = cleaning.plan((), runs=[studio["finished"].id])
        assert (first not in {item.path for item in plan.items}) == stays
        assert any("follower needs it to be resumed" in said for said in plan.stays) == stays


def test_caches_go_and_come_back(studio: dict[str, Run], home: Path) -> None:
    run(home, "kept rows", max_steps=2, tokenized_path="rows/kept", save_strategy="no")
    (home / "rows" / "mine.txt").write_text("not a cache")
    plan = cleaning.plan(caches=True)
    assert {item.what for item in plan.items} >= {"tokenised rows", "reference log-probs"}
    assert sum(item.size for item in plan.items if item.what == "tokenised rows") == room.size_of(
        home / "rows" / "kept"
    )
    gone = cleaning.clean(plan)
    assert gone.items == plan.items and not any(item.path.exists() for item in plan.items)
    assert (home / "rows" / "mine.txt").exists()
    run(home, "again", max_steps=2, tokenized_path="rows/kept", save_strategy="no")
    assert (home / "rows" / "kept").is_dir()
    studio["stopped"].update(state="running")
    assert cleaning.plan(caches=True).items == ()


def test_merged_models_go_but_those_that_something_here_fits(studio: dict[str, Run], home: Path) -> None:
    needed, free = (home / "mlruns" / "models" / name for name in ("needed", "free"))
    for folder in (needed, free):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    file = studio["stopped"].folder / "output" / "adapter_config.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"base_model_name_or_path": str(needed)}))
    plan = cleaning.plan(caches=True)
    assert [item.path for item in plan.items if item.path.parent == free.parent] == [free]
    assert "needed stays: the adapter in stopped needs it." in plan.stays
    cleaning.clean(plan)
    assert needed.is_dir() and not free.exists()


def test_the_best_is_what_the_run_itself_says(studio: dict[str, Run]) -> None:
    finished = studio["finished"]
    first, second, last = checkpoints.of(finished)
    found = checkpoints.best(finished)
    assert found is not None and found[1] == "eval_loss"
    config = finished.folder / "config.yaml"
    config.write_text(config.read_text().replace("greater_is_better: null", "greater_is_better: true"))
    other = checkpoints.best(finished)
    assert other is not None and other[0] != found[0]
    state = json.loads((last / "trainer_state.json").read_text())
    for noted in (first, second):
        (last / "trainer_state.json").write_text(json.dumps(state | {"best_model_checkpoint": str(noted)}))
        assert checkpoints.best(finished) == (noted, "eval_loss")
    assert checkpoints.best(studio["stopped"]) is None


def test_the_shell_shows_first_and_removes_with_yes(
    studio: dict[str, Run], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(home)
    for wrong in ([], ["--keep", "first"], ["--keep", ""]):
        assert cli.main(["clean", *wrong]) == 2
    capsys.readouterr()
    assert cli.main(["clean", "--keep", "best,last", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert files(home) == before and {row["done"] for row in shown} == {"would go"}
    assert cli.main(["clean", "--keep", "best,last", "--run", studio["stopped"].id[:12]]) == 0
    out, err = capsys.readouterr()
    assert "Would go" in out and "--yes" in err and "finished" not in out
    assert cli.main(["clean", "--keep", "best,last", "--json", "--yes"]) == 0
    done = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in done] == [row["path"] for row in shown] and shown
    assert not any(Path(row["path"]).exists() for row in done)


def test_what_takes_room_adds_up(
    studio: dict[str, Run], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["disk", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    inside = [path for path in (home / "mlruns").rglob("*") if path.is_file() and not path.is_symlink()]
    assert told["total"] == sum(path.stat().st_size for path in inside) == sum(told["kinds"].values())
    finished = studio["finished"]
    assert told["runs"][finished.id]["checkpoints"] == sum(map(room.size_of, checkpoints.of(finished)))
    linked = studio["elsewhere"]
    assert told["runs"][linked.id]["checkpoints"] == sum(map(room.size_of, checkpoints.of(linked))) > 0
    assert cli.main(["disk"]) == 0
    out = capsys.readouterr().out
    assert "checkpoints of runs" in out and finished.id in out
