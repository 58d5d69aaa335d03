"""The queue, the supervisor, stop, resume and what is said of a dead worker: with real processes, locks and signals.

The worker is tests/faults/short_worker.py, which keeps the real protocol and trains nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import psutil
import pytest
from _pytest.mark import ParameterSet
from faults import making
from faults.points import POINTS
from faults.saving import kill_while_saving
from faults.storm import Storm
from faults.tracker import Tracker

from tuner import cli, hardware, paths
from tuner.config.config import check
from tuner.config.knobs import ConfigError, Problem
from tuner.jobs import control, launch, queue, reconcile, resuming, slots, submit, supervisor, watch
from tuner.jobs.foreground import take_slot
from tuner.runs import checkpoints, locks, reasons, worker_lock
from tuner.runs.run import Run, all_runs
from tuner.runs.status import ENDED
from tuner.text.message import Message, of_tag
from tuner.tracking import mirror
from tuner.tracking.outcome import forget_old_secrets
from tuner.tracking.runs import RunFilter, create_run, get_row, list_runs, sweep_tags

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def studio(launching_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh studio whose workers are short ones; whatever was started in it is gone afterwards."""
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    return launching_home


@pytest.fixture
def quiet() -> Iterator[None]:
    """No supervisor starts: this test holds its lock."""
    supervisor.leader_path().parent.mkdir(exist_ok=True)
    lock = locks.lock(supervisor.leader_path())
    assert lock is not None
    yield
    os.close(lock)


def new_run(steps: int = 5, fault: str = "", **values: object) -> Run:
    """A run in its folder only, which is all that the queue and the supervisor know of one."""
    config, _ = check({"model_name_or_path": "m", "max_steps": steps, "save_steps": 2, **values})
    assert config is not None
    run = Run(uuid.uuid4().hex)
    run.create(config, f"{steps} steps")
    if fault:
        (run.folder / "fault").write_text(fault)
    return run


def until(true: Callable[[], object], seconds: float = 60.0) -> float:
    """Seconds it took to become true."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - began


def starts(run: Run) -> list[list[float]]:
    """[pid, resumes, seconds on the machine's own clock] of every worker that began."""
    file = run.folder / "starts"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def left(run: Run) -> float:
    """When the last worker of a run had said its last word, on that same clock."""
    return float((run.folder / "left").read_text())


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_supervisor() -> None:
    until(supervisor.leader)
    kill(supervisor.leader() or 0)


# --- one run's way


def test_a_submitted_run_is_started_watched_and_ends() -> None:
    run = submit.launch(new_run())
    assert control.wait(run, timeout=60).state == "finished"
    assert len(starts(run)) == 1
    until(lambda: not worker_lock.alive(run))
    until(lambda: not supervisor.supervised())  # gone when idle


def child_of(run: Run) -> int:
    """The process id that a deaf worker writes down of its child, once it is written."""
    file = run.folder / "child"
    until(lambda: file.exists() and file.read_text())
    return int(file.read_text())


def test_a_worker_that_hears_nothing_is_killed_after_its_grace_with_its_children() -> None:
    run = submit.launch(new_run(fault="deaf@1"))
    child = child_of(run)
    control.stop(run, grace=0.5)
    took = until(lambda: run.status().state in ENDED, 10)
    assert took < 0.5 + 5
    assert run.status().state == "stopped" and "Nothing was saved" in run.status().reason
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_worker_that_is_known_only_after_its_grace_is_terminated_before_it_is_killed(quiet: None) -> None:
    run = new_run()
    run.request("stop")
    (run.folder / "requests" / "grace").write_text("1")
    watching = watch.Watch(run)
    watching.press()
    time.sleep(1.1)
    watching.press()
    assert watching.pressed == 0
    with subprocess.Popen(["sleep", "60"]) as worker:
        watching.pid = worker.pid
        watching.press()
        assert worker.wait(timeout=10) == -signal.SIGTERM


@pytest.mark.parametrize("watched", [pytest.param(True, marks=pytest.mark.faults), False])
def test_children_of_a_killed_worker_do_not_live_on(watched: bool) -> None:
    run = submit.launch(new_run(fault="deaf@1"))
    child = child_of(run)
    if not watched:
        kill_supervisor()
    kill(run.status().pid)
    control.wait(run, timeout=60)
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


# --- the queue


def test_two_runs_never_share_the_slot_and_start_in_the_order_shown() -> None:
    queue.pause()
    first, second, third = (submit.launch(new_run(steps=2)) for _ in range(3))
    queue.move(third.id, 1)
    assert [row.id for row in queue.queue()] == [third.id, first.id, second.id]
    assert queue.queue()[0].why == "The queue is paused."
    queue.pause(False)
    supervisor.ensure_supervisor()
    for run in (third, first, second):
        assert control.wait(run, timeout=60).state == "finished"
    began = {run.id: starts(run)[0][2] for run in (first, second, third)}
    assert left(third) <= began[first.id] and left(first) <= began[second.id]


def test_a_run_on_hold_lets_the_others_pass_and_a_cancelled_one_never_begins() -> None:
    queue.pause()
    held, cancelled, passed = (submit.launch(new_run(steps=2)) for _ in range(3))
    queue.hold_back(held.id)
    assert control.stop(cancelled) == "Cancelled while queued."
    queue.pause(False)
    supervisor.ensure_supervisor()
    assert control.wait(passed, timeout=60).state == "finished"
    assert held.status().state == "queued" and not starts(held)
    assert cancelled.status().state == "stopped" and not starts(cancelled)
    queue.hold_back(held.id, False)
    supervisor.ensure_supervisor()
    assert control.wait(held, timeout=60).state == "finished"


def test_many_submitters_at_once_start_each_run_once_and_one_supervisor() -> None:
    runs = [new_run(steps=1) for _ in range(2)]
    threads = [threading.Thread(target=submit.launch, args=(run,)) for run in runs for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(control.wait(run, timeout=60).state == "finished" for run in runs)
    assert [len(starts(run)) for run in runs] == [1] * 2


def test_a_lost_or_torn_order_file_loses_no_run(studio: Path, quiet: None) -> None:
    run = submit.launch(new_run(steps=1))
    order = studio / "mlruns" / "queue.json"
    order.write_text('{"ids": [')
    run.update(created=time.time() - 60)  # a run that nobody put in order is nobody's for some seconds
    assert [row.id for row in queue.queue()] == [run.id]
    order.unlink()
    assert queue.waiting() == [run.id]


def test_runs_on_two_gpus_side_by_side_and_one_that_wants_both_is_not_starved() -> None:
    gpus = (0, 1)
    assert slots.wanted(None, False, gpus) == (("gpu0", "gpu1"), 1)
    assert slots.wanted((0, 1), False, gpus) == (("gpu0", "gpu1"), 2)
    assert slots.wanted(None, True, gpus) == (("cpu",), 1)
    one = slots.take("a", ("gpu0", "gpu1"), 1)
    assert one is not None and slots.gpus_of(one) == (0,)
    assert slots.take("b", ("gpu0", "gpu1"), 2) is None
    other = slots.take("b", ("gpu0", "gpu1"), 1)
    assert other is not None and slots.gpus_of(other) == (1,)
    assert slots.holder("gpu1") == "b"
    slots.release(one | other)
    assert slots.holder("gpu1") is None


def test_a_gpu_that_is_not_there_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match="GPU 97 is not in this machine"):
        slots.check_gpus([97])
    with pytest.raises(ConfigError, match="GPUs 97, 98 are not in this machine"):
        slots.check_gpus([97, 98])
    with pytest.raises(ConfigError, match="--gpus 0,0 names a GPU twice"):
        slots.check_gpus([0, 0])


# --- death of a worker


def test_a_killed_worker_is_explained_within_five_seconds_and_can_be_resumed() -> None:
    run = submit.launch(new_run(steps=500))
    until(lambda: run.status().step >= 3)
    kill(run.status().pid)
    took = until(lambda: run.status().state in ENDED)
    status = run.status()
    assert took < 5
    assert status.state == "failed" and status.reason_code == "killed" and status.exit_code == -9
    assert "signal 9" in status.reason and "checkpoint-" in status.reason
    assert status.remedies == [reasons.RESUME]
    assert control.why_not_resumable(run) is None


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        pytest.param("disk-full", "disk_full", "free some space", marks=pytest.mark.faults),
        ("left@0", "error", "exit code 3"),
    ],
)
def test_how_it_failed_is_said_in_words(fault: str, code: str, words: str) -> None:
    run = submit.launch(new_run(fault=fault, per_device_train_batch_size=4))
    status = control.wait(run, timeout=60)
    assert status.state == "failed"
    assert status.reason_code == code
    assert words in status.reason


@pytest.mark.faults
def test_a_worker_that_dies_while_it_tells_mlflow_has_finished_all_the_same() -> None:
    run = submit.launch(new_run(fault="closing"))
    assert control.wait(run, timeout=60).state == "finished"


def test_what_was_decided_before_the_worker_died_holds(quiet: None) -> None:
    run, failed = new_run(), new_run()
    run.update(state="running", phase="closing")
    failed.update(
        state="running", phase="closing", cause=Message("disk_full.told", {"text": "The disk is full."})
    )
    assert watch.finalize(run, -9).state == "finished"
    assert watch.finalize(failed, -9).reason == "The disk is full."


def test_the_kernels_memory_kill_is_told_from_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Path("/sys/fs/cgroup/memory") / f"tuner-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(128 * 2**20))
    except OSError:
        pytest.skip("no memory control group can be made here")
    monkeypatch.setenv("TUNER_OOM_GROUP", str(group))
    monkeypatch.setenv("TUNER_STALL_SECONDS", "1")
    monkeypatch.setenv("TUNER_STALL_PREPARING", "1")  # before a supervisor has seen two steps
    try:
        run = submit.launch(new_run(fault="group-full", per_device_train_batch_size=4))
        status = control.wait(run, timeout=60)
        assert (status.state, status.reason_code) == ("failed", "out_of_memory")
        assert status.remedies[0]["values"] == {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2 * run.config().gradient_accumulation_steps,
        }
    finally:
        until(lambda: not (group / "cgroup.procs").read_text().strip())
        group.rmdir()


def test_a_suspended_worker_is_shown_as_stalled_and_stop_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_STALL_SECONDS", "1")
    run = submit.launch(new_run(steps=50, fault="hung@30"))
    until(lambda: run.status().step == 29)
    assert watch.stalled(run) == ""
    took = until(lambda: watch.stalled(run))
    assert took > 0.5
    assert "No progress" in watch.stalled(run) and "SIGSTOP" in watch.stalled(run)
    control.stop(run, grace=0.2)
    assert control.wait(run, timeout=60).state == "stopped"


def test_a_clock_that_is_set_makes_nobody_late_and_no_time_negative(
    studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = studio / "clock"
    clock.write_text("0")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'faults' / 'clock'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("TUNER_CLOCK", str(clock))
    monkeypatch.setenv("TUNER_STALL_SECONDS", "3")
    monkeypatch.setenv("TUNER_STALL_PREPARING", "15")
    first, second = submit.launch(new_run(steps=100)), submit.launch(new_run(steps=5))
    for hours in (1, -1, 0, -1):
        step = first.status().step
        until(lambda step=step: first.status().step > step + 15)  # type: ignore[misc]
        status = first.status()
        assert status.state == "running" and watch.stalled(first) == ""
        assert status.eta is not None and 0 < status.eta < 60
        clock.write_text(str(3600 * hours))
    for run in (first, second):
        status = control.wait(run, timeout=60)
        assert status.state == "finished" and status.ended >= status.started > 0
    assert [row.id for row in queue.queue()] == [] and [len(starts(r)) for r in (first, second)] == [1, 1]


def test_an_end_is_never_before_the_beginning(quiet: None) -> None:
    later = time.time() + 3600  # the clock was an hour ahead when the run began
    for boot_id in (hardware.boot_id(), "another boot"):
        run = new_run()
        run.update(state="running", boot_id=boot_id, started=later)
        assert watch.finalize(run, None).ended >= later


# --- death of the supervisor


def test_a_worker_outlives_its_supervisor_and_the_next_one_watches_it() -> None:
    run = submit.launch(new_run(steps=80))
    until(lambda: run.status().step > 2)
    kill_supervisor()
    until(lambda: not supervisor.supervised())
    pid = run.status().pid
    supervisor.ensure_supervisor()
    assert control.wait(run, timeout=60).state == "finished"
    assert [p for p, _, _ in starts(run)] == [pid]


def test_a_supervisor_that_slept_too_long_does_not_leave_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take it for somebody else's, and not know how it ended."""
    monkeypatch.setenv(
        "TUNER_SUPERVISOR_IDLE", "0.1"
    )  # less than one sleep, as on a machine with too much to do
    run = submit.launch(new_run(steps=500))
    until(lambda: run.status().step > 40)
    kill(run.status().pid)
    until(lambda: run.status().state in ENDED)
    assert run.status().exit_code == -9


def test_a_worker_that_dies_unwatched_is_interrupted_and_not_started_again() -> None:
    run = submit.launch(new_run(steps=500))
    until(lambda: run.status().step > 2)
    kill_supervisor()
    kill(run.status().pid)
    until(lambda: not supervisor.supervised())
    supervisor.ensure_supervisor()
    status = control.wait(run, timeout=60)
    assert (status.state, status.reason_code) == ("interrupted", "killed")
    time.sleep(0.5)
    assert len(starts(run)) == 1


def _some(points: Iterable[str], *fast: str) -> list[ParameterSet | str]:
    """A few of them in the fast suite, all in the long one."""
    return [p if p in fast else pytest.param(p, marks=pytest.mark.faults) for p in points]


@pytest.mark.parametrize("point", _some(POINTS, "intent-written", "started-unrecorded", "outcome-unwritten"))
def test_a_supervisor_killed_at_any_point_starts_nothing_twice_and_forgets_nothing(point: str) -> None:
    killed = point in ("dead-unburied", "outcome-unwritten", "outcome-written")
    run = new_run(steps=3, fault="killed@2" if killed else "")
    submit.place(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_FAULT", point)
        assert forks.done(forks.program("tests.faults.points"), log=paths.home() / "said") == [-9]
    supervisor.ensure_supervisor()
    status = control.wait(run, timeout=60)
    assert status.state == {True: "interrupted", False: "finished"}[killed] or point == "outcome-written"
    assert status.reason or status.state == "finished"
    assert len(starts(run)) == 1


def test_what_a_reboot_ended_is_interrupted_even_if_its_pid_lives_again() -> None:
    run = new_run()
    run.update(state="running", pid=os.getpid(), boot_id="another boot", step=7)
    supervisor.ensure_supervisor()
    status = control.wait(run, timeout=60)
    assert (status.state, status.reason_code) == ("interrupted", "rebooted")
    assert "restarted" in status.reason


def lost_in_a_reboot(run: Run, step: int) -> None:
    """Let a run get to a step, then take worker and supervisor away as a restart of the machine does."""
    until(lambda: run.status().step > step)
    kill_supervisor()
    kill(run.status().pid)
    until(lambda: not supervisor.supervised() and not worker_lock.alive(run))
    run.update(boot_id="another boot")


def test_a_run_goes_on_by_itself_after_a_reboot_only_where_it_was_asked_for() -> None:
    run = submit.launch(new_run(steps=60, auto_resume=True))
    lost_in_a_reboot(run, 3)
    lost = run.status().step
    supervisor.ensure_supervisor()
    status = control.wait(run, timeout=60)
    assert status.state == "finished" and 2 <= status.first_step <= lost
    assert f"restarted at step {lost}; the run went on by itself from checkpoint-" in status.notes[0]
    assert [n for _, n, _ in starts(run)] == [0, 1]


@pytest.mark.parametrize(
    "changes",
    [{"auto_resume": False}, {"again": "checkpoint-4"}, {"asked": "stop"}, {"checkpoints": ()}],
    ids=["not asked for", "twice from one checkpoint", "was being stopped", "nothing to go on from"],
)
def test_a_reboot_is_left_to_the_person(changes: dict[str, object], quiet: None) -> None:
    run = trained(*changes.get("checkpoints", (2, 4)), auto_resume=changes.get("auto_resume", True))  # type: ignore[misc]
    run.update(state="running", step=5, pid=os.getpid(), boot_id="another boot")
    run.update(auto_resumed=changes.get("again", "checkpoint-2"))
    if "asked" in changes:
        run.request("stop")
    supervisor.Supervisor().tick()
    assert (run.status().state, run.status().reason_code) == ("interrupted", "rebooted")


def test_a_run_that_got_further_is_taken_up_again_after_the_next_reboot(quiet: None) -> None:
    run = trained(2, 4, auto_resume=True)
    run.update(state="running", step=5, boot_id="another boot", auto_resumed="checkpoint-2")
    assert resuming.after_reboot(run)
    assert run.status().state == "queued" and queue.waiting() == [run.id]
    assert run.status().resume_from.endswith("checkpoint-4")


def test_a_reused_pid_is_not_taken_for_the_worker() -> None:
    run = new_run()
    run.update(state="running", pid=os.getpid(), boot_id=hardware.boot_id(), step=7)
    assert not worker_lock.alive(run) and control.pid_of(run) is None
    control.stop(run)
    assert run.status().state == "interrupted"  # and this process is still here to say so


def test_a_home_that_cannot_be_written_is_said_in_one_error(studio: Path) -> None:
    blocked = studio / "mlruns"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(OSError, match="mlruns"):
        supervisor.ensure_supervisor()


def test_a_dashboard_that_starts_takes_up_what_waits_before_anybody_looks(studio: Path) -> None:
    run = new_run(steps=2)
    submit.place(run)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-m", "tuner.ui.server", "--port", port]
    page = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: run.status().state == "finished")
    finally:
        page.kill()
        page.wait()


# --- resume


def trained(*steps: int, **values: object) -> Run:
    """An interrupted run with checkpoints of these steps."""
    run = new_run(steps=20, **values)
    for step in steps:
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(range(100)))
        checkpoints.seal(folder, run)
    run.update(state="interrupted", step=max(steps, default=0) + 1)
    return run


def test_a_damaged_checkpoint_is_passed_over_and_it_is_said(quiet: None) -> None:
    run = trained(2, 4, 6)
    weights = run.checkpoints / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    (run.checkpoints / "checkpoint-4" / "model.safetensors").unlink()
    control.resume(run)
    status = run.status()
    assert status.state == "queued"
    assert status.resume_from.endswith("checkpoint-2")
    assert "checkpoint-6" in status.notes[0] and "checkpoint-4" in status.notes[0]


def test_resume_from_a_chosen_checkpoint(quiet: None) -> None:
    run = trained(2, 4)
    with pytest.raises(control.Refused, match="checkpoint-3"):
        control.resume(run, "checkpoint-3")
    control.resume(run, "checkpoint-2")
    assert run.status().resume_from.endswith("checkpoint-2")
    assert queue.waiting() == [run.id]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "finished"}, "clone it"),
        ({"state": "queued"}, "queue already"),
        ({"state": "failed", "step": 9}, "first complete checkpoint"),
    ],
)
def test_resume_is_refused_with_the_reason(changes: dict[str, object], words: str, quiet: None) -> None:
    run = new_run()
    run.update(**changes)
    with pytest.raises(control.Refused, match=words):
        control.resume(run)


def test_a_run_that_never_took_a_step_begins_again(quiet: None) -> None:
    run = new_run()
    run.update(state="failed", cause=Message("missing_file.told", {"text": "gone"}))
    control.resume(run)
    assert run.status().state == "queued" and not run.status().reason


def test_a_double_click_on_resume_queues_it_once(quiet: None) -> None:
    run = trained(2)
    threads = [threading.Thread(target=lambda: _refusable(run)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.waiting() == [run.id]
    assert run.status().resumes == 1


def _refusable(run: Run) -> None:
    with suppress(control.Refused):
        control.resume(run)


# --- in the foreground

FOREGROUND = """
import sys
from tuner.jobs.control import Refused
from tuner.jobs.foreground import run_in_foreground
from tuner.runs.run import Run
try:
    sys.exit(run_in_foreground(Run(sys.argv[1]), wait=sys.argv[2] == "wait"))
except Refused as refused:
    print(refused)
    sys.exit(2)
"""


def foreground(run: Run, wait: bool) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", FOREGROUND, run.id, "wait" if wait else "no"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_terminal_waits_its_turn_or_says_why_not() -> None:
    first = submit.launch(new_run(steps=10_000))
    until(lambda: first.status().state == "running")
    refused, patient = new_run(steps=2), new_run(steps=2)
    no = foreground(refused, wait=False)
    said, _ = no.communicate(timeout=60)
    yes = foreground(patient, wait=True)
    assert no.returncode == 2 and first.id in said
    assert yes.stdout is not None
    assert "waits its turn" in yes.stdout.readline()  # it is in the queue, and has looked
    second = submit.launch(new_run(steps=2))
    control.stop(first)
    said, _ = yes.communicate(timeout=60)
    assert yes.returncode == 0, said
    assert patient.status().state == "finished" and refused.status().state == "stopped"
    assert control.wait(second, timeout=60).state == "finished"
    assert left(first) <= starts(patient)[0][2] <= starts(second)[0][2]


def test_what_was_made_and_never_launched_blocks_nobody() -> None:
    """Before there is an order, all that wait come first: a run whose maker died, too. Then somebody has to start it."""
    forgotten = new_run(steps=2)
    forgotten.update(created=time.time() - 60)
    mine = new_run(steps=2)
    terminal = foreground(mine, wait=True)
    said, _ = terminal.communicate(timeout=60)
    assert terminal.returncode == 0 and forgotten.id in said, said
    assert control.wait(forgotten, timeout=60).state == "finished"
    assert starts(forgotten)[0][2] <= starts(mine)[0][2]


def test_a_terminal_does_not_wait_for_a_slot_that_is_not_its_own(
    quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        hardware, "gpus", lambda: tuple(hardware.Gpu(i, "g", 2**33, 0, (9, 0)) for i in range(2))
    )
    other, mine = new_run(), new_run()
    submit.place(other, gpus=[1])
    lock, taken = take_slot(mine, gpus=[0], say=lambda sentence: None)
    assert set(taken) == {"gpu0"}
    slots.release(taken)
    os.close(lock)


@pytest.mark.parametrize("look", ["queue", pytest.param("terminal", marks=pytest.mark.slow)])
def test_whoever_looks_notices_that_the_supervisor_was_killed(
    look: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = submit.launch(new_run(steps=60))
    until(lambda: first.status().step > 1)
    second = submit.launch(new_run(steps=2))
    kill_supervisor()
    until(lambda: not supervisor.supervised())
    if look == "queue":
        assert cli.main(["queue", "--json"]) == 0
        out, err = capsys.readouterr()
        assert [json.loads(line)["id"] for line in out.splitlines()] == [first.id, second.id]
        assert "no supervisor was running" in err
        until(supervisor.supervised)
        assert cli.main(["queue"]) == 0 and "nobody" not in capsys.readouterr().err
    else:
        terminal = foreground(new_run(steps=2), wait=True)
        said, _ = terminal.communicate(timeout=60)
        assert terminal.returncode == 0, said
    for run in (first, second):
        assert control.wait(run, timeout=60).state == "finished"
        assert len(starts(run)) == 1


def test_two_hundred_runs_wait_in_order_and_cost_a_look_little(quiet: None) -> None:
    ids = [new_run(steps=1).id for _ in range(3)]
    for _ in range(197):
        ids.append(uuid.uuid4().hex)
        shutil.copytree(Run(ids[0]).folder, Run(ids[-1]).folder)  # to write a config takes far longer
    for id in ids[:3]:
        submit.place(Run(id))
    with queue.changing() as now:
        now.ids = list(ids)
    assert [row.id for row in queue.queue()] == ids and queue.queue()[-1].why == "199 ahead in the queue."
    queue.move(ids[-1], 1)
    queue.hold_back(ids[0])
    assert queue.waiting() == [ids[-1], *ids[:-1]]
    began = time.process_time()
    for _ in range(20):
        queue.queue()
    assert time.process_time() - began < 20 * 0.1


def test_a_workers_children_do_not_keep_it_alive() -> None:
    run = new_run()
    code = """
import os, sys, time
from tuner.runs import worker_lock
from tuner.runs.run import Run
worker_lock.hold(Run(sys.argv[1]))
if os.fork() == 0:
    time.sleep(600)
print(flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code, run.id], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    assert worker_lock.alive(run)
    parent.kill()
    until(lambda: not worker_lock.alive(run))
    parent.wait()


def test_a_run_outlives_its_terminal() -> None:
    run = new_run(steps=80)
    terminal = foreground(run, wait=True)
    until(lambda: run.status().step > 2)
    terminal.kill()
    terminal.wait()
    assert control.wait(run, timeout=60).state == "finished"
    assert len(starts(run)) == 1


def test_ctrl_c_in_a_terminal_saves_and_ends() -> None:
    run = new_run(steps=500)
    terminal = foreground(run, wait=True)
    until(lambda: run.status().step > 2)
    terminal.send_signal(signal.SIGINT)
    said, _ = terminal.communicate(timeout=60)
    assert terminal.returncode == 0 and "saved a checkpoint" in said
    assert run.status().state == "stopped" and checkpoints.latest(run)


# --- sweeps


def test_a_sweep_is_every_combination_of_the_knobs_with_several_values() -> None:
    rows = submit.expand(
        {"learning_rate": "1e-5,5e-5", "seed": [1, 2], "dataset": "a,b", "lora_target": ["q", "v"]}
    )
    assert len(rows) == 4
    assert rows[0] == {"learning_rate": "1e-5", "seed": 1, "dataset": "a,b", "lora_target": ["q", "v"]}
    assert [(r["learning_rate"], r["seed"]) for r in rows] == [
        ("1e-5", 1),
        ("1e-5", 2),
        ("5e-5", 1),
        ("5e-5", 2),
    ]
    assert [r["dataset"] for r in submit.expand({"dataset": [["a"], ["b", "c"]]})] == [["a"], ["b", "c"]]
    assert submit.expand({"seed": 3}) == [{"seed": 3}]


# --- reasons


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


def _caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (MemoryError(), "out_of_memory"),
        (FloatingPointError("grad_norm became inf at step 3"), "non_finite"),
        (ValueError("The weights are not finite: lora_A"), "non_finite"),
        (OSError(28, "No space left on device", "x"), "disk_full"),
        (RuntimeError("Error: I/O error: No space left on device (os error 28)"), "disk_full"),
        (RuntimeError("basic_ios::clear: iostream error"), "disk_full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "disk_full"),
        (_caused(RuntimeError("could not save"), OSError(28, "No space left on device")), "disk_full"),
        (FileNotFoundError(2, "No such file or directory", "data/x.json"), "missing_file"),
        (PermissionError(13, "Permission denied", "out"), "not_writable"),
        (OSError(30, "Read-only file system", "out"), "not_writable"),
        (ConfigError([Problem("dataset", "Row 7 of x.json has no answer; mend it.")]), "data_error"),
        (KeyError("nobody thought of this"), "error"),
    ],
)
def test_an_exception_becomes_a_reason(error: Exception, code: str) -> None:
    reason = reasons.from_exception(error, {"per_device_train_batch_size": 8, "cutoff_len": 1024})
    assert reason.code == code
    assert reason.sentence.rstrip().endswith(".") and "\n" not in reason.sentence


def _raised(raiser: Callable[[], object]) -> Exception:
    try:
        raiser()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("it raises")


def _wraps_a_lookup() -> None:
    try:
        next(iter(()))
    except StopIteration:
        raise ValueError("The set holds no rows.")  # noqa: B904


@pytest.mark.parametrize(
    ("raiser", "words"),
    [
        (_wraps_a_lookup, "ValueError: The set holds no rows."),
        (lambda: importlib.metadata.version("nosuch-package"), "library nosuch-package is not installed"),
        (lambda: importlib.import_module("nosuchmodule.part"), "`pip install nosuchmodule`"),
        (lambda: next(iter(())), "StopIteration in <lambda> ("),
    ],
)
def test_a_reason_is_what_says_something(raiser: Callable[[], object], words: str) -> None:
    assert words in reasons.from_exception(_raised(raiser), {}).sentence


def test_a_missing_deepspeed_is_named() -> None:
    """transformers raises what importlib raises from a StopIteration."""
    if importlib.util.find_spec("deepspeed"):
        pytest.skip("it is installed")
    from transformers import TrainingArguments

    made = lambda: TrainingArguments(output_dir="unused", use_cpu=True, deepspeed={"train_batch_size": 1})  # noqa: E731
    assert reasons.from_exception(_raised(made), {}).sentence.startswith(
        "The library deepspeed is not installed"
    )


def test_a_remedy_keeps_the_size_of_the_step() -> None:
    values = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4, "cutoff_len": 1024}
    halved = reasons.smaller(values)[0]["values"]
    assert halved == {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 8}
    assert reasons.smaller({"per_device_train_batch_size": 1})[0]["values"] == {"cutoff_len": 1024}


@pytest.mark.parametrize("verb", [v for v in cli.VERBS if v != "webui"])
def test_every_verb_says_what_it_takes_and_refuses_in_one_sentence(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):
        assert cli.main([verb, "--help"]) == 0
    said = capsys.readouterr()
    assert f"tuner {verb}" in said.out and not said.err
    assert cli.main([verb, "--no_such_flag", "1"]) == 2
    said = capsys.readouterr()
    assert not said.out and all(line.startswith("tuner: ") for line in said.err.splitlines())
    assert "--help` " in said.err


# --- what MLflow hears


def test_mlflow_is_told_of_a_death_that_nobody_could_tell_it(quiet: None) -> None:
    from tuner.tracking.store import open_store

    open_store()
    run = submit.create(new_run().config(), "unlucky")
    run.update(state="running", pid=1, boot_id="another boot")
    assert "restarted" in control.stop(run)
    assert reconcile.due()
    assert reconcile.main() == 0
    told = open_store().get_run(run.id)
    assert told.info.status == "KILLED" and "restarted" in str(of_tag(told.data.tags["reason"]))
    assert not reconcile.pending() and not reconcile.due()


def test_one_process_at_a_time_tells_mlflow(
    studio: Path, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It outlives the supervisor that started it, and may wait long for a server that is away."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run = new_run()
    run.update(state="stopped")
    watch.mark_unsettled(run)
    assert reconcile.due()
    other = locks.lock(reconcile._lock())
    assert not reconcile.due() and reconcile.main() == 0 and reconcile.pending() == [run.id]
    os.close(other or 0)
    assert reconcile.due()


def die_making(point: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_FAULT", point)
        assert forks.done(forks.program("tests.faults.making"), log=paths.home() / "said") == [-9]


@pytest.mark.parametrize("point", _some(making.HALF, "unnamed"))
def test_whoever_dies_before_a_run_is_whole_has_made_none(point: str, quiet: None) -> None:
    die_making(point)
    assert all_runs() == [] and queue.unended() == {} and list_runs().total == 0
    (half,) = paths.runs().glob(".*")
    forget_old_secrets()
    assert half.exists(), "another process may be at it"
    os.utime(half, (0, 0))
    forget_old_secrets()
    assert not half.exists()


@pytest.mark.parametrize("point", _some(making.WHOLE, "note-unwritten"))
def test_whoever_dies_on_the_way_to_mlflow_leaves_one_row_there(point: str, quiet: None) -> None:
    from tuner.tracking import store

    die_making(point)
    (run,) = all_runs()
    run.update(created=time.time() - 60)
    assert queue.waiting() == [run.id] and get_row(run.id).state == "queued"
    assert reconcile.due() == (point != "undescribed")  # that one's worker goes on describing it
    assert reconcile.main() == 0 and not reconcile.due()
    client = store.open_store()
    rows = client.search_runs([store.experiment_id(client)], f"attributes.run_id = '{run.id}'")
    assert [row.info.status for row in rows] == ["SCHEDULED"]
    assert sum(row.data.tags.get("tuner.sweep") == "1" for row in all_rows()) == 1 and len(all_rows()) == 2
    mirror.sync(run)
    assert client.get_run(run.id).data.params["max_steps"] == "2" and len(all_rows()) == 2


def test_two_processes_that_bring_a_run_to_mlflow_make_one_row(studio: Path, quiet: None) -> None:
    """And one of their sweep, which is nobody's in particular."""
    tags = sweep_tags("all")
    runs = [create_run(new_run().config(), f"child {n}", tags=tags) for n in range(2)]
    others = [(mirror.sync, (run,)) for run in (*runs, runs[0])]
    assert forks.done(*others, log=studio / "said") == [0] * 3
    rows = {row.info.run_id: row for row in all_rows()}
    assert set(rows) == {tags["mlflow.parentRunId"], *(run.id for run in runs)}
    assert rows[tags["mlflow.parentRunId"]].info.status == "FINISHED"


def all_rows() -> list[Any]:
    from tuner.tracking import store

    client = store.open_store()
    return list(client.search_runs([store.experiment_id(client)], run_view_type=3))


@pytest.mark.slow
@pytest.mark.parametrize("point", making.AT_A_SERVER)
def test_whoever_dies_on_the_way_to_a_server_leaves_one_row_there(
    point: str, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Tracker()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.start()
    try:
        die_making(point)
        (run,) = all_runs()
        mirror.sync(run)
        rows = {row.data.tags["tuner.run"]: row for row in all_rows()}
        assert len(all_rows()) == 2 and rows[run.id].info.status == "SCHEDULED"
        sweep = rows[run.status().tags["mlflow.parentRunId"]]
        assert sweep.info.status == "FINISHED"
        assert rows[run.id].data.tags["mlflow.parentRunId"] == sweep.info.run_id
        (row,) = list_runs(RunFilter(parent=run.status().tags["mlflow.parentRunId"])).items
        assert (row.id, row.parent) == (run.id, run.status().tags["mlflow.parentRunId"])
    finally:
        server.kill()


def test_the_runs_of_a_sweep_are_queued_as_children_of_one_parent(quiet: None) -> None:
    from tuner.tracking.store import open_store

    values = {"model_name_or_path": "m", "run_name": "rates", "learning_rate": "1e-5,5e-5"}
    runs = submit.sweep(values)
    assert queue.waiting() == [run.id for run in runs]
    assert [run.name for run in runs] == ["learning_rate=1e-5 rates", "learning_rate=5e-5 rates"]
    open_store()
    assert reconcile.due() and reconcile.main() == 0 and not reconcile.due()
    parents = {open_store().get_run(run.id).data.tags["mlflow.parentRunId"] for run in runs}
    assert [open_store().get_run(parent).info.run_name for parent in parents] == ["rates: learning_rate"]


# --- at random, in short


def test_a_short_storm_of_kills(studio: Path) -> None:
    result = Storm(kills=5, seed=3, runs=3, steps=30).blow()
    assert (result.kills, result.runs) == (5, 3)
    wrong = (result.launched_twice, result.lost, result.left_running, result.unexplained)
    assert wrong == (0, 0, 0, 0)
    assert result.worst_detection_s < 5


def test_a_kill_while_saving_leaves_a_checkpoint_that_loads() -> None:
    assert kill_while_saving(3, seed=5) == 0


# --- the status


def test_two_processes_may_change_different_fields_of_a_status() -> None:
    run = new_run()
    code = (
        "import sys\nfrom tuner.runs.run import Run\nfor n in range(100): Run(sys.argv[1]).update(tokens=n)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, run.id])
    for n in range(100):
        run.update(step=n)
    assert other.wait(timeout=60) == 0
    assert (run.status().step, run.status().tokens) == (99, 99)


# --- pace


def test_a_pace_knows_what_is_too_long() -> None:
    pace, status = watch.Pace(), new_run().status()
    for second in range(10):
        pace.saw(replace(status, state="running", phase="training", step=second), float(second * 20))
    assert pace.usual == 20
    assert pace.limit() == 200
    pace.saw(replace(status, state="running", phase="saving", step=9), 185.0)
    assert pace.limit() == watch.PREPARING_FLOOR


def test_a_long_measurement_is_no_stall_and_one_that_hangs_is(quiet: None) -> None:
    pace, status, now = watch.Pace(), new_run().status(), 0.0

    def says(seconds: float, done: int) -> bool:
        """Whether it is too long, at a look so much later."""
        nonlocal now
        now += seconds
        pace.saw(replace(status, state="running", phase="training", step=9, part=done / 20), now)
        return now - pace.since > pace.limit()

    for step in range(10):
        pace.saw(replace(status, state="running", phase="training", step=step), now := now + 1.0)
    assert not any(says(30, n) for n in range(1, 20))
    assert not says(59, 19)
    assert says(2, 19)


def test_the_workers_environment_is_calm_and_the_persons_own_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    env = launch.environment({"cpu": 0})
    assert env["OMP_NUM_THREADS"] == "7" and env["MALLOC_MMAP_MAX_"] == "0"


@pytest.mark.parametrize("present", [0, 2])
@pytest.mark.parametrize("said", [None, "2,3", "", "GPU-5ac8c6c2,GPU-73e1e9cf"])
def test_a_worker_never_sees_more_than_its_own_cards(
    monkeypatch: pytest.MonkeyPatch, present: int, said: str | None
) -> None:
    cards = tuple(hardware.Gpu(i, "A", 1, 0, (9, 0)) for i in range(present))
    monkeypatch.setattr(hardware, "gpus", lambda: cards)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)

    def visible(*taken: str) -> str:
        return launch.environment(dict.fromkeys(taken, 0))["CUDA_VISIBLE_DEVICES"]

    assert visible("gpu1") == "1"
    assert visible("gpu1", "gpu0") == "0,1"
    # Where the driver's library sees none, torch may see some all the same.
    assert visible("cpu") == ("" if present else "0" if said is None else said.split(",")[0])
