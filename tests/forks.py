"""Processes that begin with all libraries: copies of this one as it was when the tests were found and none had run.

A fresh interpreter takes ten seconds to import them. The first copy is made before the first test (conftest.py), waits
in a line of its own and is copied in turn: what tests did to this process (threads, autograd's among them) is not in it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Job = tuple[Callable[..., object], tuple[Any, ...]]
"""A function of a module and what it is given."""
_line: list[Connection] = []
"""Ours of the line to the copy that waits; empty where none was made."""


def begin() -> int:
    """Make the copy that waits; its process id. It ends with this process, whose end of the line it then finds closed."""
    ours, theirs = multiprocessing.Pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            with contextlib.suppress(EOFError, ConnectionError):  # nobody is at the other end any more
                _serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    _line[:] = [ours]
    return pid


def end(pid: int) -> None:
    """Let the copy go, and wait until it is gone: its time is this process' then."""
    _line.pop().close()
    os.waitpid(pid, 0)


def _serve(line: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        jobs, environment, log = line.recv()
        pids = [_start(job, environment, log, number) for number, job in enumerate(jobs)]
        line.send(pids)
        for pid in pids:
            line.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _start(job: Job, environment: Mapping[str, str], log: Path, number: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (log / f"{number}.log").open("wb") as out:
            for stream in (1, 2):
                os.dup2(out.fileno(), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os.environ.clear()
        os.environ.update(environment)
        function, words = job
        function(*words)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:  # noqa: BLE001 - told in its log, as an interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Started:
    """Processes that were started at the same time."""

    def __init__(self, pids: list[int]):
        self.pids = pids
        self.codes: list[int] = []

    def wait(self) -> list[int]:
        """How they ended, as a process' `returncode` says it."""
        while len(self.codes) < len(self.pids):
            self.codes.append(_line[0].recv())
        return self.codes


_last = Started([])


def started(*jobs: Job, log: Path) -> Started:
    """Start these, each in a process of its own, which says what it has to say to `log`/<number>.log.

    Those that were started before are waited for: the copy that starts them does one thing at a time.
    """
    global _last
    assert _line, "pytest makes the first copy"
    _last.wait()
    log.mkdir(parents=True, exist_ok=True)
    _line[0].send((jobs, dict(os.environ), log))
    _last = Started(_line[0].recv())
    return _last


def done(*jobs: Job, log: Path) -> list[int]:
    """How these ended, each in a process of its own."""
    return started(*jobs, log=log).wait()


def program(module: str, *words: str) -> Job:
    """`python -m module words`."""
    return as_main, (module, *words)


def as_main(module: str, *words: str) -> None:
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
