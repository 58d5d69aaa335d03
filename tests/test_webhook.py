"""What is told to an address of the owner's choice, by a real supervisor to a real server, and what is not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_jobs import new_run, until

from tuner.config.config import check
from tuner.config.knobs import ConfigError
from tuner.config.settings import settings
from tuner.jobs import submit, webhook
from tuner.runs import diverging
from tuner.runs.run import Run

ELSEWHERE = "/elsewhere"


class Listener(ThreadingHTTPServer):
    """Keeps what is posted to it; `/move` sends whoever asks somewhere else on it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, object]]] = []
        super().__init__(("127.0.0.1", 0), _Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Listener)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.heard.append((self.path, body))
        self.send_response(302 if self.path == "/move" else 200)
        self.send_header("Location", ELSEWHERE)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.shutdown()
    made.server_close()


def choose(home: Path, address: str) -> None:
    (home / "settings.yaml").write_text(json.dumps({"webhook": address}))


def test_the_supervisor_tells_how_a_run_ended(
    launching_home: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_worker")
    choose(launching_home, f"{listener.address}/hook?a=b")
    good, bad = new_run(2, stage="sft"), new_run(2, fault="diverged@2", stage="dpo")
    for run in (good, bad):
        submit.launch(run)
    until(lambda: len(listener.heard) == 2, 60)
    told = {str(body["run"]): body for _, body in listener.heard}
    assert {path for path, _ in listener.heard} == {"/hook?a=b"}
    assert (told[good.id]["event"], told[good.id]["step"], told[good.id]["stage"]) == ("finished", 2, "sft")
    assert told[bad.id]["event"] == "failed" and told[bad.id]["reason"] == bad.status().reason
    assert str(told[bad.id]["text"]).startswith(f"{bad.name}: failed.")
    assert set(told[good.id]) == {
        "text", "event", "run", "name", "stage", "step", "total_steps", "seconds", "reason",
    }  # fmt: skip


def test_no_redirect_is_followed_and_nothing_is_raised(home: Path, listener: Listener) -> None:
    run = new_run(2)
    for path in ("/move", "/x"):
        choose(home, listener.address + path)
        sender = webhook.announce(run, run.status())
        assert sender is not None
        sender.join(20)
    assert [path for path, _ in listener.heard] == ["/move", "/x"]
    choose(home, "http://127.0.0.1:9/nobody")
    sender = webhook.announce(run, run.status())
    assert sender is not None
    sender.join(20)
    assert not sender.is_alive()
    (home / "settings.yaml").unlink()
    assert webhook.announce(run, run.status()) is None


def test_what_is_no_server_of_pages_or_no_address_is_no_crash_and_told_nowhere(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as odd:

        def answer() -> None:
            asked, _ = odd.accept()
            with asked:
                asked.recv(2**16)
                asked.sendall(b"220 mail.example ESMTP\r\n")

        threading.Thread(target=answer, daemon=True).start()
        choose(home, f"http://127.0.0.1:{odd.getsockname()[1]}/hook")
        assert webhook.test() is False
    choose(home, "https://chat.example:T0KEN/hook")  # a port that is none
    assert webhook.test() is False
    assert "T0KEN" not in caplog.text and "took" not in caplog.text.replace("did not take", "")


def test_settings_that_cannot_be_read_stop_no_supervisor(home: Path) -> None:
    (home / "settings.yaml").write_text("webhook: [")
    run = new_run(2)
    assert webhook.announce(run, run.status()) is None


def test_a_secret_in_a_name_is_masked_wherever_it_stands(home: Path) -> None:
    secret = "hf_" + "aB3" * 8
    config, _ = check({"model_name_or_path": "m"})
    assert config is not None
    run = Run("5" * 32)
    run.create(config, f"with {secret}")
    assert secret in run.name
    assert secret not in json.dumps(webhook.told(run, run.status(), "finished"))


def test_an_address_may_stand_in_the_environment(
    home: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(home, "$MY_HOOK")
    run = new_run(2)
    assert webhook.announce(run, run.status()) is None
    monkeypatch.setenv("MY_HOOK", listener.address)
    sender = webhook.announce(run, run.status())
    assert sender is not None
    sender.join(20)
    assert len(listener.heard) == 1
    monkeypatch.setenv("MY_HOOK", "http://example.com/x")
    assert webhook.announce(run, run.status()) is None


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/x",
        "ftp://127.0.0.1",
        "https://me:secret@example.com",
        "http://127.0.0.1.evil.com/",
        "$A B",
    ],
)
def test_only_https_or_this_machine_is_told(home: Path, address: str) -> None:
    choose(home, address)
    with pytest.raises(ConfigError, match="a webhook is an https address"):
        settings()


def test_a_loss_that_runs_away_is_told_from_one_that_falls_or_jitters(home: Path) -> None:
    falls = [1 / (1 + i / 10) for i in range(60)]
    assert not diverging.diverging(falls)
    assert not diverging.diverging([0.69, 0.72] * 30)
    assert not diverging.diverging([*falls, 9.0])  # one bad batch
    assert not diverging.diverging([0.69, *[0.01] * 30, *[0.05] * 10])  # still far below where it began
    assert diverging.diverging([*falls, *[1.5, 2.0, 3.0, 4.0, 5.0, 6.0]])
    run: Run = new_run(2)
    metrics = run.folder / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": i, "loss": v}) + "\n" for i, v in enumerate(falls)))
    assert not diverging.look(run) and not diverging.noted(run)
    with metrics.open("a") as more:
        more.writelines(json.dumps({"step": 60 + i, "loss": 2.0 + i}) + "\n" for i in range(8))
        more.write('{"step": 9, "lo')
    assert diverging.look(run) and diverging.noted(run)
    assert not diverging.look(run)  # once
