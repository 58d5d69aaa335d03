"""A real `mlflow server` on a database of the studio's, to be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, suppress

from tuner import paths


class Tracker:
    """The server behind MLFLOW_TRACKING_URI, on a port that stays the same from one life to the next."""

    def __init__(self) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self.server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Serve, and wait until it answers. Nothing when it does already."""
        if self.server is not None:
            return
        folder = paths.mlruns()
        folder.mkdir(parents=True, exist_ok=True)
        words = ["server", "--workers", "1", "--port", str(self.port)]
        words += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        words += ["--artifacts-destination", str(folder / "artifacts")]
        with (folder / "server.log").open("ab") as out:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                stdout=out,
                stderr=out,
                start_new_session=True,
                # Its job runners are seven processes more, and outlive it.
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        end = time.monotonic() + 120
        while not self._answers():
            assert time.monotonic() < end, (folder / "server.log").read_text()[-2000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """End it and all its processes at once."""
        if self.server is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()
            self.server = None

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
            return bool(answer.status == 200)
        return False
