"""Preference learning (DPO and its relatives): pairs of a better and a worse answer to the same prompt."""

from __future__ import annotations

from tuner.config.config import Config
from tuner.engine.choice import packed_trainer
from tuner.engine.live import LiveRun
from tuner.engine.loss_mix import mixture
from tuner.engine.packed.objective import PreferenceObjective
from tuner.engine.setup import begin
from tuner.engine.trainer import fit
from tuner.jobs.live import Outcome


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model to prefer the chosen answers. The reference is the policy training starts from."""
    start = begin(config, run)
    with run.phase("building_trainer"):
        losses = mixture(config)
        trainer = packed_trainer(config, run, start, lambda device: PreferenceObjective(losses[0][0], device))
        if trainer is None:
            from tuner.engine.preference import build  # TRL takes a second to import

            trainer = build(config, run, start, losses)
    return fit(trainer, config, run, start)
