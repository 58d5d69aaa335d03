"""A model that is served is a run: queued, given a slot, watched, stopped, and gone when another wants its place."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from tests import tiny
from tuner.jobs import control, serving, submit
from tuner.jobs.serving import Endpoint
from tuner.runs.run import Run
from tuner.tracking.outcome import is_settled


def listening(run: Run, timeout: float = 60) -> Endpoint:
    end = time.monotonic() + timeout
    while (found := serving.endpoint(run)) is None:
        assert time.monotonic() < end and not run.status().ended, run.log_tail() + str(run.status())
        time.sleep(0.05)
    return found


def asked(at: Endpoint, path: str = "/v1/models", key: str | None = None, **headers: str) -> tuple[int, str]:
    """Status and body of a GET, by the standard library alone."""
    import urllib.error
    import urllib.request

    wanted = {"Authorization": f"Bearer {at.key if key is None else key}", **headers}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(at.url + path, headers=wanted), timeout=10
        ) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_it_answers_while_it_lives_and_ends_when_it_is_stopped(launching_home: Path) -> None:
    base = str(tiny.model(launching_home / "model"))
    run = serving.start(base, use_cpu=True, api_key="a-key-of-mine")
    assert serving.start("model") == run and serving.living() == [run]  # one for a base, however it is named
    at = listening(run)
    assert run.status().state == "running" and run.status().phase == "serving"
    status, body = asked(at)
    assert status == 200 and [m["id"] for m in json.loads(body)["data"]] == ["model"]
    assert asked(at, key="")[0] == asked(at, key="wrong")[0] == 401
    assert asked(at, Host="evil.example")[0] == 403 and asked(at, "/health", key="")[0] == 200
    assert stat.S_IMODE((run.folder / serving.FILE).stat().st_mode) == 0o600
    assert asked(at, key="a-key-of-mine")[0] == 200 and not run.secrets_path.exists()
    assert at.key not in run.log_tail() and at.key not in (run.folder / "config.yaml").read_text()
    began = time.monotonic()
    control.stop(run)
    ended = control.wait(run, timeout=30)
    assert (ended.state, ended.cause.code) == ("stopped", "stopped.served"), run.log_tail()
    assert time.monotonic() - began < 10
    assert serving.endpoint(run) is None and serving.living() == []
    while not is_settled(run):
        time.sleep(0.05)


@pytest.mark.slow
def test_another_run_may_have_its_place_and_it_goes_when_nobody_asks(launching_home: Path) -> None:
    base = str(tiny.model(launching_home / "model"))
    first = serving.start(base, use_cpu=True)
    listening(first)
    tiny.data(launching_home / "data")
    from tuner.config.config import make

    training = submit.submit(
        make(
            {
                "model_name_or_path": base,
                "dataset": "chat",
                "max_steps": 1,
                "use_cpu": True,
                "template": "empty",
            }
        ),
        "wants its place",
    )
    ended = control.wait(first, timeout=60)
    assert (ended.state, ended.cause.code) == ("stopped", "stopped.claimed"), first.log_tail()
    assert "wants its place" in ended.reason
    control.stop(training, now=True)
    control.wait(training, timeout=60)
    second = serving.start(base, use_cpu=True, idle_minutes=0.005)
    ended = control.wait(second, timeout=60)
    assert (ended.state, ended.cause.code) == ("stopped", "stopped.idle"), second.log_tail()


def test_what_cannot_listen_says_so(home: Path) -> None:
    import socket

    pytest.importorskip("uvicorn")
    from tuner.config.knobs import ConfigError
    from tuner.config.serving import ServeConfig
    from tuner.serve.run import _socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--api_port {port} on 127.0.0.1 is not free"):
            _socket(ServeConfig(model_name_or_path="x", api_port=port))
    with pytest.raises(ConfigError, match="set API_KEY"):
        _socket(ServeConfig(model_name_or_path="x", api_host="0.0.0.0"))


def test_llama_factory_s_file_and_environment_start_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuner.cli.serving import _config
    from tuner.config.knobs import ConfigError

    file = home / "qwen.yaml"
    file.write_text(
        "model_name_or_path: m\ntemplate: qwen\ninfer_backend: huggingface\ntrust_remote_code: true\n"
    )
    config = _config([str(file)])
    assert (config.api_host, config.api_port, config.template) == ("127.0.0.1", 8000, "qwen")
    assert config.api_open and not config.api_gives_way and config.idle_minutes == 0
    for name, value in (
        ("API_HOST", "::1"),
        ("API_PORT", "9000"),
        ("API_KEY", "k-1"),
        ("API_MODEL_NAME", "mine"),
    ):
        monkeypatch.setenv(name, value)
    config = _config([str(file), "--api_host", "127.0.0.1", "idle_minutes=5"])
    assert (config.api_host, config.api_port, config.api_model_name) == ("127.0.0.1", 9000, "mine")
    assert (
        config.idle_minutes == 5
        and config.secrets() == {"api_key": "k-1"}
        and "k-1" not in str(config.plain())
    )
    with pytest.raises(ConfigError, match="name the model to serve"):
        _config([])


def test_an_adapter_that_is_not_there_is_told_before_anything_is_loaded(home: Path) -> None:
    from tuner.config.knobs import ConfigError
    from tuner.config.serving import ServeConfig
    from tuner.serve.loaded import load

    base = str(tiny.model(home / "model"))
    with pytest.raises(ConfigError, match="nowhere"):
        load(ServeConfig(model_name_or_path=base, adapter_name_or_path="nowhere/at-all", use_cpu=True))
