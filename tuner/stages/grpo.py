"""Learning from rewards (GRPO)."""

from __future__ import annotations

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.engine.live import LiveRun
from tuner.jobs.live import Outcome


def train(config: Config, run: LiveRun) -> Outcome:
    """Not there yet."""
    raise ConfigError([Problem("stage", f"--stage {config.stage} does not train yet.")])
