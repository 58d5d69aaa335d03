"""Decisions: learn to answer typed questions about a state by the probability of one label behind the prompt."""

from __future__ import annotations

from tuner.config.config import Config
from tuner.engine.choice import packed_trainer
from tuner.engine.decided import labels_of, predict, settle
from tuner.engine.live import LiveRun
from tuner.engine.packed.decisions import DecisionObjective
from tuner.engine.setup import begin
from tuner.engine.trainer import fit
from tuner.jobs.live import Outcome


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model how likely each option of a question is. A temperature for each type is fitted at the end."""
    start = begin(config, run)
    with run.phase("building_trainer"):
        labels = labels_of(start)
        smoothing = config.label_smoothing_factor
        trainer = packed_trainer(
            config, run, start, lambda device: DecisionObjective(config.decision_loss, smoothing), labels
        )
        if trainer is None:
            from tuner.engine.decision_trainer import build

            trainer = build(config, run, start, labels)
    return fit(trainer, config, run, start, predict=predict, settle=settle)
