"""What holds of a run wherever it lives: on this machine, or on the nodes of a Ray cluster. One suite for all places.

The cluster is a real one, two nodes on the loopback (slow, and skipped where Ray is not installed). In the fast suite
a few lines stand in its place, which speak its job API and start what they are given; what is fast of this machine is
more of it in test_jobs.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jobs_api
import psutil
import pytest
import test_jobs
import tiny
import yaml
from faults import resumed
from jobs_api import Jobs
from ray_cluster import TwoNodes, raylet_of
from test_jobs import starts, until

from tests import counting
from tuner import paths
from tuner.config.kinds import KINDS
from tuner.config.knobs import ConfigError
from tuner.config.settings import settings
from tuner.jobs import control, foreground, launch, queue, reconcile, serving, slots, submit, supervisor
from tuner.jobs.executors import node, ray, which
from tuner.jobs.executors.cluster import AwayError, Cluster, Job
from tuner.jobs.executors.ray import Ray
from tuner.jobs.watch import Watch
from tuner.runs import checkpoints, reasons
from tuner.runs.run import Run, series
from tuner.runs.status import ENDED, Status
from tuner.text.message import render

TOKEN = secrets.token_hex(16)


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (pip install 'tuner[ray]')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        made = TwoNodes()
    yield made
    made.close()


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    made = Jobs()
    yield made
    made.close()


def at(*fast: str) -> pytest.MarkDecorator:
    """All places, those but `fast` in the slow suite."""
    slow = [pytest.param(p, marks=pytest.mark.slow) for p in ("local", "stand-in", "ray") if p not in fast]
    return pytest.mark.parametrize("place", [*fast, *slow], indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, launching_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A studio whose short runs live there."""
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    if request.param == "ray":
        use(request.getfixturevalue("cluster"), launching_home, monkeypatch)
    elif request.param == "stand-in":
        settle_on(launching_home, request.getfixturevalue("jobs").address)
    return str(request.param)


def use(cluster: TwoNodes, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    settle_on(home, cluster.address)


def settle_on(home: Path, address: str) -> None:
    (home / "settings.yaml").write_text(yaml.safe_dump({"executor": "ray", "ray_address": address}))


def new_run(steps: int = 5, fault: str = "", **values: object) -> Run:
    """One that the nodes, which have no GPU, can take."""
    return test_jobs.new_run(steps, fault, use_cpu=True, **values)


# --- wherever it lives


@at()  # of this machine it is in test_jobs.py
def test_runs_start_in_the_order_shown_and_each_once(place: str) -> None:
    queue.pause()
    first, second, third = (submit.launch(new_run(steps=2)) for _ in range(3))
    queue.move(third.id, 1)
    assert [row.id for row in queue.queue()] == [third.id, first.id, second.id]
    queue.pause(False)
    supervisor.ensure_supervisor()
    for run in (third, first, second):
        assert control.wait(run, timeout=90).state == "finished", run.status().reason
    began = [starts(run)[0][2] for run in (third, first, second)]
    assert began == sorted(began)
    assert [len(starts(run)) for run in (first, second, third)] == [1, 1, 1]


@at("stand-in")
def test_stop_saves_and_resume_goes_on_from_there_in_the_same_run(place: str) -> None:
    run = submit.launch(new_run(steps=2000))
    until(lambda: run.status().step > 2)
    assert "saved" in control.stop(run)
    stopped = control.wait(run, timeout=60)
    assert stopped.state == "stopped" and 2 < stopped.step < 2000
    control.resume(run)
    until(lambda: run.status().step > stopped.step)
    assert run.status().first_step == stopped.step
    control.stop(run, now=True)
    assert control.wait(run, timeout=60).state == "stopped"
    assert [n for _, n, _ in starts(run)] == [0, 1]


@at("stand-in")
def test_a_supervisor_that_died_is_followed_by_one_that_goes_on_watching(place: str) -> None:
    run, after = submit.launch(new_run(steps=150)), submit.launch(new_run(steps=2))
    until(lambda: run.status().step > 2)
    os.kill(supervisor.leader() or 0, signal.SIGKILL)
    until(lambda: not supervisor.supervised())
    supervisor.ensure_supervisor()
    assert control.wait(run, timeout=90).state == "finished"
    assert control.wait(after, timeout=90).state == "finished"
    assert [len(starts(run)), len(starts(after))] == [1, 1]


@at("stand-in")
def test_a_worker_that_is_killed_is_explained_and_its_run_can_be_resumed(place: str) -> None:
    run = submit.launch(new_run(steps=3000))
    until(lambda: run.status().step >= 3)
    os.kill(run.status().pid, signal.SIGKILL)
    assert until(lambda: run.status().state in ENDED) < 10
    status = run.status()
    assert (status.state, status.reason_code, status.exit_code) == ("failed", "killed", -9)
    assert "signal 9" in status.reason and "checkpoint-" in status.reason
    assert control.why_not_resumable(run) is None


@at("stand-in")
def test_a_worker_that_hears_nothing_is_ended_after_its_grace(place: str) -> None:
    run = submit.launch(new_run(fault="deaf@1"))
    until(lambda: (run.folder / "child").exists())
    control.stop(run, grace=0.5)
    assert until(lambda: run.status().state in ENDED) < 10
    assert run.status().state == "stopped" and "Nothing was saved" in run.status().reason


@at()
def test_a_run_that_is_taken_out_before_it_began_never_begins(place: str) -> None:
    at_work = [submit.launch(new_run(steps=3000)) for _ in range(2)]
    waits = submit.launch(new_run(steps=2))
    after = submit.launch(new_run(steps=2))
    until(lambda: at_work[0].status().step and len(queue.queue()) == 4)
    if place != "local":
        until(lambda: "Waits for room in the cluster" in queue.queue()[2].why)
    assert control.stop(waits) == "Cancelled while queued."
    for run in at_work:
        control.stop(run, now=True)
    assert control.wait(after, timeout=90).state == "finished"
    assert waits.status().state == "stopped" and not starts(waits)


@at()
def test_log_metrics_files_and_the_row_in_mlflow_are_read_in_one_way(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.counting")
    monkeypatch.setitem(KINDS, "count", counting.KIND)
    run = submit.submit(counting.CountConfig(upto=4), "a count")
    assert control.wait(run, timeout=120).state == "finished", run.status().reason
    assert "step 4  loss 0.25" in run.log_tail(2000)
    rows, offset = run.metrics()
    assert series(rows, "loss")[0] == [1, 2, 3, 4] and run.metrics(offset) == ([], offset)
    assert (run.folder / "output" / "counted.txt").read_text() == "4"
    reconcile.sync()
    from tuner.tracking.store import open_store

    row = open_store().get_run(run.id)
    assert row.info.status == "FINISHED"
    assert [p.value for p in open_store().get_metric_history(run.id, "loss")] == [1, 1 / 2, 1 / 3, 1 / 4]


FOREGROUND = """
import sys
from tuner.jobs.foreground import run_in_foreground
from tuner.runs.run import Run
sys.exit(run_in_foreground(Run(sys.argv[1])))
"""


@at("stand-in")
def test_a_terminal_shows_the_log_of_a_run_and_ends_with_it(place: str) -> None:
    run = new_run(fault="left@2")
    done = subprocess.run(
        [sys.executable, "-c", FOREGROUND, run.id], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "Segmentation fault, more or less" in done.stdout, done.stderr
    assert run.status().state in ("failed", "interrupted")  # the second where a supervisor here was quicker
    assert run.status().exit_code == 3 or place == "local"


def test_a_terminal_ends_with_a_run_that_is_deleted(jobs: Jobs, launching_home: Path) -> None:
    settle_on(launching_home, jobs.address)
    queue.pause()
    run = new_run()
    terminal = subprocess.Popen([sys.executable, "-c", FOREGROUND, run.id], stderr=subprocess.PIPE, text=True)
    until(lambda: run.id in queue.order().ids)
    shutil.rmtree(run.folder)
    _, said = terminal.communicate(timeout=30)
    assert terminal.returncode == 1 and f"Run {run.id} was deleted." in said


# --- on a cluster


@pytest.fixture
def on_ray(cluster: TwoNodes, launching_home: Path, monkeypatch: pytest.MonkeyPatch) -> TwoNodes:
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    use(cluster, launching_home, monkeypatch)
    return cluster


@pytest.mark.slow
def test_two_runs_of_one_gpu_see_different_ones(on_ray: TwoNodes) -> None:
    raylet = on_ray.add(cpus=2, gpus=2)  # numbers only; Ray asks no driver
    runs = [submit.launch(new_run(steps=3000, use_cpu=False)) for _ in range(2)]
    until(lambda: all(run.status().step for run in runs))
    seen = [psutil.Process(run.status().pid).environ()["CUDA_VISIBLE_DEVICES"] for run in runs]
    assert sorted(seen) == ["0", "1"]
    for run in runs:
        control.stop(run, now=True)
    assert all(control.wait(run, timeout=60).state == "stopped" for run in runs)
    os.kill(raylet, signal.SIGKILL)


@pytest.mark.slow
def test_a_start_whose_place_was_taken_ends_its_worker(on_ray: TwoNodes) -> None:
    run = submit.launch(new_run(steps=3000))
    until(lambda: run.status().step)
    pid, found = run.status().pid, launch.record(run)
    assert found is not None and psutil.pid_exists(pid)
    launch.write_record(run, replace(found, over=True))
    until(lambda: not psutil.pid_exists(pid), 10)
    assert control.wait(run, timeout=60).state == "interrupted"


@pytest.mark.slow
def test_the_tokens_place_is_named_to_who_has_none(on_ray: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    run = submit.launch(new_run())
    until(lambda: "wants a token; set RAY_AUTH_TOKEN" in queue.queue()[0].why)
    assert run.status().state == "queued"
    assert "0" * 32 not in (paths.mlruns() / "supervisor.log").read_text()
    control.stop(run)


@pytest.mark.slow
def test_a_node_that_dies_is_noticed_and_its_run_goes_on_on_another(
    on_ray: TwoNodes, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNER_WORKER_MODULE")
    tiny.model(launching_home / "model")
    tiny.data(launching_home / "data")
    runs = [submit.submit(resumed.config("sft", num_train_epochs=150), name) for name in "ab"]
    until(lambda: all(checkpoints.of(run) for run in runs), 240)
    nodes = {raylet_of(run.status().pid): run for run in runs}
    (raylet,) = nodes.keys() - {on_ray.head}
    victim, other = nodes[raylet], nodes[on_ray.head]
    worker = victim.status().pid
    os.kill(raylet, signal.SIGKILL)
    control.stop(other, now=True)
    took = until(lambda: victim.status().state in ENDED, 60)
    status = victim.status()
    print(f"said after {took:.1f} s: {status.reason}")
    assert (status.state, status.reason_code) == ("interrupted", "node_lost")
    assert "checkpoint-" in status.reason and status.remedies == [reasons.RESUME]
    until(lambda: not psutil.pid_exists(worker), 10)
    on_ray.add()
    control.resume(victim)
    status = control.wait(victim, timeout=400)
    assert status.state == "finished" and "checkpoint-" in status.began_from, status.reason
    reconcile.sync()
    from tuner.tracking.store import open_store

    row, points = open_store().get_run(victim.id), open_store().get_metric_history(victim.id, "loss")
    assert row.info.status == "FINISHED"
    assert [p.step for p in points] == list(range(1, 601))


@pytest.mark.slow
def test_a_cluster_without_an_agent_keeps_the_queue_and_says_why(
    launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dashboard is up, and another process has the port of the head's agent."""
    pytest.importorskip("ray")
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        cluster = TwoNodes(agent_port=taken.getsockname()[1])
        try:
            settle_on(launching_home, cluster.address)
            first, second = (submit.launch(new_run(steps=2)) for _ in range(2))
            took = until(lambda: "takes no jobs (no agent" in queue.queue()[0].why, 180)
            print(f"said after {took:.1f} s: {queue.queue()[0].why}")
            assert [row.id for row in queue.queue()] == [first.id, second.id]
            assert {first.status().state, second.status().state} == {"queued"}
        finally:
            cluster.close()


# --- without Ray


def test_a_cluster_that_takes_no_jobs_keeps_the_run_and_is_asked_again(
    jobs: Jobs, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    settle_on(launching_home, jobs.address)
    jobs.no_node = True
    run = submit.launch(new_run(steps=2))
    until(lambda: "answers, but takes no jobs" in queue.queue()[0].why)
    assert run.status().state == "queued" and not jobs.asked
    jobs.no_node = False
    assert control.wait(run, timeout=60).state == "finished"
    assert len(jobs.asked) == 1


def test_who_was_put_on_hold_while_nobody_watched_is_taken_from_the_door(
    jobs: Jobs, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_api, "CPUS", 0)  # what is submitted waits
    settle_on(launching_home, jobs.address)
    run = new_run()
    submit.place(run)
    runs = {run.id: run.status()}
    first = Ray()
    until(lambda: not list(first.start_next([run.id], runs)) and jobs.asked)
    (job,) = jobs.asked
    second = Ray()
    assert not list(second.start_next([], runs))
    until(lambda: job in jobs.stopped)
    assert not (run.folder / "node.json").exists()
    assert launch.record(run) is None and run.status().state == "queued"
    until(lambda: not list(second.start_next([run.id], runs)) and len(jobs.asked) == 2)


def test_what_a_job_is_asked_with_shows_no_variable_of_the_studio(
    jobs: Jobs, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-for-others")
    settle_on(launching_home, jobs.address)
    run = submit.launch(new_run(steps=400))
    until(lambda: run.status().step)
    assert "not-for-others" not in json.dumps(jobs.asked)
    environ = psutil.Process(run.status().pid).environ()
    assert environ["MLFLOW_TRACKING_PASSWORD"] == "not-for-others"
    assert not (run.folder / "node.json").exists()
    control.stop(run, now=True)
    control.wait(run, timeout=60)


def test_a_node_that_gives_no_sign_of_life_is_given_up(
    jobs: Jobs, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first process sleeps, as one does whose disk hangs, and the cluster says that all is well."""
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    settle_on(launching_home, jobs.address)
    run = new_run(steps=3000)
    submit.place(run)
    watching = Ray()
    monkeypatch.setattr(ray, "SILENT", 2.0)
    watches: list[Watch] = []
    until(lambda: watches.extend(watching.start_next([run.id], {run.id: run.status()})) or watches)
    until(lambda: run.status().step)
    assert not watches[0].dead()
    (job,) = jobs.processes.values()
    for process in [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]:
        process.suspend()
    assert 1 < until(watches[0].dead) < 10
    until(watches[0].finalize, 60)
    status = run.status()
    assert (status.state, status.reason_code) == ("interrupted", "node_lost")
    assert "no sign of life" in status.reason


def test_passwords_left_for_a_start_go_with_it(jobs: Jobs, launching_home: Path) -> None:
    settle_on(launching_home, jobs.address)
    run = new_run()
    submit.place(run)
    list(Ray().start_next([run.id], {run.id: run.status()}))
    assert (run.folder / "node.json").stat().st_mode & 0o777 == 0o600
    control.stop(run)
    assert not (run.folder / "node.json").exists()


def test_a_run_that_is_deleted_is_taken_from_the_door(
    jobs: Jobs, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_api, "CPUS", 0)
    settle_on(launching_home, jobs.address)
    run, executor = new_run(), Ray()
    submit.place(run)
    until(lambda: not list(executor.start_next([run.id], {run.id: run.status()})) and jobs.asked)
    shutil.rmtree(run.folder)
    assert not list(executor.start_next([], {}))
    until(lambda: list(jobs.stopped) == list(jobs.asked), 10)


def at_work(jobs: Jobs, job: str) -> Run:
    """A run that is at work on a node, as far as its folder says."""
    run = new_run()
    submit.place(run)
    run.update(state="running")
    launch.write_record(run, launch.Launch(time.time(), "", 1, pid=1, job=job))
    return run


def test_a_run_that_went_on_is_not_given_up_for_its_earlier_heartbeat(
    jobs: Jobs, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "SILENT", 0.2)
    run = at_work(jobs, "second")
    run.put(node.FILE, "first 1")
    watch = Ray().watch(run)
    assert not watch.dead()
    time.sleep(0.4)
    assert not watch.dead()
    run.put(node.FILE, "second 1")
    assert not watch.dead()
    time.sleep(0.4)
    assert watch.dead()


def test_a_cluster_that_knows_nothing_of_a_job_does_not_end_a_run_whose_node_lives(
    jobs: Jobs, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another one does, once settings.yaml names it and a new supervisor looks."""
    monkeypatch.setattr(ray, "SETTLES", 0.0)
    monkeypatch.setattr(ray, "UNKNOWN", 0.5)
    settle_on(launching_home, jobs.address)
    run = at_work(jobs, "elsewhere")
    watch = Ray().watch(run)
    assert isinstance(watch, ray.RayWatch) and watch.reports is not None
    beats = 0
    while beats < 3 or watch.reports.of("elsewhere") is None:
        run.put(node.FILE, f"elsewhere {(beats := beats + 1)}")
        assert not watch.dead()
        time.sleep(0.1)
    until(watch.dead, 5)
    assert render(watch.lost) == "the cluster's job has vanished."


def test_a_disk_that_does_not_answer_does_not_end_a_worker(launching_home: Path) -> None:
    run = new_run()
    launch.write_record(run, launch.Launch(time.time(), "", 1, job="a"))
    assert node._wanted(run, "a") and not node._wanted(run, "b")
    file = run.folder / "launch.json"
    file.unlink()
    assert not node._wanted(run, "a")
    file.symlink_to(file)  # an error other than "not there", also to root
    assert node._wanted(run, "a")


def test_what_a_job_printed_last_is_why_it_failed() -> None:
    first = "Job entrypoint command failed with exit code 3, last available logs (truncated to 20,000 chars):"
    assert (
        ray._line(f"{first}\nwarning: a\nn2 has no /x; share it, see docs.\n")
        == "n2 has no /x; share it, see docs"
    )
    assert ray._line("Job supervisor actor died.\nTraceback ...") == "Job supervisor actor died"


@contextmanager
def answering(get: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that answers every question in one way; its address."""

    class Answers(BaseHTTPRequestHandler):
        do_GET = do_POST = get

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def say(asked: BaseHTTPRequestHandler, status: int, text: str = "{}", **headers: str) -> None:
    asked.send_response(status)
    for name, value in {"Content-Length": str(len(text)), **headers}.items():
        asked.send_header(name, value)
    asked.end_headers()
    asked.wfile.write(text.encode())


def test_an_answer_that_leads_elsewhere_takes_no_token_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    heard: list[str | None] = []

    def listens(asked: BaseHTTPRequestHandler) -> None:
        heard.append(asked.headers["Authorization"])
        say(asked, 200)

    with answering(listens) as other, answering(lambda asked: say(asked, 302, Location=other)) as address:
        Cluster(other).job("a")
        assert heard == [f"Bearer {TOKEN}"]
        for ask in (
            lambda: Cluster(address).job("a"),
            lambda: Cluster(address).submit("a", "true", 1, 0, {}),
        ):
            with pytest.raises(AwayError, match="status 302"):
                ask()
    assert len(heard) == 1


def test_a_job_that_cannot_be_stopped_keeps_no_news_of_the_others_away() -> None:
    def answers(asked: BaseHTTPRequestHandler) -> None:
        stops = asked.path.endswith("/stop")
        say(
            asked,
            400 if stops else 200,
            "Can only stop submission type jobs" if stops else '{"status": "RUNNING"}',
        )

    with answering(answers) as address:
        reports = ray.Reports(Cluster(address))
        reports.stop("a")
        until(lambda: reports.trouble, 5)
        assert reports.of("b") is None
        until(lambda: reports.of("b") == Job("RUNNING"), 5)


def test_a_cluster_that_does_not_answer_keeps_the_order_and_says_so(
    launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    settle_on(launching_home, "http://127.0.0.1:9")
    first, second = (submit.launch(new_run(steps=1)) for _ in range(2))
    until(lambda: "http://127.0.0.1:9 does not answer" in queue.queue()[0].why)
    assert [row.id for row in queue.queue()] == [first.id, second.id]
    (launching_home / "settings.yaml").unlink()  # then they live here
    assert [control.wait(run, timeout=60).state for run in (first, second)] == ["finished"] * 2
    assert starts(first)[0][2] < starts(second)[0][2]


def test_a_run_that_is_sent_to_this_machine_instead_is_watched_as_one_of_it(
    launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same supervisor that had brought it to a cluster which does not answer."""
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    settle_on(launching_home, "http://127.0.0.1:9")
    run, looking = new_run(steps=3000), supervisor.Supervisor()
    submit.place(run)
    until(lambda: looking.tick() and launch.elsewhere(run))
    (launching_home / "settings.yaml").unlink()
    until(lambda: looking.tick() and run.status().step)
    watch, found = looking.watches[run.id], launch.record(run)
    assert type(watch) is Watch and watch.process is not None and found is not None and found.slots
    control.stop(run, now=True)
    until(lambda: not looking.tick() or run.id not in looking.watches)
    assert run.status().state == "stopped" and watch.process.returncode is not None


def test_a_run_that_began_is_not_ended_at_the_door_where_its_lock_is_not_seen(
    jobs: Jobs, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk without locks between machines; other runs are watched before the door is looked at."""
    monkeypatch.setattr(jobs_api, "CPUS", 0)
    settle_on(launching_home, jobs.address)
    run, executor = new_run(), Ray()
    submit.place(run)
    until(lambda: not list(executor.start_next([run.id], {run.id: run.status()})) and jobs.asked)
    run.update(state="running")
    (watch,) = executor.start_next([], {run.id: run.status()})
    assert [watch.job] == list(jobs.asked)
    time.sleep(2 * ray.LOOK)
    assert not jobs.stopped


def test_a_run_at_the_door_of_a_cluster_that_is_changed_is_not_started_by_both(
    jobs: Jobs, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_api, "CPUS", 0)
    settle_on(launching_home, jobs.address)
    run, executor, other = new_run(), Ray(), Jobs()
    try:
        submit.place(run)
        runs = {run.id: run.status()}
        until(lambda: not list(executor.start_next([run.id], runs)) and jobs.asked)
        settle_on(launching_home, other.address)
        until(lambda: not list(executor.start_next([run.id], runs)) and other.asked)
        until(lambda: jobs.stopped)
        found = launch.record(run)
        assert found is not None and [found.job] == list(other.asked) and found.job not in jobs.asked
    finally:
        other.close()


def test_what_is_served_here_makes_no_room_for_runs_of_a_cluster(launching_home: Path) -> None:
    serves, waits = new_run(), new_run()
    for run in (serves, waits):
        submit.place(run)
    held = slots.take(serves.id, ["cpu"], 1)
    try:
        launch.write_record(serves, launch.Launch(time.time(), "", 1, ("cpu",)))
        serves.update(state="running", stays=True)
        assert serving.claimant(serves, idle=False) == waits
        settle_on(launching_home, "http://127.0.0.1:9")
        assert serving.claimant(serves, idle=False) is None
        serves.update(state="queued")
        queue.move(serves.id, 2)
        assert foreground._ahead(serves, ["cpu"]) == []
        (launching_home / "settings.yaml").unlink()
        assert foreground._ahead(serves, ["cpu"]) == [waits.id]
    finally:
        slots.release(held or {})


def test_a_run_that_stays_here_starts_whatever_is_in_the_settings(launching_home: Path) -> None:
    runs = {"a": Status(), "b": Status(stays=True)}
    assert which.parted(["a", "b"], runs) == (["a", "b"], [])
    settle_on(launching_home, "http://127.0.0.1:9")
    assert which.parted(["a", "b"], runs) == (["b"], ["a"])
    (launching_home / "settings.yaml").write_text("executor: slurm")
    assert which.parted(["a", "b"], runs) == (["b"], None)


def test_settings_that_cannot_be_read_start_nothing_and_are_named(launching_home: Path) -> None:
    for text, said in {
        "executor: slurm": "'local' or 'ray'",
        "ray_adress: http://x": "ray_adress is none of executor",
        "ray_address: http://me:pass@x:1": "without a path or a password",
        "ray_python: ''": "ray_python: string should have at least 1 character",
        "- a": "it holds no names with values",
        "executor: [": "fix the file",
    }.items():
        (launching_home / "settings.yaml").write_text(text)
        with pytest.raises(ConfigError, match=said):
            settings()
    assert "settings.yaml cannot be used" in str(which.waits_for(Run("a"), Status()))
