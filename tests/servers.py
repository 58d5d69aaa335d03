"""Real servers on loopback, each in a folder of its own: MLflow's, PostgreSQL's, and an S3-like store's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(done: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def answers(url: str) -> bool:
    """Whether something answers there, whatever it says."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@contextmanager
def served(words: list[str], url: str, log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A python module as a server, killed with all its processes at the end."""
    with log.open("ab") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, **env},
        )
    try:
        assert wait_for(lambda: answers(url), 120), log.read_text()[-2000:]
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextmanager
def mlflow_server(
    backend: str, port: int, folder: Path, artifacts: str = "", **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`mlflow server` on a database, with artifacts through it."""
    words = ["mlflow", "server", "--workers", "1", "--port", str(port), "--backend-store-uri", backend]
    words += ["--artifacts-destination", artifacts or str(folder / "artifacts")]
    # Its job runners are seven processes more, and outlive it.
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **env}
    with served(words, f"http://127.0.0.1:{port}/health", folder / "server.log", **env) as server:
        yield server


@contextmanager
def postgres() -> Iterator[str]:
    """SQLAlchemy's address of a new PostgreSQL; skips the test where Debian's package or the driver is missing."""
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed")
    binaries = found[-1].parent
    asked: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)  # PostgreSQL will not run as root
        port, data = free_port(), f"{folder}/data"
        quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, **asked}
        subprocess.run([binaries / "initdb", "-D", data, "-U", "tuner", "-A", "trust"], **quiet)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        command = [binaries / "pg_ctl", "-D", data, "-w", "-l", f"{folder}/pg.log"]
        subprocess.run([*command, "-o", options, "start"], **quiet)
        try:
            yield f"postgresql+psycopg://tuner@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*command, "-m", "immediate", "stop"], **quiet)


@contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """An S3-like store with a bucket `tuner`: the environment that leads to it. Skips where moto is missing."""
    pytest.importorskip("moto", reason="moto's S3 server is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = ["moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with served(words, url, folder / "s3.log"):
        keys = {
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "tester",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id="tester",
            aws_secret_access_key="tester",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="tuner")
        yield {"MLFLOW_S3_ENDPOINT_URL": url, **keys}
