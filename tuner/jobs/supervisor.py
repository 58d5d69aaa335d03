"""The supervisor: one process per studio that starts, watches and buries workers, and goes when there is nothing to do.

It holds mlruns/supervisor.lock, so there is one. It keeps nothing that the next one needs: the run folders, the locks
and launch.json say all, so it may be killed at any point.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from tuner import paths, process
from tuner.config.kinds import KINDS
from tuner.jobs import launch, queue, reconcile, resuming, webhook
from tuner.jobs.executors import which
from tuner.jobs.executors.local import Local
from tuner.jobs.executors.ray import Ray
from tuner.jobs.troubles import logged
from tuner.jobs.watch import Watch
from tuner.runs import diverging, files, locks, reasons, worker_lock
from tuner.runs.run import Run
from tuner.runs.status import ENDED, LIVE, Status
from tuner.text.lookup import tr
from tuner.tracking import open_runs
from tuner.tracking.outcome import forget_old_secrets

log = logging.getLogger("tuner.supervisor")

LOSS_EVERY = 20.0
"""Seconds between two looks at a run's loss."""
IDLE = 20.0
"""Seconds without work after which the supervisor goes."""
TICK = 0.25
CLOCK_STEP = 2_000_000_000
"""Nanoseconds within which two files may be made without the folder's time telling them apart."""


def leader_path() -> Path:
    return paths.mlruns() / "supervisor.lock"


def supervised() -> bool:
    """Whether a supervisor is at work in this studio."""
    return locks.locked(leader_path())


def leader() -> int | None:
    """The supervisor's pid, None when there is no supervisor."""
    with suppress(OSError, ValueError):
        return int(leader_path().read_text()) if supervised() else None
    return None


def needed() -> bool:
    """Whether there is anything for a supervisor to do."""
    runs = queue.unended()
    return any(s.state in LIVE for s in runs.values()) or bool(_startable(runs)) or reconcile.due(runs)


def _startable(runs: dict[str, Status]) -> list[str]:
    now = queue.order()
    return [] if now.paused else [i for i in queue.waiting(runs) if i not in now.held]


def ensure_supervisor(only_if_needed: bool = False) -> bool:
    """Start the supervisor, detached, unless one is at work. True when one was started.

    Call it after the work is written down, never before: a supervisor that is just going looks once more after it has
    let go of its lock. Raises OSError when the studio's folder cannot be written.
    """
    if supervised() or (only_if_needed and not needed()):
        return False
    paths.mlruns().mkdir(parents=True, exist_ok=True)
    with (paths.mlruns() / "supervisor.log").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner.jobs.supervisor"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TUNER_HOME": str(paths.home())},
            start_new_session=True,
        )
    # Somebody has to take note of its end, or it stays a zombie as long as the dashboard lives.
    threading.Thread(target=process.wait, daemon=True, name="supervisor-end").start()
    return True


class Supervisor:
    """What the one supervisor knows while it lives. `tick` is one look at everything."""

    def __init__(self) -> None:
        self.watches: dict[str, Watch] = {}
        self.settling: subprocess.Popen[bytes] | None = None
        self.local, self.ray = Local(), Ray()
        self.untouched: dict[str, int] = {}
        self.next_look: dict[str, float] = {}

    def tick(self) -> bool:
        """Do all that is due. Whether there is work left to wait for."""
        files.keep_room()
        runs = queue.unended()
        self._adopt(runs)
        for watch in list(self.watches.values()):
            with logged(watch.run.id):
                self._watch(watch, runs.get(watch.run.id))
        startable = _startable(runs)
        with logged(tr("the queue")):
            self._start_next(startable, runs)
        return bool(self.watches or startable) | self._settle(runs)

    # --- workers that are there

    def _adopt(self, runs: dict[str, Status]) -> None:
        """Watch every run that has begun and is not yet watched: of an earlier supervisor, or of a terminal."""
        root = str(paths.runs())
        for run_id, status in runs.items():
            if run_id not in self.watches and (status.state in LIVE or self._began(root, run_id)):
                log.info("%s: watching it", run_id)
                run = Run(run_id)
                executor: which.Executor = self.ray if launch.elsewhere(run) else self.local
                self.watches[run_id] = executor.watch(run)
        self.untouched = {i: made for i, made in self.untouched.items() if i in runs}

    def _began(self, root: str, run_id: str) -> bool:
        """Whether a worker of a queued run was started, as far as the starter could write it down.

        Two hundred that wait are not to be opened at each look: a folder without a record, in which no file was made
        since, still has none.
        """
        try:
            made = os.stat(f"{root}/{run_id}").st_mtime_ns  # noqa: PTH116
        except OSError:
            return False
        if self.untouched.get(run_id) == made:
            return False
        run = Run(run_id)
        record = launch.record(run)
        if record is None and time.time_ns() - made > CLOCK_STEP:
            self.untouched[run_id] = made
        return record is not None and (record.pid > 0 or worker_lock.alive(run))

    def _watch(self, watch: Watch, status: Status | None) -> None:
        if watch.dead():
            if not watch.run.folder.is_dir():
                log.info("%s: its folder was deleted", watch.run.id)
                watch.clear()
                del self.watches[watch.run.id]
                return
            after = resuming.after_reboot(watch.run) or watch.finalize()
            if after is not None:
                log.info("%s: %s %s", watch.run.id, after.state, after.reason)
                del self.watches[watch.run.id]
                if after.state in ENDED:
                    webhook.announce(watch.run, after)
            return
        if status is not None:
            watch.look(status)
            self._look_at_loss(watch.run, status)
        watch.press()

    def _look_at_loss(self, run: Run, status: Status) -> None:
        """Now and then: whether the loss runs away. Rewards' losses are about zero however well a run learns."""
        now = time.monotonic()
        if status.state != "running" or now < self.next_look.get(run.id, 0.0):
            return
        self.next_look[run.id] = now + LOSS_EVERY
        kind = KINDS.get(str(run.values().get("stage")))
        if kind is not None and not kind.rewarded and diverging.look(run):
            log.info("%s: its loss runs away", run.id)
            webhook.announce(run, status, webhook.DIVERGING)

    # --- workers to come

    def _start_next(self, startable: list[str], runs: dict[str, Status]) -> None:
        """Let each executor start what it can of the runs that are its own, in order."""
        if queue.short_of_room():
            return
        wanted = [i for i in startable if i not in self.watches]
        here, there = which.parted(wanted, runs)
        begun = [self.local.start_next(here, runs)]
        if there is not None:
            begun.append(self.ray.start_next(there, runs))
        for started in begun:
            for watch in started:  # one by one: trouble with the cluster loses none that was started here
                self.watches[watch.run.id] = watch

    # --- telling MLflow

    def _settle(self, runs: dict[str, Status]) -> bool:
        """One process at a time tells MLflow, in its own time: importing it here would make this one ten times as big."""
        if self.settling is not None and self.settling.poll() is None:
            return True
        self.settling = reconcile.start() if reconcile.due(runs) else None
        return self.settling is not None


# --- the process ---------------------------------------------------------------------------------------------------


def serve(idle: float = IDLE) -> int:
    """Be the supervisor until there was nothing to do for `idle` seconds, or do nothing if there is one.

    Raises OSError where the studio's folder cannot be written.
    """
    files.must_be_writable(paths.mlruns())
    lock = locks.lock(leader_path())
    while lock is not None:
        with suppress(OSError):  # a full disk: the lock is what counts, the pid is for people
            os.truncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        log.info("supervising %s", paths.home())
        forget_old_secrets()
        _work(idle, lock)
        os.close(lock)
        # Whoever submitted while the lock was still held relies on this look.
        lock = locks.lock(leader_path()) if needed() else None
    return 0


def _work(idle: float, lock: int) -> None:
    wake = _wake_on_child()
    supervisor = Supervisor()
    busy = time.monotonic()
    walked = False
    while _is_at(lock, leader_path()):
        began = time.monotonic()
        if supervisor.tick():
            busy = time.monotonic()
        elif (
            began - busy >= idle
        ):  # asked only of a look that found nothing: on a busy machine a sleep may be long
            return
        if not walked:  # once what waits was started: a folder that was put here by hand has no mark
            with suppress(OSError):
                open_runs.walk()
            walked = True
            continue
        # A studio with ten thousand runs is looked at less often, for a tenth of the time at most.
        _sleep(wake, min(2.0, max(TICK, 10 * (time.monotonic() - began))))
    log.info("%s is gone or another one; leaving", paths.mlruns())


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file still is the one at `path`: a studio that was deleted or moved needs no supervisor here."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _wake_on_child() -> int:
    """A pipe that becomes readable when a child ends."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _sleep(wake: int, seconds: float) -> None:
    """Until a child ends, the order changes or the time is over."""
    before = _stamp()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and _stamp() == before:
        ready, _, _ = select.select([wake], [], [], min(left, TICK))
        if ready:
            with suppress(BlockingIOError):
                os.read(wake, 4096)
            return


def _stamp() -> int:
    with suppress(OSError):
        return (paths.mlruns() / "queue.json").stat().st_mtime_ns
    return 0


def main() -> int:
    process.begin()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s", stream=sys.stderr)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(0)
    )  # the workers go on; the next supervisor adopts them
    try:
        return serve(float(os.environ.get("TUNER_SUPERVISOR_IDLE") or IDLE))
    except OSError as error:
        print(reasons.refused_by_system(error), file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
