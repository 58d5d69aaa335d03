"""Pre-training on: learn plain text, every token of it."""

from __future__ import annotations

import math

from datasets import Dataset
from trl import SFTConfig

from tuner.config.config import Config
from tuner.engine.completion import CompletionTrainer, collator
from tuner.engine.live import LiveRun
from tuner.engine.setup import begin
from tuner.engine.trainer import arguments, fit
from tuner.jobs.live import Outcome

PLACEHOLDER = Dataset.from_list([{"input_ids": [0, 0], "labels": [0, 0]}])


def train(config: Config, run: LiveRun) -> Outcome:
    """Teach the model a text. Held-out text is measured as perplexity too: e to the power of the loss."""
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
        )
    return fit(trainer, config, run, start, also=perplexity)


def perplexity(metrics: dict[str, float]) -> dict[str, float]:
    """eval_perplexity for eval_loss, and the like for each set by its name; infinite where it overflows."""
    found = {}
    for name, value in metrics.items():
        if name.startswith("eval_") and name.endswith("loss"):
            found[name.removesuffix("loss") + "perplexity"] = math.exp(value) if value < 700 else math.inf
    return found
