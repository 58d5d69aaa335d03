"""Contradictions between knobs, as data: one row each, with the sentence a person reads and, where there is one, the mend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuner.config.knobs import Problem

if TYPE_CHECKING:
    from tuner.config.config import Config


@dataclass(frozen=True)
class Rule:
    """`broken` is asked of a whole config; `sentence` is a format string over its knobs."""

    knob: str
    broken: Callable[[Config], bool]
    sentence: str
    mend: Mapping[str, Any] = field(default_factory=dict)


RULES: tuple[Rule, ...] = (
    Rule(
        "model_name_or_path",
        lambda c: not c.model_name_or_path,
        "--model_name_or_path is missing; give a local folder or a hub name, for example data/starter.",
    ),
    Rule(
        "dataset",
        lambda c: c.do_train and not c.dataset,
        "--dataset is missing; name at least one data set of {dataset_dir}/dataset_info.json.",
    ),
    Rule(
        "fp16",
        lambda c: c.fp16 and c.bf16,
        "--bf16 and --fp16 are both on; keep one of them.",
        {"fp16": False},
    ),
    Rule(
        "dpo_label_smoothing",
        lambda c: c.dpo_label_smoothing > 0 and c.pref_loss != "sigmoid",
        "--dpo_label_smoothing {dpo_label_smoothing} works with --pref_loss sigmoid only; set it to 0.",
        {"dpo_label_smoothing": 0.0},
    ),
    Rule(
        "load_best_model_at_end",
        lambda c: c.load_best_model_at_end and c.eval_strategy == "no",
        "--load_best_model_at_end needs evaluation; set --eval_strategy steps and give --val_size or --eval_dataset.",
        {"eval_strategy": "steps"},
    ),
)


def broken_rules(config: Config) -> list[Problem]:
    """Every contradiction in a config."""
    return [
        Problem(rule.knob, rule.sentence.format_map(config.model_dump()), rule.mend)
        for rule in RULES
        if rule.broken(config)
    ]
