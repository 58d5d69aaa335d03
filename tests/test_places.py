"""A studio whose folder is read-only, forbidden, in the way or gone: one sentence, and nothing is tried again for ever."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.disk import SmallDisk

from tuner import cli, samples, worker
from tuner.config.config import check
from tuner.jobs import queue, submit, supervisor
from tuner.runs import worker_lock
from tuner.runs.run import Run
from tuner.ui import server

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command line that preflight lets pass: a model and a set, of which only the names are looked at."""
    model, data = tmp_path / "model", tmp_path / "data"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").touch()
    data.mkdir()
    (data / "chat.json").write_text('[{"instruction": "a", "output": "b"}]')
    (data / "dataset_info.json").write_text('{"chat": {"file_name": "chat.json"}}')
    return [
        f"--model_name_or_path={model}", "--stage=sft", "--do_train", "--dataset=chat", f"--dataset_dir={data}",
    ]  # fmt: skip


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A studio on a disk that nobody may write any more, not even root; the run that waits in it."""
    disk = SmallDisk(tmp_path / "disk")
    try:
        monkeypatch.setenv("TUNER_HOME", str(disk.path))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        config, _ = check({"model_name_or_path": "m"})
        assert config is not None
        run = Run("0" * 32)
        run.create(config, "waits")
        submit.place(run)
        if not disk.make_read_only():
            pytest.skip("no file system may be mounted here")
        yield run
    finally:
        disk.close()


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a verb that cannot begin says: exit code 2, one line."""
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("tuner: ") and lines[0].endswith("."), lines
    return lines[0]


IN_THE_WAY: dict[str, Callable[[Path], str]] = {
    "a file in the way": lambda folder: str(_file(folder / "file")),
    "below a file": lambda folder: str(_file(folder / "file") / "home"),
    "a kernel's folder": lambda folder: "/sys",
}


def _file(path: Path) -> Path:
    path.write_text("not a folder")
    return path


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_a_dashboard_without_a_place_for_the_samples_says_so_and_goes_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNER_HOME", IN_THE_WAY[kind](tmp_path))
    server.lay_out()
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) == 1 and lines[0].startswith("tuner cannot lay out the samples: ") and lines[0][-1] == "."
    )


def test_samples_that_were_laid_out_in_part_are_completed(home: Path) -> None:
    samples.lay_out()
    (home / "data" / "dataset_info.json").unlink()  # which comes last
    (home / "data" / "starter" / "model.safetensors").unlink()
    (home / "data" / "starter_kto.json").write_text("mine")
    samples.lay_out()
    assert (home / "data" / "dataset_info.json").is_file()
    assert (home / "data" / "starter" / "model.safetensors").is_file()
    assert (home / "data" / "starter_kto.json").read_text() == "mine"
    (home / "data" / "starter_pt.jsonl").unlink()
    samples.lay_out()
    assert not (home / "data" / "starter_pt.jsonl").exists()  # what a person deletes stays deleted


@pytest.mark.parametrize("kind", IN_THE_WAY)
@pytest.mark.parametrize("verb", ["train", "submit", "queue --pause"])
def test_a_home_that_cannot_be_made_is_one_sentence(
    verb: str,
    kind: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = IN_THE_WAY[kind](tmp_path)
    monkeypatch.setenv("TUNER_HOME", home)
    said = refused(capsys, *verb.split(), *(words if verb != "queue --pause" else ()))
    assert home in said and "TUNER_HOME" in said


@pytest.mark.parametrize("verb", ["train", "submit", "queue --pause", "stop", "stop --now", "resume"])
def test_a_read_only_home_is_one_sentence(
    verb: str, words: list[str], read_only: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    if verb in ("train", "submit"):
        said = refused(capsys, verb, *words)
    elif verb == "resume":
        assert "queue already" in refused(capsys, verb, read_only.id)
        return
    else:
        said = refused(capsys, *verb.split(), *([] if "queue" in verb else [read_only.id]))
    assert "may not be read or written" in said


def test_a_read_only_home_can_be_looked_at(read_only: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("queue", "runs"):
        assert cli.main([verb, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["id"] == read_only.id
    assert cli.main(["wait", read_only.id, "--timeout", "0.1"]) in (1, 2)


@pytest.mark.parametrize("module", ["tuner.jobs.supervisor", "tuner.worker", "tuner"])
def test_a_process_that_finds_its_home_read_only_leaves_at_once(module: str, read_only: Run) -> None:
    words = {"tuner.worker": [read_only.id], "tuner": ["sync"]}.get(module, [])
    done = subprocess.run(
        [sys.executable, "-m", module, *words], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 2 or module == "tuner"
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 1, done.stderr
    assert read_only.status().state == "queued"


def test_a_folder_that_was_deleted_under_a_shell(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os, shutil, sys; shutil.rmtree({str(gone)!r}); from tuner import cli; sys.exit(cli.main(sys.argv[1:]))"
    monkeypatch.delenv("TUNER_HOME", raising=False)
    for verb in (["submit", *words], ["queue"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *verb],
            capture_output=True,
            text=True,
            cwd=gone,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
        )
        assert done.returncode == 2
        assert "was started in is gone" in done.stderr and "Traceback" not in done.stderr
        gone.mkdir()


def test_a_supervisor_leaves_a_studio_that_was_deleted_and_does_not_bring_it_back(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    monkeypatch.setenv("TUNER_SUPERVISOR_IDLE", "60")
    config, _ = check({"model_name_or_path": "m", "max_steps": 10_000})
    assert config is not None
    run = Run("1" * 32)
    run.create(config, "at work")
    submit.place(run)
    supervising = subprocess.Popen(
        [sys.executable, "-m", "tuner.jobs.supervisor"], stderr=subprocess.DEVNULL, cwd=ROOT
    )
    try:
        _until(lambda: run.status().step > 0)
        pid = run.status().pid
        (home / "mlruns").rename(home / "bin")  # gone at once, for its worker is writing there
        assert supervising.wait(timeout=10) == 0
        _until(lambda: not worker_lock._exists(pid))  # its worker has nowhere to write either
        assert not (home / "mlruns").exists()
    finally:
        supervising.kill()


def test_a_run_whose_folder_is_deleted_does_not_occupy_the_supervisor(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = check({"model_name_or_path": "m"})
    assert config is not None
    run = Run("2" * 32)
    run.create(config, "at work")
    run.update(state="running", pid=os.getpid(), boot_id="another boot")
    one = supervisor.Supervisor()
    one._adopt(queue.unended())
    shutil.rmtree(run.folder)
    one.tick()
    assert not one.watches and not run.folder.exists()


def test_a_worker_without_a_folder_to_write_says_so(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = check({"model_name_or_path": "m"})
    assert config is not None
    run = Run("3" * 32)
    run.create(config, "unlucky")
    run.lock_path.mkdir()  # nobody can hold a folder as a lock
    assert worker.main(run.id) == 2
    assert "is in the way" in capsys.readouterr().err


def _until(true: Callable[[], object], seconds: float = 15.0) -> None:
    import time

    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
