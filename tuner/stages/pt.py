"""Pre-training on: learn plain text, every token of it."""

from __future__ import annotations

import math

from tuner.config.config import Config
from tuner.engine.choice import token_trainer
from tuner.engine.live import LiveRun
from tuner.engine.setup import begin
from tuner.engine.trainer import fit
from tuner.jobs.live import Outcome


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model a text. Held-out text is measured as perplexity too: e to the power of the loss."""
    start = begin(config, run)
    with run.phase("building_trainer"):
        trainer = token_trainer(config, run, start)
    return fit(trainer, config, run, start, also=perplexity)


def perplexity(metrics: dict[str, float]) -> dict[str, float]:
    """eval_perplexity for eval_loss, and the like for each set by its name; infinite where it overflows."""
    found = {}
    for name, value in metrics.items():
        if name.startswith("eval_") and name.endswith("loss"):
            found[name.removesuffix("loss") + "perplexity"] = math.exp(value) if value < 700 else math.inf
    return found
