"""A few lines in the place of a Ray cluster: its job API over HTTP, two CPUs, and each job a process of this machine.

What the studio's side does with the answers is tested with it in seconds; what Ray does, with Ray (tests/ray_cluster.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CPUS = 2


class Jobs:
    """The jobs by their names: what was asked, its process once there is room for it, and whether it was stopped."""

    def __init__(self) -> None:
        self.asked: dict[str, dict[str, Any]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped: set[str] = set()
        self.no_node = False
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
        self.server.jobs = self  # type: ignore[attr-defined]
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def state(self, name: str) -> str:
        if name in self.processes:
            code = self.processes[name].poll()
            if code is None:
                return "RUNNING"
            return "STOPPED" if name in self.stopped else "FAILED" if code else "SUCCEEDED"
        return "STOPPED" if name in self.stopped else "PENDING"

    def fill(self) -> None:
        """Start what waits, as far as there is room."""
        for name, asked in self.asked.items():
            at_work = [n for n in self.processes if self.state(n) == "RUNNING"]
            taken = sum(self.asked[n]["entrypoint_num_cpus"] for n in at_work)
            if self.state(name) == "PENDING" and taken + asked["entrypoint_num_cpus"] <= CPUS:
                env = {n: v for n, v in os.environ.items() if not n.startswith("TUNER_")}
                self.processes[name] = subprocess.Popen(
                    asked["entrypoint"],
                    shell=True,
                    start_new_session=True,
                    env=env | asked["runtime_env"]["env_vars"],
                )

    def stop(self, name: str) -> None:
        self.stopped.add(name)
        if name in self.processes:
            with suppress(OSError):
                os.killpg(self.processes[name].pid, signal.SIGKILL)

    def close(self) -> None:
        self.server.shutdown()
        for name in list(self.processes):
            self.stop(name)
            self.processes[name].wait()


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        jobs, name = self.server.jobs, self.path.split("/")[3:4]  # type: ignore[attr-defined]
        with jobs.lock:
            jobs.fill()
            if name and name[0] in jobs.asked:
                return self._say(200, {"status": jobs.state(name[0]), "message": "as it stands"})
        return self._say(404, {})

    def do_POST(self) -> None:
        jobs = self.server.jobs  # type: ignore[attr-defined]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with jobs.lock:
            if self.path.endswith("/stop"):
                jobs.stop(self.path.split("/")[3])
                return self._say(200, {"stopped": True})
            if jobs.no_node:
                return self._say(500, "No available agent to submit job, please try again later.")
            if asked["submission_id"] in jobs.asked:
                return self._say(
                    500, "ValueError: Job with submission_id x already exists. Please use another."
                )
            jobs.asked[asked["submission_id"]] = asked
        return self._say(200, {"submission_id": asked["submission_id"]})

    def _say(self, status: int, what: object) -> None:
        text = what if isinstance(what, str) else json.dumps(what)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words: object) -> None:
        pass
