"""Preference learning (DPO and its relatives): pairs of a better and a worse answer to the same prompt."""

from __future__ import annotations

from datasets import Dataset
from trl import DPOConfig

from tuner.config.config import Config
from tuner.data.prepare import prepare
from tuner.data.tokens import load_tokenizer
from tuner.engine import adapters, models
from tuner.engine.live import LiveRun, Outcome
from tuner.engine.losses import LossSettings
from tuner.engine.preference import PreferenceTrainer
from tuner.engine.trainer import arguments, fit, give_rows

# TRL builds its trainer around a data set it tokenises itself; the real rows come encoded and are put in afterwards.
PLACEHOLDER = {"prompt": "a", "chosen": "b", "rejected": "c"}


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model to prefer the chosen answers. The reference is the policy training starts from."""
    with run.phase("finding the model"):
        source = adapters.base_of(config, models.find(config))
    with run.phase("preparing the data"):
        rows = prepare(config, load_tokenizer(source.folder), run.progress)
        run.learned_from(rows.inputs)
    with run.phase("loading the model"):
        tokenizer = models.tokenizer(config, source)
        model, fresh = adapters.attach(config, models.load(config, source))
    with run.phase("building the trainer"):
        placeholder = Dataset.from_list([PLACEHOLDER])
        trainer = PreferenceTrainer(
            model=model,
            args=arguments(
                DPOConfig, config, run, beta=config.pref_beta, max_length=None, disable_dropout=False
            ),
            train_dataset=placeholder,
            eval_dataset=placeholder if rows.eval else None,
            processing_class=tokenizer,
            peft_config=fresh,
            settings=settings(config),
        )
        adapters.keep_only_adapter_dropout(trainer.model)
        give_rows(trainer, rows.train, rows.eval)
    return fit(trainer, config, run, source)


def settings(config: Config) -> LossSettings:
    """The knobs of the loss, by their own names."""
    return LossSettings(
        pref_loss=config.pref_loss,
        pref_beta=config.pref_beta,
        pref_ftx=config.pref_ftx,
        simpo_gamma=config.simpo_gamma,
        dpo_label_smoothing=config.dpo_label_smoothing,
    )
