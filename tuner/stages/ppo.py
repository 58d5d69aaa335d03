"""Learning from rewards with a value beside the policy (PPO), which says what was to be expected of each token."""

from __future__ import annotations

from tuner.config.config import Config
from tuner.engine.live import LiveRun
from tuner.engine.online.ppo_trainer import trainer_of
from tuner.engine.setup import begin
from tuner.engine.trainer import fit
from tuner.jobs.live import Outcome


def train(config: Config, run: LiveRun) -> Outcome:
    """Let the model write answers, score them, and teach it to write those that got more than was expected."""
    start = begin(config, run)
    with run.phase("building_trainer"):
        trainer = trainer_of(config, run, start)
    return fit(trainer, config, run, start)
