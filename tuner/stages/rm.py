"""Reward modelling: learn to score answers, so that the better of a pair scores higher."""

from __future__ import annotations

from transformers import AutoModelForSequenceClassification

from tuner.config.config import Config
from tuner.engine.choice import packed_trainer
from tuner.engine.live import LiveRun
from tuner.engine.packed.objective import RewardObjective
from tuner.engine.scores import predict
from tuner.engine.setup import begin
from tuner.engine.trainer import fit
from tuner.jobs.live import Outcome


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model a score: one number at the last token of an answer."""
    start = begin(config, run, AutoModelForSequenceClassification, num_labels=1)
    with run.phase("building_trainer"):
        pad_id = start.model.config.pad_token_id = start.tokenizer.pad_token_id
        trainer = packed_trainer(config, run, start, lambda device: RewardObjective(pad_id))
        if trainer is None:
            from tuner.engine.reward import build  # TRL takes a second to import

            trainer = build(config, run, start)
    return fit(trainer, config, run, start, predict=predict)
