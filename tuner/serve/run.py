"""A run that serves a model: it listens until it is stopped, nobody asks any more, or another run wants its place."""

from __future__ import annotations

import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from tuner import hosts
from tuner.config.knobs import ConfigError, Problem
from tuner.config.serving import ServeConfig
from tuner.data.pictures.places import Keep
from tuner.jobs import serving
from tuner.jobs.live import Live, Outcome
from tuner.redact import remember
from tuner.serve.app import application
from tuner.serve.guard import Noted
from tuner.serve.loaded import Loaded, load
from tuner.text.lookup import tr
from tuner.text.message import Message, message

LOOK = 0.1
"""Seconds between two looks whether it is to end."""
CLAIMS = 2.0
"""Seconds between two looks at the queue."""
QUIET = 10.0
"""Seconds without a request after which another model may have this one's place."""
FAREWELL = 10.0
"""Seconds in which answers may be finished when another run wants the place."""

MOST_PICTURES = 1 << 30
"""Bytes of callers' pictures that are kept while their requests are answered."""
KEPT_OPEN = 75
"""Seconds that a connection may idle: longer than clients keep theirs (httpx five), or one is closed as it is used again."""


def serve(config: ServeConfig, live: Live) -> Outcome:
    """Load, listen, and answer until it is over."""
    listening = _socket(config)
    with live.phase("loading_model"):
        sent = live.run.folder / "pictures"
        loaded = load(config, Keep(sent, MOST_PICTURES))
    live.run.forget_secrets()  # this process knows them; such a run is never gone on with
    token = secrets.token_urlsafe(32)
    remember([token])
    keys = [] if config.api_open and not config.api_key else [token, *filter(None, [config.api_key])]
    app, noted = application(loaded, keys, hosts.configured())
    with live.phase("serving"), loaded.service, _listening(app, listening, loaded):
        live.began(0, 0)
        at = serving.Endpoint(_url(listening), token)
        serving.publish(live.run, at)
        live.say(f"answering at {at.url}/v1, models: {', '.join(m['id'] for m in loaded.models.listed())}")
        try:
            return Outcome(stopped=True, cause=_ending(config, live, loaded, noted))
        finally:
            serving.withdraw(live.run)
            shutil.rmtree(sent, ignore_errors=True)


def _ending(config: ServeConfig, live: Live, loaded: Loaded, noted: Noted) -> Message:
    """Wait for the end; why it is one."""
    look = 0.0
    while not live.wanted():
        if config.idle_minutes and noted.idle > 60 * config.idle_minutes:
            return message("stopped.idle", minutes=config.idle_minutes)
        if time.monotonic() >= look:
            look = time.monotonic() + CLAIMS
            _tell(live, loaded, noted)
            other = serving.claimant(live.run, idle=noted.idle > QUIET) if config.api_gives_way else None
            if other is not None:
                _let_finish(live, noted)
                return message("stopped.claimed", name=other.name)
        time.sleep(LOOK)
    return message("stopped.served")


def _let_finish(live: Live, noted: Noted) -> None:
    end = time.monotonic() + FAREWELL
    while noted.open and time.monotonic() < end and not live.wanted():
        time.sleep(LOOK)


def _tell(live: Live, loaded: Loaded, noted: Noted) -> None:
    said = message("doing.serving", answered=noted.answered, running=loaded.scheduler.running)
    if live.run.status().doing != said:
        live.record(doing=said, tokens=loaded.scheduler.made)


# --- listening


def _socket(config: ServeConfig) -> socket.socket:
    """The open port, before anything is loaded. Raises ConfigError."""
    if config.api_host not in ("127.0.0.1", "::1", "localhost") and not config.api_key:
        sentence = tr(
            "--api_host {host} can be reached from other machines; set API_KEY in the environment, or listen on 127.0.0.1.",
            host=config.api_host,
        )
        raise ConfigError([Problem("api_host", sentence, {"api_host": "127.0.0.1"})])
    family = socket.AF_INET6 if ":" in config.api_host else socket.AF_INET
    try:
        return socket.create_server((config.api_host, config.api_port), family=family, backlog=512)
    except OSError as error:
        sentence = tr(
            "--api_port {port} on {host} is not free ({why}); name another.",
            port=config.api_port,
            host=config.api_host,
            why=error.strerror,
        )
        raise ConfigError([Problem("api_port", sentence, {"api_port": 0})]) from error


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    named = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{named}:{port}"


@contextmanager
def _listening(app: hosts.Asgi, at: socket.socket, loaded: Loaded) -> Iterator[None]:
    """Serve in a thread of its own: the main one hears signals and words left in the run's folder."""
    settings = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=KEPT_OPEN,
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, args=([at],), name="serve", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield
    finally:
        loaded.service.close()  # first, or it would wait for answers that nobody wants any more
        server.should_exit = True
        thread.join(timeout=5)
        at.close()
