"""Supervised fine-tuning: learn to answer as the examples do."""

from __future__ import annotations

from datasets import Dataset
from trl import SFTConfig

from tuner.config.config import Config
from tuner.engine import methods
from tuner.engine.completion import CompletionTrainer, collator
from tuner.engine.live import LiveRun
from tuner.engine.predict import predict
from tuner.engine.setup import begin
from tuner.engine.trainer import arguments, fit
from tuner.jobs.live import Outcome

PLACEHOLDER = Dataset.from_list([{"input_ids": [0, 0], "labels": [0, 0]}])


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model the marked tokens of each row."""
    start = begin(config, run)
    with run.phase("building_trainer"):
        trainer = CompletionTrainer(
            model=start.model,
            args=arguments(SFTConfig, config, run, max_length=None),
            data_collator=collator(start.tokenizer.pad_token_id, start.packed),
            train_dataset=PLACEHOLDER,
            eval_dataset=PLACEHOLDER if start.rows.eval else None,
            processing_class=start.tokenizer,
            peft_config=start.fresh,
            config=config,
            reference=methods.reference(config, start.source) if config.use_asft_loss else None,
        )
    return fit(trainer, config, run, start, predict=predict)
