"""A dashboard over a home folder, with what it takes: CPU seconds and memory of its process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """`tuner webui` on a free port of this machine, of the tree `root`."""

    def __init__(self, home: Path, root: Path = ROOT):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.home, self.root = home, root

    def __enter__(self) -> Server:
        self.log = (self.home / "dashboard.log").open("ab")
        own = {"TUNER_HOME": str(self.home), "PYTHONPATH": str(self.root), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tuner.ui.server", "--port", str(self.port)],
            cwd=self.root,
            env={**os.environ, **own},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.seen = psutil.Process(self.process.pid)
        end = time.monotonic() + 90
        while time.monotonic() < end:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}", timeout=2):
                return self
            time.sleep(0.2)
        raise AssertionError((self.home / "dashboard.log").read_text(errors="replace")[-3000:])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def cpu(self) -> float:
        """CPU seconds so far, of all its threads."""
        times = self.seen.cpu_times()
        return float(times.user + times.system)

    def memory(self) -> int:
        """Bytes that are its own; what it maps of files is not."""
        info = self.seen.memory_full_info()
        return int(info.uss)

    def settle(self, patience: float = 60.0) -> None:
        """Wait until it is at rest: what it gets ready a little after its first page is ready."""
        time.sleep(5.0)
        end, before = time.monotonic() + patience, self.cpu()
        while time.monotonic() < end:
            time.sleep(1.0)
            now = self.cpu()
            if now - before < 0.05:
                return
            before = now
