"""Watching one worker: is it dead, how did it die, does it still make progress; and burying it."""

from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tuner import hardware, paths
from tuner.jobs import launch
from tuner.runs import checkpoints, locks, reasons, worker_lock
from tuner.runs.files import replace_text
from tuner.runs.run import Run
from tuner.runs.status import ENDED, State, Status
from tuner.text import message
from tuner.text.message import Message, render
from tuner.tracking.outcome import is_settled

log = logging.getLogger("tuner.supervisor")

STALL_FLOOR = 60.0
"""Seconds without a step before anything is said; a slow step is no stall."""
PREPARING_FLOOR = 600.0
"""The same for phases that do not step: loading, reading, evaluating."""
STOP_GRACE = 60.0
"""Seconds a stopped worker has to save before it is terminated."""
LAST_GRACE = 3.0
"""Seconds between terminating and killing, at most; no more than the first grace."""
CLOSING = "closing"
"""The worker's last phase: the outcome is decided and its reason written, only MLflow has yet to hear of it."""
WAITING = "serving"
"""A phase in which nothing need happen for hours: nobody asks."""


# --- progress ------------------------------------------------------------------------------------------------------


@dataclass
class Pace:
    """The steps of one worker as they were seen. Monotonic times: a clock that is set does not disturb them."""

    mark: list[Any] | None = None
    since: float = 0.0
    step: int = 0
    stepped: float = 0.0
    stepping: str = ""
    steps: list[float] = field(default_factory=list)

    def saw(self, status: Status, now: float) -> None:
        """Take note of a status read at `now`."""
        mark = _mark(status)
        if mark == self.mark:
            return
        if status.step > self.step > 0:
            self.steps = [*self.steps, (now - self.stepped) / (status.step - self.step)][-50:]
            self.stepping = status.phase
        if status.step != self.step:
            self.step, self.stepped = status.step, now
        self.mark, self.since = mark, now

    @property
    def usual(self) -> float | None:
        """The median seconds of a step, None before there were two."""
        return statistics.median(self.steps) if self.steps else None

    def limit(self) -> float:
        """Seconds without progress that are too long in the present phase."""
        if self.mark is not None and self.mark[0] == WAITING:
            return float("inf")
        if self.usual is None or self.mark is None or self.mark[0] != self.stepping:
            return float(os.environ.get("TUNER_STALL_PREPARING") or PREPARING_FLOOR)
        return max(float(os.environ.get("TUNER_STALL_SECONDS") or STALL_FLOOR), 10 * self.usual)


def _mark(status: Status) -> list[Any]:
    """What moves when a worker gets on: its step, or how far it says it is in a phase without steps."""
    return [status.phase, status.step, status.tokens, status.part, message.to_plain(status.doing)]


def stalled(run: Run) -> str:
    """What the supervisor says of a run that makes no progress; empty when it does."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads((run.folder / "watch.json").read_text(encoding="utf-8"))
        if said["mark"] == _mark(run.status()) and launch.alive(run):
            return render(message.of(said["stalled"]))
    return ""


# --- out of memory, as the kernel tells it -------------------------------------------------------------------------


@dataclass
class OomKills:
    """The kernel's count of memory kills in a process's control group, from when it was first looked at."""

    pid: int
    file: Path | None = None
    before: int = 0

    def look(self) -> None:
        """Find the count; a process that moved to another group starts anew."""
        file = _oom_file(self.pid)
        if file is not None and file != self.file:
            self.file, self.before = file, _oom_count(file)

    def grew(self) -> bool:
        """Whether there were kills. Asked of a dead process, whose group is no longer to be found, only counted."""
        return self.file is not None and _oom_count(self.file) > self.before


def _oom_file(pid: int) -> Path | None:
    """Where the kills of a process's control group are counted: version 2's memory.events or version 1's oom_control."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            v2 = Path("/sys/fs/cgroup") / group.strip("/") / "memory.events"
            v1 = Path("/sys/fs/cgroup/memory") / group.strip("/") / "memory.oom_control"
            if controllers == "" and v2.is_file():
                return v2
            if "memory" in controllers.split(",") and v1.is_file():
                return v1
    return None


def _oom_count(file: Path) -> int:
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


# --- one worker ----------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """One living worker. `process` is None for one that an earlier supervisor or a terminal started.

    `slack` are seconds left, beside its grace, to whoever else sees to its end; `job` is what a cluster calls its start.
    """

    run: Run
    process: subprocess.Popen[bytes] | None = None
    pid: int = 0
    pace: Pace = field(default_factory=Pace)
    oom: OomKills | None = None
    asked: float = 0.0
    pressed: int = 0
    told: bool = False
    slack: float = 0.0
    job: str = ""

    def dead(self) -> bool:
        """Whether the worker has ended. Its own child is not yet reaped then, so that its pid is still its own."""
        if self.process is not None:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.process.pid, flags) is not None
        return not worker_lock.alive(self.run)

    def look(self, status: Status) -> None:
        """Take note of progress and memory, and write down a stall where a page can read it."""
        self.pid = self.pid or worker_lock.worker_pid(self.run) or _launched(self.run)
        if self.pid and self.oom is None:
            self.oom = OomKills(self.pid)
        if self.oom:
            self.oom.look()
        now = time.monotonic()
        self.pace.saw(status, now)
        idle = now - self.pace.since
        says = (
            reasons.stalled(idle, self.pace.usual, _suspended(self.pid))
            if idle > self.pace.limit()
            else Message()
        )
        if bool(says) != self.told:
            self._tell(says)

    def is_last_start(self) -> bool:
        """Whether the run was not queued again since the worker that is watched here was started."""
        record = launch.record(self.run)
        if self.job:
            return record is not None and record.job == self.job
        return record is not None or self.run.status().state != "queued"

    def press(self) -> None:
        """A worker that was asked to end and does not: terminate it after its grace, then kill all of it."""
        if not (self.run.requested("stop") or self.run.requested("cancel")):
            self.asked, self.pressed = 0.0, 0
            return
        now = time.monotonic()
        self.asked = self.asked or now
        grace = grace_of(self.run)
        late = now - self.asked - grace - self.slack
        if late > 0 and self.pressed == 0:
            self.pressed = int(self.terminate())
        if late > min(LAST_GRACE, grace):
            self.kill()

    def terminate(self) -> bool:
        """Whether it was told; one that has not yet said who it is is told once it has."""
        if self.pid:
            log.info("%s: terminating it", self.run.id)
            with suppress(OSError):
                os.kill(self.pid, signal.SIGTERM)
        return self.pid > 0

    def kill(self) -> None:
        if self.pid:
            log.info("%s: killing it", self.run.id)
            kill_tree(self.pid)

    def clear(self) -> None:
        """Clear away what is left of a worker whose run's folder was deleted."""
        end_session(self.pid)
        if self.process:
            self.process.wait()

    def _tell(self, says: Message) -> None:
        replace_text(
            self.run.folder / "watch.json",
            json.dumps({"mark": self.pace.mark, "stalled": message.to_plain(says)}),
        )
        self.told = bool(says)

    def finalize(self) -> Status | None:
        """Clear away what the dead worker left, and write its outcome. None while the lock is not to be had."""
        end_session(self.pid or (self.process.pid if self.process else _launched(self.run)))
        code = self.process.wait() if self.process else None
        lock = locks.lock(self.run.lock_path, wait=0.5)
        if lock is None:
            return None
        try:
            if not self.is_last_start():
                return self.run.status()  # it ended, and was queued again before anybody looked
            return finalize(self.run, code, self.oom is not None and self.oom.grew())
        finally:
            os.close(lock)


def grace_of(run: Run) -> float:
    """Seconds the run's worker has to end by itself once it was asked."""
    with suppress(OSError, ValueError):
        return float((run.folder / "requests" / "grace").read_text())
    return STOP_GRACE


def _launched(run: Run) -> int:
    record = launch.record(run)
    return record.pid if record and record.boot_id == hardware.boot_id() else 0


def _suspended(pid: int) -> bool:
    with suppress(psutil.Error):
        return bool(pid) and psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


def end_session(leader: int) -> None:
    """Kill what is left of a dead worker's session. Harmless when nothing is.

    The kernel gives a number to no new process while it still names a session, so the members found are the worker's.
    """
    if leader <= 1 or _running(leader):
        return
    for pid in psutil.pids():
        with suppress(OSError):
            if pid != os.getpid() and os.getsid(pid) == leader and _of_this_studio(pid):
                os.kill(pid, signal.SIGKILL)


def _of_this_studio(pid: int) -> bool:
    """Whether a process was started for this studio: a session that ended long ago may have given its number away."""
    with suppress(psutil.Error, OSError):
        return psutil.Process(pid).environ().get("TUNER_HOME") == str(paths.home())
    return False


def _running(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def kill_tree(pid: int) -> None:
    """Kill a worker and all it started: its whole session where it leads one, else its descendants."""
    with suppress(psutil.Error):
        family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
        with suppress(OSError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
        for member in family:
            with suppress(psutil.Error):
                member.kill()


# --- the outcome ---------------------------------------------------------------------------------------------------


def finalize(
    run: Run, exit_code: int | None, oom_killed: bool = False, lost: Message | None = None
) -> Status:
    """Write how a dead worker's run ended, if it did not say so itself. The caller holds the run's lock.

    `exit_code` as subprocess has it; None when nobody watched. `lost` is why, of one on a machine that is gone.
    """
    status = run.status()
    if status.state in ENDED:
        if not is_settled(run) or status.tracking:  # it may have died between its last word and MLflow's
            mark_unsettled(run)
        return status
    mark_unsettled(run)
    state, reason = _outcome(run, status, _exit_info(run, status, exit_code, oom_killed, lost))
    ended = _last_sign(status) if reason.code == "rebooted" else status.ended_now()
    return run.update(
        state=state,
        phase="",
        ended=ended,
        began=0.0,
        worked=status.worked_now(),
        exit_code=exit_code,
        artifacts=lambda now: [*now.artifacts, str(run.log_path)],
        **reason.changes(),
    )


def _outcome(run: Run, status: Status, ending: reasons.ExitInfo) -> tuple[State, reasons.Reason]:
    if status.phase == CLOSING:  # all was done and decided; it died while it told MLflow
        said = reasons.Reason(status.cause, status.remedies)
        ends: dict[str, State] = {"": "finished", "stopped": "stopped", "cancelled": "stopped"}
        return ends.get(said.code, "failed"), said
    # A reboot ends what was asked of the run too, but it was the reboot that ended it.
    if (run.requested("stop") or run.requested("cancel")) and not ending.rebooted:
        return "stopped", _stopped(ending)
    unknown = ending.rebooted or ending.exit_code is None
    return "interrupted" if unknown else "failed", reasons.from_exit(ending, run.values())


def _exit_info(
    run: Run, status: Status, exit_code: int | None, oom_killed: bool, lost: Message | None
) -> reasons.ExitInfo:
    kept = next((c for c in reversed(checkpoints.of(run)) if checkpoints.valid(c, deep=False) is None), None)
    return reasons.ExitInfo(
        exit_code=exit_code,
        step=status.step,
        oom_killed=oom_killed,
        rebooted=rebooted(run, status),
        began=bool(status.pid),
        log_tail=run.log_tail(8000),
        checkpoint=kept.name if kept else "",
        lost=lost,
    )


def rebooted(run: Run, status: Status) -> bool:
    """Whether the machine was started anew since the run's worker began."""
    record = launch.record(run)
    if record and record.job:  # another machine's
        return False
    began_on = status.boot_id or (record.boot_id if record else "")
    return bool(began_on) and began_on != hardware.boot_id()


def _stopped(ending: reasons.ExitInfo) -> reasons.Reason:
    again = [reasons.RESUME] if ending.checkpoint or not ending.step else []
    told = message.message("stopped.dead", step=ending.step, checkpoint=ending.checkpoint)
    return reasons.Reason(told, again)


def _last_sign(status: Status) -> float:
    """When a run was last heard of: nobody was there when a reboot ended it."""
    return max(status.updated, status.started, status.created)


def unsettled() -> Path:
    """A folder with one empty file for each run whose outcome MLflow may not know yet."""
    return paths.mlruns() / "unsettled"


def mark_unsettled(run: Run) -> None:
    unsettled().mkdir(parents=True, exist_ok=True)
    (unsettled() / run.id).touch()
