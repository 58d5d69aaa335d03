"""SIGKILLs at random moments of the real worker program: one run, killed and resumed until it is enough, then left alone.

It must end bit for bit like one that was never killed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil
import tiny
from safetensors.numpy import load_file

from tuner import paths
from tuner.jobs import control, reconcile, submit
from tuner.runs import checkpoints
from tuner.runs.run import Run
from tuner.runs.status import ENDED

from . import resumed

EPOCHS = 120  # of 4 steps
LONGEST = 180.0


@dataclass
class Result:
    """What must be all zeros, but for the kills; `different` where the end is not bit-equal to an undisturbed run's."""

    kills: int = 0
    launched_twice: int = 0
    unexplained: int = 0
    left_running: int = 0
    unloadable: int = 0
    points_lost: int = 0
    points_doubled: int = 0
    different: int = 0
    worst_detection_s: float = 0.0


def kill_and_resume(kills: int, seed: int, processes: int = 1) -> Result:
    """In the studio that TUNER_HOME names, with TUNER_WORKER_MODULE unset. Of several processes any is killed."""
    tiny.model(paths.home() / "model")
    tiny.data(paths.home() / "data")
    several = {"nproc_per_node": processes, "per_device_train_batch_size": 1} if processes > 1 else {}
    config = resumed.config("sft", num_train_epochs=EPOCHS, save_total_limit=2, **several)
    calm = submit.submit(config, "calm")
    expected = resumed.outcome(calm)
    run, chance, result = submit.submit(config, "killed"), random.Random(seed), Result()
    until(lambda: checkpoints.of(run))
    while result.kills < kills and run.status().state not in ENDED:
        _kill(run, chance, result)
        if run.status().state == "finished":
            break
        control.resume(run)
    result.different = int(resumed.outcome(run) != expected)
    began = run.log_path.read_text(errors="replace").count(" loading libraries ...")
    result.launched_twice = max(0, began - result.kills - 1)
    _count_points(run, expected[0], result)
    return result


def _kill(run: Run, chance: random.Random, result: Result) -> None:
    """At once, while it begins, or some way into the training; then see that it is explained and what is kept."""
    until(lambda: control.pid_of(run))
    if chance.random() < 0.75:
        until(lambda: run.status().state == "running" or run.status().state in ENDED)
    time.sleep(chance.uniform(0, 1.5))
    pid = control.pid_of(run)
    if pid and (family := _ranks(run)) and chance.random() < 0.7:
        pid = chance.choice(family)
    if not pid:
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        result.kills += 1
    took = until(lambda: run.status().state in ENDED)
    result.worst_detection_s = round(max(result.worst_detection_s, took), 2)
    result.unexplained += not run.status().reason and run.status().state != "finished"
    with suppress(AssertionError):
        until(lambda: not _ranks(run), 10)
    result.left_running += len(_ranks(run))
    newest = checkpoints.latest(run)
    try:
        assert newest is not None and set(run.checkpoints.iterdir()) >= {newest}
        load_file(newest / "adapter_model.safetensors")
    except Exception:  # noqa: BLE001  whatever it is, that one does not load
        result.unloadable += 1


def _ranks(run: Run) -> list[int]:
    """The processes of a run beside its first."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if (
                run.id in words
                and "TUNER_RANK" in process.environ()
                and process.environ()["TUNER_RANK"] != "0"
            ):
                found.append(process.pid)
    return found


def _count_points(run: Run, steps: list[int], result: Result) -> None:
    from tuner.tracking.store import open_store

    reconcile.sync()
    got = [point.step for point in open_store().get_metric_history(run.id, "loss")]
    result.points_lost = len(set(steps) - set(got))
    result.points_doubled = len(got) - len(set(got))


def until(true: object, seconds: float = LONGEST) -> float:
    """Seconds it took to become true."""
    began = time.monotonic()
    while not true():  # type: ignore[operator]
        assert time.monotonic() < began + seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - began
