"""Starting a worker so that no death of the starter makes it start twice or not at all.

The order of the four steps is the whole point:

1. the run's lock is taken (whoever else looks sees it held);
2. launch.json is written: somebody means to start this run;
3. the worker starts and inherits the lock and its slots' locks;
4. launch.json gets the worker's pid.

A starter that dies before 3 leaves a free lock, no pid and a status nobody touched: the next one starts the run. Dying
after 3 leaves the lock held by the worker: the next one watches it. A free lock with a pid means that the worker began
and is dead: the run is never started again by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from tuner import hardware, paths
from tuner.jobs import slots
from tuner.runs import worker_lock
from tuner.runs.files import replace_text
from tuner.runs.run import Run
from tuner.runs.status import LIVE

WORKER_VARIABLE = "TUNER_WORKER_MODULE"
LAUNCHERS = (
    (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_NAME",
    )
    + (
        "ROLE_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
        "NNODES",
        "NPROC_PER_NODE",
        "FORCE_TORCHRUN",
    )
    + ("TUNER_RANK", "TUNER_FIRST")
)
LAUNCHED = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_")
"""What torchrun and accelerate leave in the environment of what they start, and what its names begin with: a run starts
its own processes, as its config says."""


@dataclass(frozen=True)
class Launch:
    """One start of a worker, as launch.json keeps it. `slots` are those it was given.

    Of one on another machine `job` is what a cluster knows it by, `node` where it lives, and pid and boot_id are that
    machine's; once it is `over`, whatever is left of it ends itself.
    """

    time: float
    boot_id: str
    starter: int
    slots: tuple[str, ...] = ()
    pid: int = 0
    job: str = ""
    node: str = ""
    over: bool = False

    @property
    def gpus(self) -> tuple[int, ...]:
        return slots.gpus_of(self.slots)


def record(run: Run) -> Launch | None:
    """The last start of a run's worker, None when there was none since it was queued."""
    with suppress(OSError, ValueError, TypeError):
        raw = json.loads((run.folder / "launch.json").read_text(encoding="utf-8"))
        return Launch(**{**raw, "slots": tuple(raw["slots"])})
    return None


def write_record(run: Run, launch: Launch) -> None:
    replace_text(run.folder / "launch.json", json.dumps(asdict(launch)))


def elsewhere(run: Run) -> Launch | None:
    """The start of a run whose worker is a cluster's to end, and is not known to have ended."""
    found = record(run)
    return found if found and found.job and not found.over else None


def alive(run: Run) -> bool:
    """Whether a run's worker lives. Of one on another machine its supervisor says when it does not, by its status: not
    every shared disk shows a lock to all that mount it."""
    if worker_lock.alive(run):
        return True
    return elsewhere(run) is not None and run.status().state in LIVE


def forget_record(run: Run) -> None:
    """Before a run is queued again: its earlier start says nothing about the next one."""
    for name in ("launch.json", "watch.json"):
        (run.folder / name).unlink(missing_ok=True)


def start(run: Run, lock: int, taken: dict[str, int]) -> subprocess.Popen[bytes]:
    """Start the worker of a run whose lock and slots this process holds, detached, and let go of both.

    Raises OSError when it cannot be started; the run is as it was then.
    """
    launch = Launch(time.time(), hardware.boot_id(), os.getpid(), tuple(taken))
    write_record(run, launch)
    try:
        process = spawn(run, lock, taken)
    except OSError:
        forget_record(run)
        raise
    with suppress(OSError):  # a full disk: the lock alone tells the next supervisor that there is a worker
        write_record(run, replace(launch, pid=process.pid))
    os.close(lock)
    slots.release(taken)
    return process


def spawn(
    run: Run,
    lock: int,
    taken: dict[str, int],
    visible: str | None = None,
    before: Callable[[], object] | None = None,
) -> subprocess.Popen[bytes]:
    """The worker's process: its own session, its output in log.txt, the locks inherited.

    `visible` are the GPUs of one that has no slots, as CUDA counts them; `before` is called in it first.
    """
    module = os.environ.get(WORKER_VARIABLE, "tuner.worker")
    with run.log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, run.id],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(taken, visible) | {worker_lock.LOCK_VARIABLE: str(lock)},
            pass_fds=(lock, *taken.values()),
            start_new_session=True,
            preexec_fn=before,
        )


def environment(taken: Mapping[str, int] | tuple[str, ...], visible: str | None = None) -> dict[str, str]:
    """The worker's environment. What the person set wins, except which GPUs the run was given: those of its slots, or
    the `visible` ones."""
    cores = os.cpu_count() or 1
    calm = {
        "PYTHONUNBUFFERED": "1",
        # Two spinning threads on two cores are ten times slower than one as soon as anything else runs.
        "OMP_NUM_THREADS": str(max(1, min(cores // 2, 16))),
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order of the slots' numbers, which come from the driver
    }
    gpus = slots.gpus_of(tuple(taken))
    if not (gpus or visible):
        # glibc gives every large tensor back to the kernel and asks for it again: a third of a CPU step.
        calm |= {
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": "8000000000",
            "MALLOC_TOP_PAD_": "268435456",
        }
    # Those it was given and no other: none where all are left to others.
    if visible is None:
        visible = ",".join(map(str, gpus)) if gpus else "" if hardware.gpus() else hardware.own_gpus()
    kept = {n: v for n, v in os.environ.items() if n not in LAUNCHERS and not n.startswith(LAUNCHED)}
    return {**calm, **kept, "TUNER_HOME": str(paths.home()), "CUDA_VISIBLE_DEVICES": visible}
