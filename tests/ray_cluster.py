"""A real Ray cluster of two nodes on this machine's loopback, in a process of its own, whose nodes can be killed.

`python -m tests.ray_cluster` starts it and says where; each line it then reads adds a node with so many CPUs and GPUs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
READY = 300
"""Seconds for the dashboard's dozen processes on a small machine; Ray's own limit is 30."""


class TwoNodes:
    """`head` and `others` are the raylets' process ids: one of them killed is a node gone.

    `agent_port` is where the head's agent is to listen; any free one for 0. Where another process has it, the agent does
    without, and no job is ever taken.
    """

    def __init__(self, agent_port: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets' paths are short
        variables = {
            "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": str(READY),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"],
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("TUNER_", "MLFLOW_", "RAY_"))}
        self.log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_cluster", str(agent_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=kept | variables,
            cwd=ROOT,
            text=True,
            start_new_session=True,
        )
        said = self._read()
        self.address, self.head, self.others = str(said["address"]), int(said["head"]), [int(said["node"])]

    def add(self, cpus: int = 1, gpus: int = 0) -> int:
        """Another node; GPUs are a number to Ray, which asks no driver."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"num_cpus": cpus, "num_gpus": gpus}) + "\n")
        self.process.stdin.flush()
        self.others.append(int(self._read()["node"]))
        return self.others[-1]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise AssertionError((self.folder / "log").read_text()[-3000:])

    def close(self) -> None:
        for pid in psutil.pids():  # Ray's agents hide their words, and live on for a while after their raylet
            with suppress(OSError):
                if os.getsid(pid) == self.process.pid:
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def raylet_of(pid: int) -> int:
    """The raylet above a process: the node that it runs on."""
    for above in psutil.Process(pid).parents():
        if above.name() == "raylet":
            return above.pid
    raise AssertionError(f"{pid} runs on no node")


def free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main(agent_port: int) -> None:
    from ray.cluster_utils import Cluster

    port = free_port()
    head = {
        "num_cpus": 1,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
        "dashboard_agent_listen_port": agent_port or free_port(),
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=1)
    address = f"http://127.0.0.1:{port}"
    _wait_for(address)
    say({"address": address, "head": _raylet(cluster.head_node), "node": _raylet(node)})
    for line in sys.stdin:
        say({"node": _raylet(cluster.add_node(**json.loads(line)))})


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _wait_for(address: str) -> None:
    end = time.monotonic() + READY
    asked = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    )
    while time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(asked, timeout=5):
            return
        time.sleep(0.5)
    raise SystemExit("the dashboard does not answer")


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
