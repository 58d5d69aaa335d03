"""Reward modelling: learn to score answers, so that the better of a pair scores higher."""

from __future__ import annotations

from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig

from tuner.config.config import Config
from tuner.engine.live import LiveRun
from tuner.engine.reward import PairCollator, RewardTrainer, predict, save_value_head
from tuner.engine.setup import begin
from tuner.engine.trainer import arguments, fit
from tuner.jobs.live import Outcome

PLACEHOLDER = Dataset.from_list([{"chosen_ids": [0], "rejected_ids": [0]}])


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model a score: one number at the last token of an answer."""
    start = begin(config, run, AutoModelForSequenceClassification, num_labels=1)
    with run.phase("building_trainer"):
        start.model.config.pad_token_id = start.tokenizer.pad_token_id
        trainer = RewardTrainer(
            model=start.model,
            args=arguments(RewardConfig, config, run, max_length=None, disable_dropout=False),
            data_collator=PairCollator(start.tokenizer.pad_token_id),
            train_dataset=PLACEHOLDER,
            eval_dataset=PLACEHOLDER if start.rows.eval else None,
            processing_class=start.tokenizer,
            peft_config=start.fresh,
        )
    outcome = fit(trainer, config, run, start, predict=predict)
    if outcome.weights:
        save_value_head(trainer.model, outcome.weights)
    return outcome
