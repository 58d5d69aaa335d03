"""Learning from thumbs up and down (KTO): single answers, each marked good or bad."""

from __future__ import annotations

from datasets import Dataset
from trl import KTOConfig

from tuner.config.config import Config
from tuner.engine import methods
from tuner.engine.choice import packed_trainer
from tuner.engine.labelled import LabelledTrainer, mismatched
from tuner.engine.live import LiveRun, Outcome
from tuner.engine.preference import Mixture, settings
from tuner.engine.start import Start, begin
from tuner.engine.trainer import arguments, fit

PLACEHOLDER = Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}])


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model to give answers like the good ones and unlike the bad ones."""
    start = begin(config, run)
    with run.phase("building the trainer"):
        losses = [(settings(config, "kto"), 1.0)]
        start.rows.train = mismatched(start.rows.train, config)
        start.rows.eval = {name: mismatched(rows, config) for name, rows in start.rows.eval.items()}
        trainer = packed_trainer(config, run, start, losses) or _trl(config, run, start, losses)
    return fit(trainer, config, run, start)


def _trl(config: Config, run: LiveRun, start: Start, losses: Mixture) -> LabelledTrainer:
    """TRL's trainer around the model and its reference."""
    return LabelledTrainer(
        model=start.model,
        ref_model=methods.reference(config, start.source),
        args=arguments(
            KTOConfig,
            config,
            run,
            beta=config.pref_beta,
            max_length=None,
            disable_dropout=False,
            train_sampling_strategy="sequential",  # `mismatched` has shuffled them, good and bad in turn
            loss_type="apo_zero_unpaired",  # TRL's own loss is not used, and so needs no pairs of its own
        ),
        train_dataset=PLACEHOLDER,
        eval_dataset=PLACEHOLDER if start.rows.eval else None,
        processing_class=start.tokenizer,
        peft_config=start.fresh,
        settings=losses[0][0],
    )
