"""What a run really held in memory, beside what was estimated for it before it was launched."""

from __future__ import annotations

import resource

import torch

from tuner import hardware, preflight
from tuner.config.config import Config
from tuner.engine.live import LiveRun


def note_estimate(config: Config, run: LiveRun) -> None:
    """Record what the run is expected to hold, while nothing is loaded yet."""
    free, on_gpu = hardware.free_memory(config.use_cpu)
    if expected := preflight.memory(config, free if on_gpu else 0):
        run.record(memory_estimate=expected.total)


def note_peak(run: LiveRun) -> None:
    """Record the most that was held: on a GPU what torch allocated there, on a CPU the whole process."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    run.record(memory_peak=peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
