"""Learning from thumbs up and down (KTO): single answers, each marked good or bad."""

from __future__ import annotations

from tuner.config.config import Config
from tuner.engine.choice import packed_trainer
from tuner.engine.live import LiveRun, Outcome
from tuner.engine.mismatched import mismatched
from tuner.engine.mixture import settings
from tuner.engine.start import begin
from tuner.engine.trainer import fit


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model to give answers like the good ones and unlike the bad ones."""
    start = begin(config, run)
    with run.phase("building the trainer"):
        start.rows.train = mismatched(start.rows.train, config)
        start.rows.eval = {name: mismatched(rows, config) for name, rows in start.rows.eval.items()}
        losses = [(settings(config, "kto"), 1.0)]
        trainer = packed_trainer(config, run, start, losses)
        if trainer is None:
            from tuner.engine.labelled import build  # TRL takes a second to import

            trainer = build(config, run, start, losses)
    return fit(trainer, config, run, start)
