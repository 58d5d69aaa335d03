"""`tuner train` in a terminal obeys the same rule: it takes its place in the queue and waits for a slot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tuner import hardware
from tuner.jobs import launch, liveness, queue, slots, watch
from tuner.jobs.control import Refused
from tuner.jobs.submit import write_needs
from tuner.jobs.supervisor import ensure_supervisor
from tuner.tracking.run import ENDED, Run


def run_in_foreground(
    run: Run,
    wait: bool = True,
    gpus: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr, flush=True),
) -> int:
    """The run's worker in this terminal once it is its turn; its exit code. Ctrl-C stops it (saving first).

    A process of its own, because the allocator's settings count only from a process's start. Raises Refused.
    """
    with take_slot(run, wait, gpus, say) as given:
        lock = int(os.environ[liveness.LOCK_VARIABLE])
        worker = subprocess.Popen(
            [sys.executable, "-m", os.environ.get(launch.WORKER_VARIABLE, "tuner.worker"), run.id],
            env=launch.environment(slots.names(given)) | {liveness.LOCK_VARIABLE: str(lock)},
            pass_fds=(lock,),
        )
        code = _until_it_ends(worker)
        if run.status().state not in ENDED:
            watch.bury(run, code)
            ensure_supervisor()
    return code if code in (0, 1, 2) else 1


def _until_it_ends(worker: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return worker.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it to the worker too, which saves and ends


@contextmanager
def take_slot(
    run: Run,
    wait: bool = True,
    gpus: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Iterator[tuple[int, ...]]:
    """Hold the run's lock and a slot for a worker in this process; yields the GPUs it may use (none: the CPU).

    Sets CUDA_VISIBLE_DEVICES, so enter it before torch is imported. While it waits, `say` gets a sentence each time
    the run before it changes. Raises Refused when it may not wait, when it was stopped meanwhile, or when the run has
    a worker already. Interrupted while it waits, the run ends as stopped.
    """
    slots.check_gpus(gpus)
    lock = liveness.lock(run.lock_path, wait=1.0)
    if lock is None:
        raise Refused(f"Run {run.id} already has a worker; `tuner wait {run.id}` waits for it.")
    taken: dict[str, int] = {}
    try:
        write_needs(run, gpus)
        queue.enqueue(run.id)
        taken = _turn(run, wait, gpus, say)
        given = slots.gpus_of(taken)
        launch.write_record(
            run, launch.Launch(time.time(), hardware.boot_id(), os.getpid(), tuple(taken), os.getpid())
        )
        os.environ[liveness.LOCK_VARIABLE] = str(lock)
        os.environ.update(launch.environment(taken))
        ensure_supervisor()
        yield given
    finally:
        slots.release(taken)
        os.close(lock)


def _turn(run: Run, wait: bool, gpus: Sequence[int] | None, say: Callable[[str], None]) -> dict[str, int]:
    """Wait for the run's turn and its slots. Whatever ends the wait ends the run: nobody else is to start it."""
    status = run.status()
    choice, count = slots.wanted(gpus, bool(status.extra.get("use_cpu")), [g.index for g in hardware.gpus()])
    told = ""
    try:
        while True:
            ahead = _ahead(run)
            taken = None if ahead else slots.take(run.id, choice, count)
            if taken is not None:
                return taken
            sentence = _what_is_before(ahead, choice)
            if not wait:
                raise Refused(f"{sentence}; `tuner submit` queues this run, or wait until it has ended.")
            if run.requested("stop") or run.requested("cancel"):
                raise Refused("Stopped while it waited for its turn.")
            if sentence != told:
                told = sentence
                say(f"{sentence}; this one waits its turn.")
            time.sleep(0.2)
    except BaseException as error:
        said = str(error) if isinstance(error, Refused) else "Interrupted while it waited for its turn."
        run.update(state="stopped", reason=said, reason_code="stopped", ended=time.time())
        queue.forget(run.id)
        raise


def _what_is_before(ahead: Sequence[str], choice: Sequence[str]) -> str:
    holders = [s.run for s in slots.slots() if s.name in choice and s.run]
    if holders:
        return f"Run {', '.join(holders)} is at work on {', '.join(choice)}"
    return f"Run {ahead[0]} is before it in the queue" if ahead else "The slot is being freed"


def _ahead(run: Run) -> list[str]:
    """The runs that are to start before this one."""
    now = queue.order()
    ids = [i for i in queue.waiting() if i not in now.held or i == run.id]
    return [] if now.paused or run.id not in ids else ids[: ids.index(run.id)]
