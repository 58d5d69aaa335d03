"""Learning from thumbs up and down (KTO): single answers, each marked good or bad."""

from __future__ import annotations

from tuner.config.config import Config
from tuner.engine.choice import packed_trainer
from tuner.engine.kto_negatives import mismatched, one_prompt
from tuner.engine.live import LiveRun
from tuner.engine.loss_mix import settings
from tuner.engine.packed.objective import PreferenceObjective
from tuner.engine.setup import begin
from tuner.engine.trainer import fit
from tuner.jobs.live import Outcome
from tuner.plan.engine import TRL
from tuner.text.message import message


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model to give answers like the good ones and unlike the bad ones."""
    start = begin(config, run)
    with run.phase("building_trainer"):
        rows, held_out = start.rows.train, start.rows.eval
        if one_prompt(rows):
            run.note(message("note.kto_one_prompt"))
        if len(labels := {bool(row["label"]) for row in rows}) == 1:
            run.note(message("note.kto_only_good" if labels == {True} else "note.kto_only_bad"))
        # Packed rows keep a process's batch together, TRL's trainers learn from those of all at once.
        together = config.processes if start.plan.engine == TRL else 1
        start.rows.train = mismatched(rows, config, config.per_device_train_batch_size * together)
        start.rows.eval = {
            name: mismatched(held, config, config.per_device_eval_batch_size, others=rows)
            for name, held in held_out.items()
        }
        losses = [(settings(config, config.stage, ld_alpha=None), 1.0)]
        trainer = packed_trainer(config, run, start, lambda device: PreferenceObjective(losses[0][0], device))
        if trainer is None:
            from tuner.engine.kto_trainer import build  # TRL takes a second to import

            trainer = build(config, run, start, losses)
    return fit(trainer, config, run, start)
