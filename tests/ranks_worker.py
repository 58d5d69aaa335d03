"""A worker whose run is several: in each of its processes, the stages that the run's name lists, one after the other.

`python -m tests.ranks_worker RUN_ID`: the real worker with its real processes, which cost seconds to start; in them the
runs are trained that its name lists, whose folders are there. `forked` is the same where copies of a process that has the
libraries are its processes.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from typing import IO, Any

import pytest

from tuner import worker
from tuner.config.config import Config
from tuner.engine.live import LiveRun
from tuner.jobs import ranks
from tuner.jobs.live import Outcome
from tuner.runs.run import Run, SilentRun


def all_of_them(config: Config, live: LiveRun) -> Outcome:
    from accelerate.state import AcceleratorState

    from tuner.engine import group

    names = [name for name in live.run.name.split() if Run(name).exists]
    if not names:  # a run like any other
        done: Outcome = work(config)(config, live)
        return done
    if config.fsdp:
        spread_on_the_cpu()
    leave, group.leave = group.leave, group.wait
    for name in names:
        run = SilentRun(name) if ranks.rank() else Run(name)
        inner = run.config()
        assert isinstance(inner, Config)
        work(inner)(inner, LiveRun(run, inner))
        kind = AcceleratorState().distributed_type.value
        (ranks.folder(run) / f"{group.rank()}.kind").write_text(kind)
    group.leave = leave
    group.leave()
    return Outcome()


def spread_on_the_cpu() -> None:
    """Let accelerate take FSDP without a GPU: it asks for a kind of process group that it calls MULTI_GPU."""
    from accelerate import state
    from accelerate.utils import DistributedType

    prepare = state.PartialState._prepare_backend

    def prepared(self: Any, *words: Any, **named: Any) -> tuple[str, DistributedType]:
        backend, kind = prepare(self, *words, **named)
        return backend, DistributedType.MULTI_GPU if kind == DistributedType.MULTI_CPU else kind

    def on_cpu(self: Any) -> None:
        self.device = torch.device("cpu")

    import torch

    state.PartialState._prepare_backend = prepared
    state.PartialState.set_device = on_cpu


work: Any = worker.work_of


def live(run_id: str) -> None:
    worker.work_of = lambda config: all_of_them
    code = worker.main(run_id)
    sys.stdout.flush()
    os._exit(code)


class Copy:
    """The other process of a run as a copy of this one, with what the first one asks of the one that it starts."""

    def __init__(self, command: list[str], env: Mapping[str, str], stdout: IO[bytes], **_: object):
        self._copy = multiprocessing.get_context("fork").Process(
            target=_as_another, args=(command[-1], env, stdout.fileno())
        )
        self._copy.start()
        self.pid = self._copy.pid

    def poll(self) -> int | None:
        return self._copy.exitcode

    @property
    def returncode(self) -> int | None:
        return self._copy.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._copy.join(timeout)
        return self._copy.exitcode

    def kill(self) -> None:
        self._copy.kill()


def _as_another(run_id: str, environment: Mapping[str, str], said: int) -> None:
    for stream in (1, 2):
        os.dup2(said, stream)
    os.environ.clear()
    os.environ.update(environment)
    live(run_id)


def forked(run_id: str) -> None:
    """The first process of a run, in which it begins, ends and is told of."""
    import mirroring

    with pytest.MonkeyPatch.context() as patch:
        mirroring.here(patch)
        patch.setattr(ranks.subprocess, "Popen", Copy)
        live(run_id)


if __name__ == "__main__":
    live(sys.argv[1])
