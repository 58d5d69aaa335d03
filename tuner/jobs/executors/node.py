"""A run's first process on a node of a cluster: `python -m tuner.jobs.executors.node RUN_ID JOB`, beside its worker.

It starts the worker as the supervisor does on one machine, watches it, and writes how it ended if the worker could not.
To the studio's supervisor it gives a sign of life, in the run's folder. Where another start has taken this one's place,
it ends its worker: two must never write the same run, and not every shared disk knows of the other's locks.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from tuner import hardware, paths, process
from tuner.jobs import launch
from tuner.jobs.ranks import PR_SET_PDEATHSIG
from tuner.jobs.watch import Watch, kill_tree
from tuner.runs import locks
from tuner.runs.files import replace_text
from tuner.runs.run import Run, write_private
from tuner.text.lookup import tr

FILE = "heartbeat"
HANDED_ON = "node.json"
BEAT = 3.0
"""Seconds between two heartbeats."""
LOOK = 0.5
"""Seconds between two looks at the worker."""
FREE = 60.0
"""Seconds for an earlier worker of the run, or who cancelled it, to let go of its lock."""
REFUSED = 3
"""The exit code of a start that is not wanted any more, or cannot be."""


# --- on the studio's side --------------------------------------------------------------------------------------------


def hand_on(run: Run, variables: Mapping[str, str]) -> None:
    """Leave the studio's variables for the worker, in a file that only this user can read: what a job's environment
    holds is shown to all who may open the cluster's dashboard."""
    write_private(run.folder / HANDED_ON, json.dumps(dict(variables)))


def take_away(run: Run) -> None:
    """Of a start that does not begin, or has ended: what was left for it holds passwords."""
    with suppress(OSError):
        (run.folder / HANDED_ON).unlink(missing_ok=True)


def heartbeat(run: Run, job: str) -> str:
    """The last sign of life of this start, empty where there is only an earlier one's; read, not asked by its time: what
    other machines are told of a file's time is older."""
    with suppress(OSError, ValueError):
        said = (run.folder / FILE).read_text(encoding="utf-8")
        return said if said.startswith(f"{job} ") else ""
    return ""


# --- on the node -----------------------------------------------------------------------------------------------------


def main(run_id: str, job: str) -> int:
    """Live one start of a run; the exit code."""
    process.begin()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s", stream=sys.stderr)
    run = Run(run_id)
    if not run.exists:
        return _refuse(
            tr(
                "{node} has no {folder}; share the studio's folder with all nodes, see docs/executors.md.",
                node=platform.node(),
                folder=run.folder,
            )
        )
    lock = locks.lock(run.lock_path, wait=FREE)
    found = launch.record(run)
    if lock is None or found is None or not _wanted(run, job) or run.status().state != "queued":
        return _refuse(tr("Run {run_id} is not to be started by {job} any more.", run_id=run_id, job=job))
    return _watch(_start(run, found, lock))


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return REFUSED


def _wanted(run: Run, job: str) -> bool:
    """Whether this is the run's start. A disk that does not answer proves nothing."""
    found = launch.record(run)
    return found.job == job and not found.over if found else _unread(run)


def _unread(run: Run) -> bool:
    """Whether there may be a record that cannot be read just now."""
    try:
        (run.folder / "launch.json").stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _start(run: Run, found: launch.Launch, lock: int) -> Watch:
    """The worker, which the kernel ends with this process however that ends: a cluster knows this one only."""
    _take_variables(run)
    libc = ctypes.CDLL(None)
    worker = launch.spawn(
        run, lock, {}, visible=_gpus(run), before=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    )
    with suppress(OSError):
        launch.write_record(
            run, replace(found, pid=worker.pid, boot_id=hardware.boot_id(), node=platform.node())
        )
    os.close(lock)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a cluster that ends a job tells each of its processes
    return Watch(run, worker, worker.pid, job=found.job)


def _take_variables(run: Run) -> None:
    file = run.folder / HANDED_ON
    with suppress(OSError, ValueError):
        os.environ |= {**json.loads(file.read_text(encoding="utf-8")), "TUNER_HOME": str(paths.home())}
    take_away(run)


def _gpus(run: Run) -> str:
    """CUDA_VISIBLE_DEVICES as the cluster set it for this job."""
    return "" if run.status().use_cpu else os.environ.get("CUDA_VISIBLE_DEVICES", "")


def _watch(watch: Watch) -> int:
    beaten, job = float("-inf"), watch.job
    while not watch.dead():
        if not _wanted(watch.run, job):
            kill_tree(watch.pid)
            return _refuse(
                tr("Another start of run {id} has taken the place of {job}.", id=watch.run.id, job=job)
            )
        if time.monotonic() - beaten >= BEAT:
            beaten = time.monotonic()
            with suppress(OSError):
                replace_text(watch.run.folder / FILE, f"{job} {time.time_ns()}")
        with suppress(OSError):
            watch.look(watch.run.status())
            watch.press()
        time.sleep(LOOK)
    after = watch.finalize()
    print(f"run {watch.run.id} {after.state if after else 'has no outcome yet'}", flush=True)
    code = watch.process.returncode if watch.process else None
    return code if code is not None and code >= 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
