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
        "streaming",
        lambda c: c.streaming and c.max_steps < 1,
        "--streaming has no end of its own; set --max_steps to the number of steps to train.",
    ),
    Rule(
        "tokenized_path",
        lambda c: c.streaming and bool(c.tokenized_path),
        "--tokenized_path keeps whole sets and --streaming never has one; drop one of the two.",
        {"tokenized_path": None},
    ),
    Rule(
        "val_size",
        lambda c: c.val_size > 0 and bool(c.eval_dataset),
        "--val_size and --eval_dataset both say what to measure on; keep one of them.",
        {"val_size": 0.0},
    ),
    Rule(
        "val_size",
        lambda c: c.streaming and 0 < c.val_size < 1,
        "--val_size {val_size} is a share, and a streamed set has no known size; give a count of rows.",
    ),
    Rule(
        "interleave_probs",
        lambda c: bool(c.interleave_probs) and c.mix_strategy == "concat",
        "--interleave_probs works with the interleave ways of --mix_strategy only; choose one of them.",
        {"mix_strategy": "interleave_under"},
    ),
    Rule(
        "interleave_probs",
        lambda c: not _shares(c.interleave_probs, len(c.dataset)),
        "--interleave_probs {interleave_probs} needs one share above 0 for each data set, adding up to 1.",
    ),
    Rule(
        "mask_history",
        lambda c: c.mask_history and c.train_on_prompt,
        "--mask_history and --train_on_prompt ask for opposite things; keep one of them.",
        {"train_on_prompt": False},
    ),
    Rule(
        "packing",
        lambda c: c.neat_packing and c.packing is False,
        "--neat_packing is a way of packing and --packing is off; keep one of them.",
        {"packing": None},
    ),
    Rule(
        "packing",
        lambda c: bool(c.packing or c.neat_packing) and c.stage not in {"pt", "sft"},
        "--packing fills rows of text for --stage pt and sft; {stage} arranges its own rows, so leave it off.",
        {"packing": None, "neat_packing": False},
    ),
    Rule(
        "load_best_model_at_end",
        lambda c: c.load_best_model_at_end and c.eval_strategy == "no",
        "--load_best_model_at_end needs evaluation; set --eval_strategy steps and give --val_size or --eval_dataset.",
        {"eval_strategy": "steps"},
    ),
)


def _shares(text: str | None, sets: int) -> bool:
    """Whether this is one share a set; nothing given is fine."""
    if not text:
        return True
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        return False
    return len(shares) == sets and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6


def broken_rules(config: Config) -> list[Problem]:
    """Every contradiction in a config."""
    return [
        Problem(rule.knob, rule.sentence.format_map(config.model_dump()), rule.mend)
        for rule in RULES
        if rule.broken(config)
    ]
