"""`tuner train` in a terminal obeys the same rules: it waits for its turn, and its worker is a worker like any other.

The worker runs in a session of its own and the terminal only shows its log: a terminal that is closed takes nothing
with it, and the allocator's settings, which count from a process's start, are the same as for the queue's workers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from tuner import hardware
from tuner.config.settings import settings
from tuner.jobs import control, launch, queue, slots, watch
from tuner.jobs.control import Refused
from tuner.jobs.executors import which
from tuner.jobs.submit import place, stays, write_needs
from tuner.jobs.supervisor import ensure_supervisor
from tuner.runs import files, locks
from tuner.runs.run import Run
from tuner.runs.status import ENDED
from tuner.text.lookup import tr
from tuner.text.message import Message, message

Say = Callable[[str], None]
LOOK = 2.0
"""Seconds between two looks whether there is a supervisor."""
STARTS = 10.0
"""Seconds that one may take to start, while the worker imports its libraries, before another is started in its place."""


class NotNow(Refused):
    """Its turn did not come; `kept` says why in the run's folder, where no sentence of one language stands."""

    def __init__(self, kept: Message) -> None:
        self.kept = kept
        super().__init__(str(kept))


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def run_in_foreground(
    run: Run, wait: bool = True, gpus: Sequence[int] | None = None, say: Say = _to_stderr
) -> int:
    """Start the run's worker once it is its turn and show its log until it ends; the worker's exit code, 0 to 2.

    Ctrl-C and SIGTERM stop the run (it saves first), a second one cancels it. Raises Refused, see `take_slot`.
    """
    if settings().elsewhere and not stays(run):
        return _follow(run, gpus, say)
    lock, taken = take_slot(run, wait, gpus, say)
    shown = run.log_path.stat().st_size if run.log_path.exists() else 0
    process = launch.start(run, lock, taken)
    with _asking(run, say):
        look_again = 0.0
        while process.poll() is None:
            if time.monotonic() >= look_again:
                look_again = time.monotonic() + LOOK
                with suppress(OSError):  # the run itself goes on
                    # one that was killed leaves this worker unwatched, and all that wait
                    look_again += STARTS if ensure_supervisor() else 0.0
            time.sleep(0.1)
            shown = _show(run, shown)
    _show(run, shown)
    return _settled(run, process)


def _follow(run: Run, gpus: Sequence[int] | None, say: Say) -> int:
    """Queue a run that lives on another machine and show its log until it ends: 0 if it finished or was stopped, else 1."""
    place(run, gpus)
    shown, told, look_again = 0, "", 0.0
    with _asking(run, say):
        while (status := run.status()).state not in ENDED:
            if not run.exists:  # it would read as queued for ever
                raise Refused(tr("Run {id} was deleted.", id=run.id))
            if time.monotonic() >= look_again:
                look_again = time.monotonic() + LOOK
                with suppress(OSError):  # the run itself goes on
                    ensure_supervisor(only_if_needed=True)
                why = next((row.why for row in queue.queue() if row.id == run.id and row.position), "")
                if why and why != told:
                    say(why)
                told = why
            time.sleep(0.2)
            shown = _show(run, shown)
    _show(run, shown)
    return 0 if status.state in ("finished", "stopped") else 1


def _settled(run: Run, process: subprocess.Popen[bytes]) -> int:
    """Write the outcome if the worker could not. The supervisor may be quicker, but saw no exit code."""
    watch.end_session(process.pid)
    lock = locks.lock(run.lock_path, wait=2.0)
    if lock is not None:
        watch.finalize(run, process.returncode)
        os.close(lock)
    ensure_supervisor(only_if_needed=True)
    return process.returncode if process.returncode in (0, 1, 2) else 1


def _show(run: Run, start: int) -> int:
    """Print what the log has from byte `start` on; where it ends now."""
    with suppress(OSError), run.log_path.open("rb") as log:
        log.seek(start)
        sys.stdout.write(log.read().decode("utf-8", errors="replace"))
        sys.stdout.flush()
        return log.tell()
    return start


@contextmanager
def _asking(run: Run, say: Say) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into what people mean by them."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        with suppress(Refused):
            say(control.stop(run, now=len(asked) > 1))

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def take_slot(
    run: Run, wait: bool = True, gpus: Sequence[int] | None = None, say: Say = _to_stderr
) -> tuple[int, dict[str, int]]:
    """Wait for the run's turn: its lock and its slots, as open files, for `launch.start`.

    While it waits, `say` gets a sentence each time the run before it changes. Raises Refused when it may not wait,
    when it was stopped meanwhile, or when the run has a worker already. Whatever ends the wait ends the run as
    stopped, for nobody else is to start it; a terminal that is killed leaves it to the supervisor.
    """
    slots.check_gpus(gpus)
    lock = locks.lock(run.lock_path, wait=1.0)
    if lock is None:
        raise Refused(tr("Run {id} already has a worker; `tuner wait {id}` waits for it.", id=run.id))
    try:
        write_needs(run, gpus)
        queue.enqueue(run.id)
        return lock, _turn(run, wait, say)
    except BaseException as error:
        said = error.kept if isinstance(error, NotNow) else message("stopped.waiting")
        run.update(state="stopped", cause=said, ended=run.status().ended_now())
        queue.forget(run.id)
        watch.mark_unsettled(run)
        os.close(lock)
        raise


def _turn(run: Run, wait: bool, say: Say) -> dict[str, int]:
    status = run.status()
    choice, count = slots.slots_of(status, [g.index for g in hardware.gpus()])
    told, look_again = "", 0.0
    while True:
        ahead = _ahead(run, choice)
        if ahead and time.monotonic() >= look_again:
            # They are started by a supervisor or not at all: this terminal would wait for ever behind them.
            ensure_supervisor(only_if_needed=True)
            look_again = time.monotonic() + LOOK
        short = queue.short_of_room()
        taken = None if ahead or short else slots.take(run.id, choice, count)
        if taken is not None:
            return taken
        before = message("before.room", free=files.free() >> 20) if short else _what_is_before(ahead, choice)
        if not wait:
            raise NotNow(message("stopped.not_now", before=before))
        if run.requested("stop") or run.requested("cancel"):
            raise NotNow(message("stopped.turn"))
        sentence = str(before)
        if sentence != told:
            told = sentence
            say(tr("{sentence}; this one waits its turn.", sentence=sentence))
        time.sleep(0.2)


def _what_is_before(ahead: Sequence[str], choice: Sequence[str]) -> Message:
    holders = [s.run for s in slots.slots() if s.name in choice and s.run]
    if holders:
        return message("before.running", holders=", ".join(holders), choice=", ".join(choice))
    return message("before.queued", ahead=ahead[0]) if ahead else message("before.freed")


def _ahead(run: Run, choice: Sequence[str]) -> list[str]:
    """The runs that are to start before this one, in a slot that it may have."""
    now, runs = queue.order(), queue.unended()
    ids = [i for i in queue.waiting(runs) if i not in now.held or i == run.id]
    if now.paused or run.id not in ids:
        return []
    present = [g.index for g in hardware.gpus()]
    before = which.for_slots(ids[: ids.index(run.id)], runs)
    return [i for i in before if set(slots.slots_of(runs[i], present)[0]) & set(choice)]
