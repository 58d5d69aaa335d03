"""Supervised fine-tuning: learn to answer as the examples do."""

from __future__ import annotations

from tuner.config.config import Config
from tuner.engine.choice import token_trainer
from tuner.engine.live import LiveRun
from tuner.engine.predict import predict
from tuner.engine.setup import begin
from tuner.engine.trainer import fit
from tuner.jobs.live import Outcome


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model the marked tokens of each row."""
    start = begin(config, run)
    with run.phase("building_trainer"):
        trainer = token_trainer(config, run, start)
    return fit(trainer, config, run, start, predict=predict)
