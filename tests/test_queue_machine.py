"""The queue and the supervisor under every order of events: submitting, moving, stopping, dying, at random.

The supervisor is the real one, ticked by hand; its workers are sleeping processes that hold the real locks, and the
machine says when one speaks, ends or dies. Two GPUs are given, so that runs work side by side.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tuner import hardware
from tuner.config.config import check
from tuner.config.writing import to_yaml
from tuner.jobs import control, launch, queue, submit, supervisor
from tuner.runs import locks
from tuner.runs.run import Run
from tuner.runs.status import ENDED, LIVE, Status
from tuner.text.message import plain

CONFIG, _ = check({"model_name_or_path": "m"})
assert CONFIG is not None
YAML = to_yaml({"model_name_or_path": "m"})
TWO = to_yaml({"model_name_or_path": "m", "num_gpus": 2})
PICK = st.integers(0, 3)
PAIR = [hardware.Gpu(i, "pretended", 2**33, 0, (9, 0)) for i in range(2)]


class QueueMachine(RuleBasedStateMachine):
    """What must hold whatever happens: nothing started twice, nothing lost, no slot shared, everything explained.

    `submitted` counts how often each run is to be started, `started` how often it was.
    """

    @initialize()
    def open_studio(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.home = Path(tempfile.mkdtemp(prefix="tuner-queue-"))
        self.patch.setenv("TUNER_HOME", str(self.home))
        self.patch.setattr(hardware, "gpus", lambda: tuple(PAIR))
        self.patch.setattr(launch, "spawn", self.spawn)
        supervisor.leader_path().parent.mkdir()
        # Held, so that nothing starts behind the machine's back.
        self.leader = locks.lock(supervisor.leader_path())
        self.supervisor = supervisor.Supervisor()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.started: dict[str, int] = {}
        self.submitted: dict[str, int] = {}
        self.order: list[str] = []
        self.count = 0
        for _ in range(2):
            self.submit(None)

    def teardown(self) -> None:
        if hasattr(self, "home"):
            for process in self.processes.values():
                process.kill()
                process.wait()
            if self.leader is not None:
                os.close(self.leader)
            self.patch.undo()
            shutil.rmtree(self.home)

    def spawn(self, run: Run, lock: int, taken: dict[str, int]) -> subprocess.Popen[bytes]:
        held = (lock, *taken.values())
        process = subprocess.Popen(["sleep", "1000"], pass_fds=held, start_new_session=True)
        self.processes[run.id] = process
        self.started[run.id] += 1
        return process

    # --- people

    @rule(gpus=st.sampled_from([None, (0,), (1,), (0, 1)]), several=st.booleans())
    def submit(self, gpus: tuple[int, ...] | None, several: bool = False) -> None:
        """One that chooses its GPUs, or one that wants any, or any two."""
        self.count += 1
        run = Run(f"run{self.count:03d}")
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").write_text(TWO if several and gpus is None else YAML)
        run.write(Status(created=float(self.count)))
        self.started[run.id], self.submitted[run.id] = 0, 1
        self.order.append(run.id)
        submit.place(run, gpus)

    @rule(pick=PICK, position=st.integers(1, 4))
    def move(self, pick: int, position: int) -> None:
        run = self.run(pick)
        waiting = self.waiting()
        if run.id not in waiting:
            with pytest.raises(ValueError, match="does not wait"):
                queue.move(run.id, position)
            return
        queue.move(run.id, position)
        waiting.remove(run.id)
        waiting.insert(position - 1, run.id)
        self.order = waiting + [i for i in self.order if i not in waiting]

    @rule(pick=PICK, held=st.booleans())
    def hold(self, pick: int, held: bool) -> None:
        run = self.run(pick)
        queue.hold_back(run.id, held)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        queue.pause(paused)

    @rule(pick=PICK, now=st.booleans())
    def stop(self, pick: int, now: bool) -> None:
        run = self.run(pick)
        due = self.started[run.id] < self.submitted[run.id]
        control.stop(run, now=now, grace=0)
        if due:  # it waited, and nobody waits for it any more
            assert run.status().state == "stopped"
            self.submitted[run.id] -= 1

    @rule(pick=PICK)
    def resume(self, pick: int) -> None:
        run = self.run(pick)
        if control.why_not_resumable(run) is None:
            control.resume(run)
            self.submitted[run.id] += 1
            self.order = [i for i in self.order if i != run.id] + [run.id]

    @rule(what=st.sampled_from(["", "{", '{"ids": 3}', None]))
    def damage_the_order(self, what: str | None) -> None:
        path = self.home / "mlruns" / "queue.json"
        path.unlink(missing_ok=True)
        if what is not None:
            path.write_text(what)
        self.order.sort()  # without it: in the order of creation

    def run(self, pick: int) -> Run:
        """One of the last few runs: the older ones have ended."""
        known = list(self.started)[-4:]
        return Run(known[pick % len(known)])

    # --- workers

    def living(self, run: Run) -> bool:
        process = self.processes.get(run.id)
        if process is None or process.returncode is not None:
            return False
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    @rule(pick=PICK)
    def speak(self, pick: int) -> None:
        run = self.run(pick)
        if self.living(run):
            pid = self.processes[run.id].pid
            run.update(state="running", pid=pid, boot_id=hardware.boot_id(), step=run.status().step + 1)

    @rule(pick=PICK)
    def finish(self, pick: int) -> None:
        run = self.run(pick)
        if self.living(run):
            run.update(state="finished")
            self.kill(run)

    @rule(pick=PICK)
    def end_as_asked(self, pick: int) -> None:
        run = self.run(pick)
        if self.living(run):
            run.update(state="stopped", cause=plain("Stopped by its worker."))
            self.kill(run)

    @rule(pick=PICK)
    def die(self, pick: int) -> None:
        run = self.run(pick)
        if self.living(run):
            self.kill(run)

    def kill(self, run: Run) -> None:
        """Dead, and not yet reaped, for that is the supervisor's part."""
        process = self.processes.pop(run.id)
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    # --- the supervisor

    @rule(times=st.integers(1, 3))
    def tick(self, times: int) -> None:
        for _ in range(times):
            self.supervisor.tick()

    @rule(pick=PICK)
    def die_together(self, pick: int) -> None:
        """Worker and supervisor at once: nobody saw how."""
        self.die(pick)
        self.replace_supervisor()

    @rule()
    def replace_supervisor(self) -> None:
        """Killed, and another one: it knows nothing but what is on disk."""
        self.supervisor = supervisor.Supervisor()

    # --- what holds

    def waiting(self) -> list[str]:
        return [i for i in self.order if Run(i).status().state == "queued"]

    @invariant()
    def order_is_what_people_made_it(self) -> None:
        if hasattr(self, "home"):
            assert queue.waiting() == self.waiting()
            rows = queue.queue()
            assert len({row.id for row in rows}) == len(rows)

    @invariant()
    def nothing_is_started_more_often_than_it_was_submitted(self) -> None:
        for run_id, times in getattr(self, "started", {}).items():
            assert times <= self.submitted[run_id], run_id
            if times < self.submitted[run_id]:  # what did not begin cannot end by itself
                assert Run(run_id).status().state == "queued"

    @invariant()
    def no_slot_is_shared(self) -> None:
        used: dict[str, str] = {}
        for run_id in list(getattr(self, "processes", {})):
            record = launch.record(Run(run_id))
            for slot in record.slots if record and self.living(Run(run_id)) else ():
                assert used.setdefault(slot, run_id) == run_id
            chosen = Run(run_id).status().gpus
            assert not record or not chosen or record.gpus == tuple(chosen)
            assert not record or chosen or len(record.gpus) == Run(run_id).status().devices

    @invariant()
    def what_ended_is_explained(self) -> None:
        for run_id in getattr(self, "started", {}):
            status = Run(run_id).status()
            assert status.state in ENDED | LIVE | {"queued"}
            assert status.state not in ENDED - {"finished"} or status.reason

    @rule()
    def everything_settles(self) -> None:
        """However it stands, a supervisor left alone brings every run to an end that is not its worker's to choose."""
        queue.pause(False)
        for run_id in self.order:
            queue.hold_back(run_id, False)
        due = {i: n for i, n in self.submitted.items() if i in self.waiting() and self.started[i] < n}
        for _ in range(3 * len(self.order) + 3):
            self.supervisor.tick()
            for run_id in list(self.processes):
                self.finish_quietly(Run(run_id))
        self.supervisor.tick()
        left = {i: Run(i).status().state for i in self.order if Run(i).status().state not in ENDED}
        assert not left
        assert due == {i: self.started[i] for i in due}

    def finish_quietly(self, run: Run) -> None:
        if self.living(run):
            run.update(state="finished")
            self.kill(run)


def test_a_run_that_wants_both_gpus_is_not_starved_by_later_ones_that_want_one() -> None:
    machine = QueueMachine()
    machine.open_studio()
    try:
        machine.hold(1, True)
        machine.submit((0, 1))
        machine.submit(None)
        machine.tick(3)
        assert list(machine.processes) == ["run001"]
        machine.finish(0)
        machine.tick(3)
        assert list(machine.processes) == ["run003"]
    finally:
        machine.teardown()


def test_a_run_that_is_resumed_before_its_end_was_seen_is_not_buried() -> None:
    machine = QueueMachine()
    machine.open_studio()
    try:
        machine.tick(1)
        machine.end_as_asked(0)
        machine.resume(0)
        machine.tick(1)
        machine.nothing_is_started_more_often_than_it_was_submitted()
        machine.tick(2)
        assert machine.started["run001"] == 2
    finally:
        machine.teardown()


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(
    max_examples=int(os.environ.get("TUNER_QUEUE_EXAMPLES") or 12),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
