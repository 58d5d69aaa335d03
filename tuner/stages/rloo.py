"""Learning from rewards by comparing each answer with the others to its prompt (RLOO), which says without bias how good it is."""

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
