"""MLflow in a process of its own beside a worker: importing it takes seconds, and a thread would take them from training.

The two talk over a socket, a word and its answer at a time. A worker that is killed leaves a closed one, and the process
goes; one that is killed itself leaves the rest to a later sync, as a tracker that is away does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tuner import process
from tuner.runs.run import Run
from tuner.runs.weights import BrokenWeights
from tuner.text.lookup import tr
from tuner.text.message import message
from tuner.tracking.mirror import Mirror, sync
from tuner.tracking.outcome import is_settled
from tuner.tracking.registration import register_pending
from tuner.tracking.store import TrackerError, open_store


class MirrorProcess:
    """Keeps MLflow up with a run from now on; in the end registers its adapter and records its outcome."""

    def __init__(self, run: Run):
        self._run = run
        self._socket, theirs = socket.socketpair()
        self._answers = self._socket.makefile("rb")
        with theirs:
            self._process = subprocess.Popen([sys.executable, "-m", __name__, run.id], stdin=theirs.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()

    def register(self) -> None:
        """Register the adapter that waits in the run's folder, which its status names then.

        Raises BrokenWeights where its files are not what was trained, TrackerError where MLflow cannot take them now.
        """
        answer = self._ask("register", None)
        if broken := answer.get("broken"):
            raise BrokenWeights(broken)
        if away := answer.get("away"):
            raise TrackerError(away)

    def settle(self, timeout: float = 30.0) -> bool:
        """Bring MLflow up to the run, which has ended; whether that was done within `timeout` seconds."""
        self._ask("settle", timeout)
        if is_settled(self._run):
            return True
        self._run.update(tracker=message("tracker.pending"))
        return False

    def _ask(self, word: str, timeout: float | None) -> dict[str, str]:
        line = b""
        with suppress(OSError):
            self._socket.settimeout(timeout)
            self._socket.sendall(f"{word}\n".encode())
            line = self._answers.readline()
        if line.endswith(b"\n"):
            answer: dict[str, str] = json.loads(line)
            return answer
        self._process.kill()  # it was killed, or hangs in a tracker that does not answer
        return {"away": tr("The process that writes to MLflow ended.")}


def _register(run: Run, mirror: Mirror) -> dict[str, str]:
    mirror.tried.wait(30.0)
    try:
        register_pending(run)
    except BrokenWeights as error:
        return {"broken": str(error)}
    except (TrackerError, OSError) as error:
        return {"away": str(error)}
    return {}


def _settle(run: Run, mirror: Mirror) -> dict[str, str]:
    if mirror.close():
        with suppress(TrackerError, OSError, ValueError):
            sync(run, wait=5.0)
    return {}


WORDS: dict[str, Callable[[Run, Mirror], dict[str, Any]]] = {"register": _register, "settle": _settle}


def main(run_id: str) -> None:
    """Mirror a run until the worker at the other end of standard input is gone."""
    process.begin()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which may have to save
    run = Run(run_id)
    with process.importing(), suppress(TrackerError):  # where there is none yet, the mirror makes one
        open_store(create=False)
    mirror = Mirror(run)
    for line in sys.stdin:
        os.write(0, f"{json.dumps(WORDS[line.strip()](run, mirror))}\n".encode())
    os._exit(0)  # nothing is left to write, and taking MLflow apart takes longer than that


if __name__ == "__main__":
    main(sys.argv[1])
