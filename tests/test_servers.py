"""The whole way of a run and its adapter on every kind of store: a file, a server on SQLite, and PostgreSQL with S3."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import servers
import tiny
from conftest import ROOT

from tuner import worker
from tuner.config.config import make
from tuner.jobs import reconcile, watch
from tuner.runs.run import Run
from tuner.text.message import plain
from tuner.tracking import adapters, outcome, runs, store
from tuner.tracking.client_reader import _seen as client_cache
from tuner.tracking.store import TrackerError

# A server takes seconds to start; `make test-servers` has them, and .ci/run calls it.
STORES = ("file", *(pytest.param(name, marks=pytest.mark.slow) for name in ("server", "postgres and s3")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.model(folder / "model")
    tiny.data(folder / "data")
    return folder


@pytest.fixture(params=STORES, scope="module")
def studio(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A studio whose runs go to one of the stores; two runs were trained in it, at a server the second by the command line."""
    home = tmp_path_factory.mktemp("studio")
    client_cache.clear()
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if request.param != "file":
            port = servers.free_port()
            if request.param == "server":
                store.new_database(home / "server.db")
                backend, artifacts, env = f"sqlite:///{home / 'server.db'}", "", {}
            else:
                backend = stack.enter_context(servers.postgres())
                env = stack.enter_context(servers.object_store(home))
                artifacts = "s3://tuner/artifacts"
            stack.enter_context(servers.mlflow_server(backend, port, home, artifacts, **env))
            patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        values = {"stage": "sft", "do_train": True, "dataset": "chat", "max_steps": 4, "logging_steps": 1}
        values |= {"model_name_or_path": str(model / "model"), "dataset_dir": str(model / "data")}
        first = runs.create_run(make(values | {"learning_rate": 0.01}), "way-0.01")
        assert worker.run_here(first) == 0
        if request.param == "file":
            assert worker.run_here(runs.create_run(make(values | {"learning_rate": 0.02}), "way-0.02")) == 0
        else:
            by_command(values | {"learning_rate": 0.02})
        yield home


def by_command(values: dict[str, object]) -> None:
    words = [f"{name}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "tuner", "train", *words, "run_name=way-0.02"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_whole_way(studio: Path) -> None:
    rows = runs.list_runs().items
    assert [(r.name, r.state) for r in rows] == [("way-0.02", "finished"), ("way-0.01", "finished")]
    second, first = rows
    assert {"loss", "learning_rate"} <= set(runs.metric_names([first.id, second.id]))
    curves = runs.history([first.id, second.id], "loss")
    assert all(list(curves[id][0]) == [1, 2, 3, 4] for id in (first.id, second.id))
    assert (first.params["learning_rate"], second.params["learning_rate"]) == ("0.01", "0.02")

    # Each adapter was registered once, by its run, with all its files.
    listed = adapters.list_adapters()
    assert len(listed) == 2 and {row.run_id for row in listed} == {first.id, second.id}
    client = store.open_store()
    logged = client.search_logged_models([store.experiment_id(client)])
    assert sorted(str(m.status) for m in logged) == ["READY", "READY"]
    assert not [r for r in (first.run, second.run) if (r.folder / "adapter.json").exists()]

    # Back by its alias, with PEFT and with MLflow.
    newest = next(row for row in listed if row.run_id == second.id)
    adapters.set_alias(newest.name, newest.version, "champion")
    folder = adapters.adapter_folder(newest.name, "champion")
    for name, (size, _) in newest.files.items():
        assert (folder / name).stat().st_size == size
    import mlflow

    with store.as_default():
        loaded = mlflow.pyfunc.load_model(f"models:/{newest.name}@champion")
    assert isinstance(loaded.predict([{"prompt": "one two"}], params={"max_new_tokens": 2})[0], str)

    # A change of one's own is seen by the very next look.
    runs.rename_run(first.id, "renamed")
    runs.set_tag(first.id, "kind", "probe")
    runs.set_note(first.id, "a note")
    row = runs.get_row(first.id)
    assert row is not None and (row.name, row.tags.get("kind"), row.note) == ("renamed", "probe", "a note")
    runs.delete_run(first.id)
    assert [r.id for r in runs.list_runs().items] == [second.id]
    assert [r.id for r in runs.list_runs(runs.RunFilter(deleted=True)).items] == [first.id]
    runs.restore_run(first.id)
    assert {r.id for r in runs.list_runs().items} == {first.id, second.id}
    runs.delete_run(first.id)
    runs.purge(first.id)
    assert not first.run.exists
    assert [r.id for r in runs.list_runs().items] == [second.id]
    adapters.delete_alias(newest.name, "champion")
    assert (
        next(
            r for r in adapters.list_adapters() if r.version == newest.version and r.name == newest.name
        ).aliases
        == ()
    )


def test_an_adapter_is_uploaded_once_however_often_its_registration_fails(
    studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = next(row.run for row in runs.list_runs().items if row.name == "way-0.02")
    client = store.open_store()
    before = len(client.search_logged_models([store.experiment_id(client)]))
    kind = type(client)
    made, refused = kind.create_model_version, []

    def refuse(self: object, *args: object, **given: object) -> object:
        refused.append(given)
        raise RuntimeError("API request failed with error code 500 != 200")

    # A server's failure at this very call, which no server here can be brought to.
    monkeypatch.setattr(kind, "create_model_version", refuse)
    folder = run.folder / "output"
    for _ in range(3):
        with pytest.raises(TrackerError):
            adapters.register(run, folder, name="again", note="first")
    assert len(refused) == 3 and not outcome.is_settled(run)
    monkeypatch.setattr(kind, "create_model_version", made)
    watch.unsettled().mkdir(parents=True, exist_ok=True)
    (watch.unsettled() / run.id).touch()
    assert reconcile.settle(run.id) and outcome.is_settled(run)
    assert [(r.name, r.version, r.note) for r in adapters.list_adapters() if r.name == "again"] == [
        ("again", 1, "first")
    ]
    assert len(client.search_logged_models([store.experiment_id(client)])) == before + 1
    assert adapters.register(run, folder, name="again").version == 1


def test_a_run_that_another_process_sends_is_not_called_done(studio: Path) -> None:
    from tuner.tracking.sync_state import held

    run = next(row.run for row in runs.list_runs().items)
    run.update(tracker=plain("it waits"))
    (watch.unsettled() / run.id).touch()
    with held(run) as mine:
        assert mine
        sent, troubles = reconcile.sync()
    assert sent == 0 and "being sent by another process" in troubles[0]
    assert (watch.unsettled() / run.id).exists()
    assert reconcile.sync() == (0, []) and not (watch.unsettled() / run.id).exists()


# --- what a server says ---------------------------------------------------------------------------------------------------


@contextmanager
def answering(code: int, kind: str) -> Iterator[int]:
    """A server, or the proxy before one, that gives one answer to everything."""
    phrase = http.HTTPStatus(code).phrase
    body = json.dumps({"message": phrase}) if kind == "json" else f"<html><h1>{code} {phrase}</h1></html>"

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()


@pytest.mark.parametrize("kind", ["json", "html"])
@pytest.mark.parametrize(
    ("code", "scheme", "said"),
    [
        (500, "http", "answers with an error of its own"),
        (503, "http", "answers with an error of its own"),
        (401, "http", "asks for a user"),
        (403, "http", "does not let this user"),
        (200, "https", "TLS"),
        (0, "http", "does not answer"),
    ],
)
def test_what_is_wrong_with_a_server_is_told_apart(
    code: int, scheme: str, said: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    with answering(code or 200, kind) as port:
        there = port if code else servers.free_port()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://127.0.0.1:{there}")
        client_cache.clear()
        assert said in runs.list_runs().notice


def test_attempts_that_fail_are_made_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{servers.free_port()}")
    run = Run("waiting")
    (tmp_path / "mlruns").mkdir()
    watch.unsettled().mkdir(parents=True)
    (watch.unsettled() / run.id).touch()
    pauses = []
    for failed in (True, True, True, True, False):
        reconcile._stamp().touch()
        reconcile._count(failed)
        pauses.append(reconcile.pause())
    assert pauses == [60.0, 120.0, 240.0, 480.0, 60.0]
    for _ in range(20):
        reconcile._count(True)
    assert reconcile.pause() == 3600.0
