"""Supervised fine-tuning: learn to answer as the examples do."""

from __future__ import annotations

from datasets import Dataset
from trl import SFTConfig

from tuner.config.config import Config
from tuner.data.prepare import prepare
from tuner.data.tokens import load_tokenizer
from tuner.engine import adapters, methods, models
from tuner.engine.completion import CompletionTrainer, collator
from tuner.engine.live import LiveRun, Outcome
from tuner.engine.trainer import arguments, fit, give_rows

PLACEHOLDER = {"input_ids": [0, 0], "labels": [0, 0]}


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model the marked tokens of each row. Plain text (stage pt) is learned the same way, all of it."""
    with run.phase("finding the model"):
        source = methods.base_of(config, models.find(config))
    with run.phase("preparing the data"):
        rows = prepare(config, load_tokenizer(source.folder), run.progress)
        run.learned_from(rows.inputs)
    with run.phase("loading the model"):
        tokenizer = models.tokenizer(config, source)
        model, fresh = methods.attach(config, models.load(config, source))
        reference = methods.reference(config, source) if config.use_asft_loss else None
    with run.phase("building the trainer"):
        placeholder = Dataset.from_list([PLACEHOLDER])
        packed = "seq_lengths" in rows.train[0]
        trainer = CompletionTrainer(
            model=model,
            args=arguments(SFTConfig, config, run, max_length=None),
            data_collator=collator(tokenizer.pad_token_id, packed),
            train_dataset=placeholder,
            eval_dataset=placeholder if rows.eval else None,
            processing_class=tokenizer,
            peft_config=fresh,
            config=config,
            reference=reference,
        )
        give_rows(trainer, rows.train, rows.eval)
    return fit(trainer, config, run, source)
