"""Knobs of other tools that are taken and change nothing here, each with its reason, which is said to whoever sets it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tuner.config.run_sections import Export
from tuner.text.lookup import mark, tr, trn

if TYPE_CHECKING:
    from tuner.config.config import Config

EXPORT = mark("training exports nothing; `tuner export` does, by the same names")
BY_SEARCH = ("do_sample", "num_beams", "length_penalty")
REASONS = {
    "data_shared_file_system": mark("a run is on one machine, where one process prepares the rows for all"),
    "ignore_pad_token_for_loss": mark("padding is never learned"),
    "use_fast_tokenizer": mark("every tokenizer is a fast one"),
    "remove_unused_columns": mark("rows hold what the stage reads and nothing else"),
    "disable_tqdm": mark("progress is on the run's page and in its log instead of a bar"),
    "export_legacy_format": mark("weights are always safetensors"),
}


def unheeded(config: Config) -> Iterator[str]:
    """A sentence for every group of knobs that were set and have no effect on this run."""
    defaults = type(config).model_fields
    reasons: dict[str, list[str]] = {}
    for name, why in [*REASONS.items(), *_of_this_run(config)]:
        if getattr(config, name) != defaults[name].default:
            reasons.setdefault(why, []).append(f"--{name}")
    for why, names in reasons.items():
        yield trn(
            "{names} has no effect: {why}.",
            "{names} have no effect: {why}.",
            len(names),
            names=", ".join(names),
            why=tr(why),
        )


def _of_this_run(config: Config) -> Iterator[tuple[str, str]]:
    yield from ((name, EXPORT) for name in Export.model_fields if name not in REASONS)
    if not config.do_predict:
        yield (
            "predict_with_generate",
            tr("answers are written by --do_predict; --probe asks held-out questions in a run"),
        )
    if config.do_train:
        yield (
            "infer_dtype",
            tr("it is for runs that only evaluate or predict; training has --bf16 and --fp16"),
        )
    if config.kind.rewarded and (config.val_size or config.eval_dataset):
        yield "probe", tr("the rows kept aside are asked and scored instead")
    if config.kind.rewarded and not config.do_predict:
        why = tr("the answers that a run learns from are always sampled")
        yield from ((name, why) for name in BY_SEARCH)
    if not config.kind.learns_tokens and config.kind.rows != "decisions":
        yield (
            "label_smoothing_factor",
            tr("stage {stage} has no labels to smooth; see --dpo_label_smoothing", stage=config.stage),
        )
