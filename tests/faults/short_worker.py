"""A worker in place of tuner.worker: the real lock, status, metrics, checkpoints and requests, and no training.

`python -m tests.faults.short_worker RUN_ID`. It makes `max_steps` steps of TUNER_STEP seconds and saves every
`save_steps`. A file `fault` in the run's folder, or TUNER_FAULT, names what goes wrong with it: see FAULTS.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tuner import hardware
from tuner.jobs import watch
from tuner.runs import checkpoints, reasons, worker_lock
from tuner.runs.run import Run
from tuner.text.message import Message, message


def die(run: Run) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(run: Run) -> None:
    print("Segmentation fault, more or less", flush=True)
    os._exit(3)


def turn_deaf(run: Run) -> None:
    """Neither signals nor requests are heard, and there is a child that lives on."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (run.folder / "child").write_text(str(child.pid))
    time.sleep(600)


def hang(run: Run) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fill_group(run: Run) -> None:
    """Eat memory in a small control group, named by TUNER_OOM_GROUP, until the kernel kills.

    Not before a watcher has looked at that group: it calls a worker stalled that was last heard of when it was in there.
    """
    Path(os.environ["TUNER_OOM_GROUP"], "cgroup.procs").write_text(str(os.getpid()))
    run.update(step=run.status().step + 1)
    while not watch.stalled(run):
        time.sleep(0.05)
    eaten = []
    while True:
        eaten.append(os.urandom(2**23))


def fail(error: Exception) -> Callable[[Run], None]:
    def point(run: Run) -> None:
        raise error

    return point


FAULTS: dict[str, Callable[[Run], None]] = {
    "killed": die,
    "left": leave,
    "deaf": turn_deaf,
    "hung": hang,
    "group-full": fill_group,
    "memory": fail(MemoryError()),
    "diverged": fail(FloatingPointError("loss became nan at step 3")),
    "disk-full": fail(OSError(errno.ENOSPC, "No space left on device", "checkpoint-3")),
    "file-gone": fail(FileNotFoundError(errno.ENOENT, "No such file", "data/rows.json")),
}


def fault_of(run: Run) -> tuple[str, int]:
    """The fault's name and the step it happens at (0: before the worker says a word)."""
    said = os.environ.get("TUNER_FAULT", "")
    if (run.folder / "fault").exists():
        said = (run.folder / "fault").read_text()
    name, _, step = said.partition("@")
    return name, int(step or 3)


def main(run_id: str) -> int:
    return run_here(Run(run_id))


def run_here(run: Run) -> int:
    lock = worker_lock.hold(run)
    try:
        return live(run)
    finally:
        os.close(lock)


def live(run: Run) -> int:
    name, when = fault_of(run)
    if name and when == 0:
        FAULTS[name](run)
    run.update(
        state="preparing", pid=os.getpid(), boot_id=hardware.boot_id(), started=time.time(), cause=Message()
    )
    with (run.folder / "starts").open("a") as starts:
        starts.write(json.dumps([os.getpid(), run.status().resumes, time.monotonic()]) + "\n")
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    try:
        state, reason = train(run, asked, name, when)
    except Exception as error:  # noqa: BLE001
        state, reason = "failed", reasons.from_exception(error, run.values())
    run.update(phase="closing", **reason.changes())
    if name == "closing":
        die(run)
    watch.mark_unsettled(run)
    run.update(state=state, phase="", ended=run.status().ended_now())
    (run.folder / "left").write_text(str(time.monotonic()))
    return 1 if state == "failed" else 0


def train(run: Run, asked: list[int], fault: str, when: int) -> tuple[str, reasons.Reason]:
    values = run.values()
    total, every = int(values["max_steps"]), int(values["save_steps"])
    step = first(run)
    run.update(
        state="running",
        phase="training",
        step=step,
        first_step=step,
        total_steps=total,
        trained_seconds=0.0,
    )
    began = time.monotonic()
    while step < total:
        time.sleep(float(os.environ.get("TUNER_STEP") or 0.015))
        step += 1
        if fault in FAULTS and step == when:
            FAULTS[fault](run)
        with run.metrics_path.open("a") as log:
            log.write(json.dumps({"step": step, "time": time.time(), "loss": 1 / step}) + "\n")
        run.update(step=step, trained_seconds=time.monotonic() - began)
        if run.requested("cancel"):
            return "stopped", reasons.Reason(message("cancelled"))
        stop = bool(asked) or run.requested("stop")
        if stop or step % every == 0:
            save(run, step, total)
        if stop:
            run.forget_requests()
            return "stopped", reasons.Reason(message("stopped", step=step))
    return "finished", reasons.Reason()


def first(run: Run) -> int:
    """The step to go on from: a checkpoint's weights say how often they were trained."""
    asked = run.status().resume_from
    if not asked:
        return 0
    from safetensors.numpy import load_file

    return int(load_file(Path(asked) / "model.safetensors")["weights"][0])


def save(run: Run, step: int, size: int) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weights": np.full(size, step, dtype=np.float32)}, folder / "model.safetensors")
    checkpoints.seal(folder, run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
