"""A worker whose run is several: in each of its processes, the stages that the run's name lists, one after the other.

`python -m tests.ranks_worker RUN_ID`: the real worker with its real processes, which cost seconds to start; in them the
runs are trained that its name lists, whose folders are there.
"""

from __future__ import annotations

import os
import sys
from typing import Any

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

if __name__ == "__main__":
    worker.work_of = lambda config: all_of_them
    code = worker.main(sys.argv[1])
    sys.stdout.flush()
    os._exit(code)
