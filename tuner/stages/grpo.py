"""Learning from rewards by comparing answers to the same prompt (GRPO): those that are better than their group become likelier."""

from __future__ import annotations

from tuner.config.config import Config
from tuner.engine.live import LiveRun
from tuner.engine.online.build import build
from tuner.engine.setup import begin
from tuner.engine.trainer import fit
from tuner.jobs.live import Outcome


def train(config: Config, run: LiveRun) -> Outcome:
    """Let the model write answers, score them, and teach it to write more like the better ones."""
    start = begin(config, run)
    with run.phase("building_trainer"):
        trainer = build(config, run, start)
    return fit(trainer, config, run, start)
