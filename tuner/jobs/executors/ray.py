"""Runs on the nodes of a Ray cluster: each is a job of the cluster, whose first process is `node.py` beside the worker.

The run's folder lies on a disk that the studio and all nodes share, and is written there as on one machine. The cluster
gives out GPUs and says how a job is; whether a node still lives is told by its heartbeat in that folder as well, for a
cluster whose head died says "RUNNING" of its jobs for ever.

One run at a time stands at the cluster's door, the first of the queue, until the cluster has room for it: so the order
stays the queue's, and a run that needs much is not overtaken by small ones.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tuner import paths
from tuner.config.knobs import ConfigError
from tuner.config.settings import Settings, settings
from tuner.jobs import launch, troubles, watch
from tuner.jobs.executors import node
from tuner.jobs.executors.cluster import AwayError, Cluster, ExistsError, Job
from tuner.runs import locks
from tuner.runs.files import replace_text
from tuner.runs.run import Run
from tuner.runs.status import ENDED, LIVE, Status
from tuner.text import message as texts
from tuner.text.lookup import tr
from tuner.text.message import Message, message, render

log = logging.getLogger("tuner.supervisor")

SILENT = 40.0
"""Seconds without a heartbeat after which a node is given up; it is to be said within 60."""
FIRST = 300.0
"""The same before the first one: Python is started from a shared disk."""
UNKNOWN = 10.0
"""The same of a job that the cluster does not know: it may be another cluster, or a door that leads elsewhere."""
SETTLES = 3.0
"""Seconds between a job's end and the last words of its run: other machines see a shared disk's files that much later."""
LOCKED = 10.0
"""Seconds to wait for the lock of a worker that is gone; a file server keeps it as long as it hopes for its client."""
AGAIN = 5.0
"""Seconds between two attempts to submit a run that the cluster did not take."""
LOOK = 1.0
"""Seconds between two questions about the same job."""
NOT_STARTED = "failed to start within"
"""What Ray says of a job that waited 15 minutes (RAY_JOB_START_TIMEOUT_SECONDS) for room and was given up by it."""
LOG = "last available logs"
"""What Ray says at the end of a line after which the log of a job that failed comes."""
HANDED_ON = ("MLFLOW_", "HF_", "AWS_", "TUNER_", "WANDB_")
"""What the names of variables begin with that a worker on a node gets from the studio. Everything else is the node's."""


# --- for those who only look -----------------------------------------------------------------------------------------


def _note() -> Path:
    """Where the supervisor writes down what the run at the door waits for."""
    return paths.mlruns() / "cluster.json"


def waits_for(run: Run) -> str:
    """What a run that is first in the queue waits for, as a sentence."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        raw = json.loads(_note().read_text(encoding="utf-8"))
        if raw["run"] == run.id and (said := texts.of(raw["said"])):
            return render(said)
    return tr("Starts now.")


def take_back(run: Run) -> None:
    """Stop the job of a run that it has not begun with; where the cluster is away, `node.py` ends itself in its time."""
    found = launch.elsewhere(run)
    if found is not None:
        launch.write_record(run, replace(found, over=True))
        node.take_away(run)
        with suppress(AwayError):
            Cluster(settings().ray_address).stop(found.job)


# --- the cluster, asked in threads -----------------------------------------------------------------------------------


class Reports:
    """What the cluster last said of jobs. A thread asks: a cluster that hangs must not hang who watches."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.trouble = Message()
        self._jobs: dict[str, Job | None] = {}
        self._stops: set[str] = set()
        threading.Thread(target=self._ask, daemon=True, name="cluster").start()

    def of(self, job: str) -> Job | None:
        """None until the cluster has said anything."""
        return self._jobs.setdefault(job, None)

    def forget(self, job: str) -> None:
        self._jobs.pop(job, None)

    def stop(self, job: str) -> None:
        """Have a job ended, as soon as the cluster can be reached."""
        self._stops.add(job)

    def _ask(self) -> None:
        while True:
            with troubles.logged(self.cluster.address):
                self.trouble = self._round()
            time.sleep(LOOK)

    def _round(self) -> Message:
        """Ask once; what is the trouble. Jobs first: one that cannot be stopped must not keep the others' news away."""
        try:
            for job in list(self._jobs):
                said = self.cluster.job(job)
                if job in self._jobs:
                    self._jobs[job] = said
            for job in list(self._stops):
                self.cluster.stop(job)
                self._stops.discard(job)
        except AwayError as away:
            return away.said
        return Message()


@dataclass
class Door:
    """The run that is to begin next: its job is being submitted, or waits in the cluster for room."""

    run: Run
    job: str
    status: Status
    sent: bool = False
    trouble: Message = field(default_factory=Message)
    tried: float = float("-inf")
    sending: threading.Thread | None = None

    def send(self, cluster: Cluster, known: Settings) -> None:
        """Submit its job, in a thread: a cluster without an agent lets one wait."""
        if self.sent or (self.sending and self.sending.is_alive()) or time.monotonic() < self.tried + AGAIN:
            return
        self.sending = threading.Thread(target=self._send, args=(cluster, known), daemon=True, name="door")
        self.sending.start()

    def _send(self, cluster: Cluster, known: Settings) -> None:
        command = shlex.join([known.ray_python, "-m", node.__name__, self.run.id, self.job])
        cpus, gpus = _needs(self.status, known)
        try:
            cluster.submit(self.job, command, cpus, gpus, {"TUNER_HOME": str(paths.home())})
        except ExistsError:
            pass  # the answer to an earlier attempt was lost
        except AwayError as away:
            self.trouble, self.tried = away.said, time.monotonic()
            return
        self.trouble, self.sent = Message(), True


# --- the executor ----------------------------------------------------------------------------------------------------


class Ray:
    """The executor `ray`."""

    def __init__(self) -> None:
        self._reports: Reports | None = None
        self._door: Door | None = None
        self._looked = False
        self._told: tuple[str, Message] = ("", Message())

    def watch(self, run: Run) -> RayWatch:
        """A watch over a run that an earlier supervisor started; by its heartbeat alone where settings.yaml is damaged."""
        reports = None
        with suppress(ConfigError):
            reports = self._cluster(settings())
        start = launch.record(run)
        return RayWatch(run, reports=reports, job=start.job if start else "")

    def start_next(self, ids: Sequence[str], runs: Mapping[str, Status]) -> Iterator[RayWatch]:
        """Bring the first run to the door, take another one away from it, see whether it has begun."""
        yield from self._find(ids, runs)
        if not ids and self._door is None:
            return
        door = self._door
        if door is not None and (not ids or door.run.id != ids[0]):
            yield from self._leave(door)
        elif door is None:
            self._door = self._come(Run(ids[0]), runs[ids[0]])
        elif self._let_in(door):
            self._door = None
            yield self.watch(door.run)

    def _cluster(self, known: Settings) -> Reports:
        if self._reports is None or self._reports.cluster.address != known.ray_address:
            self._reports = Reports(Cluster(known.ray_address))
        return self._reports

    def _find(self, ids: Sequence[str], runs: Mapping[str, Status]) -> Iterator[RayWatch]:
        """Once: what an earlier supervisor brought to the door. It stays there if it is still the next one."""
        if self._looked:
            return
        self._looked = True
        for run_id in (i for i, status in runs.items() if status.state == "queued"):
            if (found := launch.elsewhere(Run(run_id))) is None:
                continue
            door = Door(Run(run_id), found.job, runs[run_id])
            if ids and run_id == ids[0]:
                self._door = door
            elif found.pid == 0:
                yield from self._leave(door)

    def _come(self, run: Run, status: Status) -> Door | None:
        """Write down what is about to be submitted, then submit it: whoever comes after finds the job by its name."""
        lock = locks.lock(run.lock_path)
        if lock is None:  # somebody cancels it
            return None
        try:
            if run.status().state != "queued":
                return None
            job = f"{run.id}-{status.resumes}-{time.time_ns() // 1_000_000:x}"
            node.hand_on(run, {n: v for n, v in os.environ.items() if n.startswith(HANDED_ON)})
            launch.write_record(run, launch.Launch(time.time(), "", os.getpid(), job=job))
        finally:
            os.close(lock)
        log.info("%s: brought to the cluster as %s", run.id, job)
        return Door(run, job, status)

    def _leave(self, door: Door) -> Iterator[RayWatch]:
        """Another run is first now, or this one is not to start at all."""
        self._door = None
        if self._too_late(door):
            yield self.watch(door.run)
            return
        reports = self._reports or self._cluster(settings())
        reports.stop(door.job)
        reports.forget(door.job)

    def _too_late(self, door: Door) -> bool:
        """Whether the run at the door begins at the cluster; else what was written down for that is taken back. Its lock
        alone does not tell: settings.yaml may have sent it to this machine meanwhile, and not every disk shows a lock."""
        if not door.run.folder.is_dir():  # deleted
            return False
        lock = locks.lock(door.run.lock_path)
        try:
            found, state = launch.record(door.run), door.run.status().state
            if found is None or found.job != door.job:
                return False
            if lock is not None and state == "queued":
                launch.forget_record(door.run)
                node.take_away(door.run)
            return lock is None or state in LIVE
        finally:
            if lock is not None:
                os.close(lock)

    def _let_in(self, door: Door) -> bool:
        """Whether the run at the door has begun; else see to it that it can, and say what it waits for."""
        known, before = settings(), self._reports
        reports = self._cluster(known)
        if (
            before is not None and before is not reports
        ):  # by another name: the first cluster may have begun with it
            before.stop(door.job)
            self._door = self._come(door.run, door.status)
            return False
        door.send(reports.cluster, known)
        said = reports.of(door.job) if door.sent else None
        if said is None or said.state == "PENDING":
            self._tell(door.run, door.trouble or reports.trouble or _pending(door, known, said))
            return False
        if not said.state:  # a cluster that was started anew
            door.sent = False
        elif NOT_STARTED in said.said:
            log.info("%s: the cluster gave it up: %s", door.run.id, said.said)
            self._door = self._come(door.run, door.status)
        return bool(said.state) and NOT_STARTED not in said.said

    def _tell(self, run: Run, said: Message) -> None:
        if (run.id, said) != self._told:
            self._told = run.id, said
            with suppress(OSError):
                replace_text(_note(), json.dumps({"run": run.id, "said": texts.to_plain(said)}))


def _needs(status: Status, known: Settings) -> tuple[int, int]:
    """The cores and GPUs that a run asks for: one GPU for each of its processes, unless it is to use the CPU. Whether the
    cluster has any is not asked: one whose nodes are still joining would make it a run on the CPU."""
    return known.ray_cpus * status.devices, 0 if status.use_cpu else status.devices


def _pending(door: Door, known: Settings, said: Job | None) -> Message:
    """What a run waits for that the cluster has."""
    if said is None:
        return Message()
    cpus, gpus = _needs(door.status, known)
    return message("cluster.pending", cpus=cpus, gpus=gpus)


def _line(said: str) -> str:
    """The first line of what Ray says, for a traceback may follow; the last one where it is the job's log that follows."""
    first, _, log = said.strip().partition("\n")
    words = log.strip().splitlines()[-1] if LOG in first and log.strip() else first
    return words.strip()[:300].rstrip(".")


@dataclass
class RayWatch(watch.Watch):
    """A watch over a run on a node, by what the cluster says of its job and by the node's heartbeat."""

    reports: Reports | None = None
    beat: str = ""
    beaten: float = field(default_factory=time.monotonic)
    over: float = 0.0
    waits: float = 0.0
    lost: Message = field(default_factory=Message)
    slack: float = 10.0

    def dead(self) -> bool:
        """Whether its job is over, or its node gives no sign of life."""
        now = time.monotonic()
        if (beat := node.heartbeat(self.run, self.job)) != self.beat and beat:
            self.beat, self.beaten = beat, now
        said = self.reports.of(self.job) if self.reports else None
        if said is not None and said.over and (said.state or now - self.beaten > UNKNOWN):
            self.over = self.over or now
            self.lost = message("lost.job", state=said.state.lower(), said=_line(said.said))
            return now - self.over >= SETTLES
        self.lost = message("lost.silent", seconds=SILENT)
        silent = now - self.beaten > (SILENT if self.beat else FIRST)
        return silent or self.run.status().state in ENDED

    def look(self, status: Status) -> None:
        """Nothing: the node itself sees to progress and memory."""

    def terminate(self) -> bool:
        """Nothing: the node does it, at the end of the grace."""
        return True

    def kill(self) -> None:
        if self.reports and not self.told:
            log.info("%s: having its job stopped", self.run.id)
            self.reports.stop(self.job)
            self.told = True

    def clear(self) -> None:
        self.kill()

    def finalize(self) -> Status | None:
        """Keep what may be left of the worker from writing, and write its outcome. None while the lock is not to be had."""
        self._fence()
        lock = self._lock()
        if lock is None:
            return None
        try:
            if not self.is_last_start():  # queued again before anybody looked
                return self._done(self.run.status())
            return self._done(watch.finalize(self.run, None, lost=self.lost))
        finally:
            os.close(lock)

    def _fence(self) -> None:
        """Tell what may be left of the worker, on a node that nobody can reach, to end itself."""
        found = launch.record(self.run)
        if found and found.job == self.job and not found.over and self.run.status().state in LIVE:
            # of no other state: a run that is just being queued again has no record of this start any more
            launch.write_record(self.run, replace(found, over=True))

    def _lock(self) -> int | None:
        """The run's lock; a new one where the old one is kept by nobody who lives."""
        lock = locks.lock(self.run.lock_path, wait=0.5)
        if lock is None and self.run.status().state not in ENDED:
            self.waits = self.waits or time.monotonic()
            if time.monotonic() - self.waits > LOCKED:
                self.run.lock_path.unlink(missing_ok=True)
                lock = locks.lock(self.run.lock_path)
        return lock

    def _done(self, status: Status) -> Status:
        if status.state in ENDED:
            node.take_away(self.run)
        if self.reports:
            self.reports.forget(self.job)
            self.reports.stop(self.job)
        return status
