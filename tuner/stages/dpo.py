"""Preference learning (DPO and its relatives): pairs of a better and a worse answer to the same prompt."""

from __future__ import annotations

from datasets import Dataset
from trl import DPOConfig

from tuner.config.config import Config
from tuner.engine import methods
from tuner.engine.choice import packed_trainer
from tuner.engine.live import LiveRun, Outcome
from tuner.engine.losses import needs_reference
from tuner.engine.preference import Mixture, PreferenceTrainer, mixture, trl_settings
from tuner.engine.start import Start, begin
from tuner.engine.trainer import arguments, fit

# TRL builds its trainer around a data set it tokenises itself; the real rows come encoded and are put in afterwards.
PLACEHOLDER = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model to prefer the chosen answers. The reference is the policy training starts from."""
    start = begin(config, run)
    with run.phase("building the trainer"):
        losses = mixture(config)
        trainer = packed_trainer(config, run, start, losses) or _trl(config, run, start, losses)
    return fit(trainer, config, run, start)


def _trl(config: Config, run: LiveRun, start: Start, losses: Mixture) -> PreferenceTrainer:
    compared = not losses or any(needs_reference(s.pref_loss) for s, _ in losses)
    return PreferenceTrainer(
        model=start.model,
        ref_model=methods.reference(config, start.source) if compared else None,
        args=arguments(
            DPOConfig, config, run, max_length=None, disable_dropout=False, **trl_settings(config)
        ),
        train_dataset=PLACEHOLDER,
        eval_dataset=PLACEHOLDER if start.rows.eval else None,
        processing_class=start.tokenizer,
        peft_config=start.fresh,
        losses=losses,
    )
