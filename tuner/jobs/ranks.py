"""The processes of one run: the worker is the first of them and starts the others, each with its rank, as torch counts.

They have torch's standard environment and meet on this machine's loopback. The first alone holds the run's lock and
writes its folder; the others die with it, whatever ended it, and leave a last word when they fail themselves:

ranks/1.log    what rank 1 printed
ranks/1.json   why it failed
ranks/rows     the encoded rows, read by all
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tuner.jobs import launch, watch
from tuner.runs import reasons
from tuner.runs.files import replace_text
from tuner.runs.run import Run
from tuner.text import message
from tuner.text.message import Message

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when the one that started it ends."""
GRACE = 15.0
"""Seconds that the first process has to end by itself once another one is dead."""
FAREWELL = 60.0
"""Seconds that the others have to end once the work is done."""
LOST = (
    "closed by peer",
    "reset by peer",
    "gloo",
    "nccl",
    "process group",
    "broken pipe",
    "tcpstore",
    "timed out",
)
"""How libraries say that another process is gone, in small letters."""


class RankDiedError(Exception):
    """Another process of the run is to blame; `reason` says which and why."""

    def __init__(self, reason: reasons.Reason):
        super().__init__(reason.sentence)
        self.reason = reason


def rank() -> int:
    """Which process of its run this is, 0 for the first or the only one."""
    return int(os.environ.get("TUNER_RANK") or 0)


def folder(run: Run) -> Path:
    return run.folder / "ranks"


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torch, accelerate and DeepSpeed read of a process among `count` on this machine."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    return {
        "TUNER_RANK": str(rank),
        "TUNER_FIRST": str(os.getpid()),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(max(1, threads // count)),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "NCCL_SOCKET_IFNAME": os.environ.get("NCCL_SOCKET_IFNAME", "lo"),
        # Where one process dies, NCCL's threads abort the others before any of them could say why; `Ranks` ends them.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"),
        "TORCH_NCCL_ENABLE_MONITORING": os.environ.get("TORCH_NCCL_ENABLE_MONITORING", "0"),
    }


class Ranks:
    """The other processes of a run, as the first has them: started when it begins, watched, and gone when it ends.

    `listener` is the socket at which all meet; it was open before anybody could look for it. None for a run alone.
    """

    def __init__(self, run: Run, count: int):
        self.run, self.count = run, count
        self.listener: socket.socket | None = None
        self.members: dict[int, subprocess.Popen[bytes]] = {}
        self._over = threading.Event()
        self._before: Mapping[str, str] = {}
        self._oom = watch.OomKills(os.getpid())

    def __enter__(self) -> Self:
        shutil.rmtree(folder(self.run), ignore_errors=True)
        if self.count == 1:
            return self
        folder(self.run).mkdir()
        self._oom.look()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4 * self.count)
        port = self.listener.getsockname()[1]
        self._before = dict(os.environ)
        os.environ |= environment(0, self.count, port)
        for number in range(1, self.count):
            self.members[number] = self._start(number, port)
        threading.Thread(target=self._watch, daemon=True, name="ranks").start()
        return self

    def _start(self, number: int, port: int) -> subprocess.Popen[bytes]:
        module = os.environ.get(launch.WORKER_VARIABLE, "tuner.worker")
        with (folder(self.run) / f"{number}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, self.run.id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment(number, self.count, port)},
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        end = time.monotonic() + (FAREWELL if kind is None else 0.0)
        for process in self.members.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
            process.kill()
            process.wait()
        if self.members:
            os.environ.clear()
            os.environ.update(self._before)
            shutil.rmtree(folder(self.run) / "rows", ignore_errors=True)

    @property
    def pids(self) -> dict[int, int]:
        """The other processes by their ranks."""
        return {number: process.pid for number, process in self.members.items()}

    # --- when one of them dies

    def _watch(self) -> None:
        """End the run where another process died and the first one cannot see it: it may wait for it for ever."""
        while not self._over.wait(0.2):
            if self._dead() is None:
                continue
            if not self._over.wait(GRACE) and (reason := self._reason()):
                self.run.update(phase=watch.CLOSING, **reason.changes())
                print(reason.sentence, file=sys.stderr, flush=True)
                os._exit(1)  # whoever watches this process reads the reason there

    def _dead(self) -> int | None:
        """The rank that failed, the first to do so where several did; None while none has."""
        failed = [number for number, process in self.members.items() if process.poll() not in (None, 0)]
        return min(failed, key=lambda number: _told_at(self.run, number), default=None)

    def _reason(self) -> reasons.Reason | None:
        number = self._dead()
        if number is None:
            return None
        said = _last_words(self.run, number) or self._exit(number)
        told = message.message("rank", number=number, count=self.count, why=said.cause)
        return reasons.Reason(told, said.remedies)

    def _exit(self, number: int) -> reasons.Reason:
        """Why a process died that could not say it."""
        with suppress(OSError):
            text = (folder(self.run) / f"{number}.log").read_text(encoding="utf-8", errors="replace")
            status = self.run.status()
            ending = reasons.ExitInfo(
                self.members[number].returncode,
                status.step,
                oom_killed=self._oom.grew(),
                log_tail=text[-8000:],
                checkpoint=_kept(status.checkpoint),
            )
            return reasons.from_exit(ending, self.run.values())
        return reasons.Reason(message.plain(f"exit code {self.members[number].returncode}"))

    def blamed(self, error: Exception) -> Exception:
        """What ended the run: an error of the first process, or the other one that failed before and took it along."""
        if self.members and _is_loss(error):  # the other one may still be dying
            end = time.monotonic() + GRACE
            while self._dead() is None and time.monotonic() < end:
                time.sleep(0.05)
            if reason := self._reason():
                return RankDiedError(reason)
        return error


def _kept(checkpoint: str) -> str:
    return Path(checkpoint).name if checkpoint else ""


def _is_loss(error: BaseException | None) -> bool:
    """Whether an error only says that another process is gone."""
    while error is not None:
        said = f"{type(error).__name__} {error}".lower()
        if type(error).__name__.startswith("Dist") or any(word in said for word in LOST):
            return True
        error = error.__cause__ or error.__context__
    return False


def _told_at(run: Run, number: int) -> float:
    """When a process said its last word; 0 for one that could not."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((folder(run) / f"{number}.json").read_text(encoding="utf-8"))["time"])
    return 0.0


def _last_words(run: Run, number: int) -> reasons.Reason | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads((folder(run) / f"{number}.json").read_text(encoding="utf-8"))
        return reasons.Reason(message.of(said["cause"]), list(said["remedies"]))
    return None


# --- in the others -------------------------------------------------------------------------------------------------


def die_with_the_first() -> None:
    """Let the kernel end this process with the one that started it, however that ends."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["TUNER_FIRST"]):  # it died before that could be asked for
        sys.exit(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the first one hears them, and stops all


def leave_word(run: Run, number: int, reason: reasons.Reason) -> None:
    """Say why this process fails."""
    cause: Message = reason.cause
    told = {"time": time.monotonic(), "cause": message.to_plain(cause), "remedies": reason.remedies}
    with suppress(OSError):
        replace_text(folder(run) / f"{number}.json", json.dumps(told))
