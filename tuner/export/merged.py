"""One model with its adapters in the weights: merged in float32, cast once, saved as safetensors with a new index."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tuner.config.knobs import ConfigError, Problem
from tuner.export.source import Exported
from tuner.models import loading
from tuner.models.adapter_loading import put_on
from tuner.models.merging import merged
from tuner.runs.weights import check_finite
from tuner.text.lookup import tr

Asked = Callable[[PreTrainedModel], None]


def merge(what: Exported, asked: Asked) -> PreTrainedModel:
    """The model in float32 with every adapter merged in. `asked` is called with the model before its last adapter is
    merged: what it answers then, the export has to answer too. Raises ConfigError."""
    on_it = with_adapters(what)
    asked(on_it)
    with _without_peft_s_word_on_ties():
        return merged(on_it) if what.adapters else on_it


def with_adapters(what: Exported) -> Any:
    """The model in float32 with its adapters: the last one on it, those before it merged. Raises ConfigError."""
    if getattr(what.shape, "quantization_config", None):
        raise ConfigError([quantized(what)])
    model = loading.load(what.config, what.source, bits=None, whole=True)
    if what.asked.export_device == "auto":
        model = model.to(loading.device(what.config))
    for adapter in what.adapters[:-1]:
        model = _quietly(model, adapter)
    with _without_peft_s_word_on_ties():
        return put_on(model, what.adapters[-1]) if what.adapters else model


def _quietly(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    with _without_peft_s_word_on_ties():
        return merged(put_on(model, adapter))


def _without_peft_s_word_on_ties() -> warnings.catch_warnings:
    """PEFT warns that tied ends are merged wrong; `merged` sees to them."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def quantized(what: Exported) -> Problem:
    """That nothing can be merged into rounded weights."""
    sentence = tr(
        "{model} is quantized, and an adapter cannot be merged into rounded weights: name the model of full precision that it was made from.",
        model=what.asked.model_name_or_path,
    )
    return Problem("model_name_or_path", sentence)


def save(what: Exported, model: PreTrainedModel, folder: Path, kind: torch.dtype) -> None:
    """Write the model in one number type, in files of at most export_size GB, with tokenizer and settings.

    Raises BrokenWeights where a number does not fit the type.
    """
    model.to(kind)
    model.config.use_cache = True  # training had no use for it, whoever loads this has
    model.generation_config.eos_token_id = what.stops or model.generation_config.eos_token_id
    model.save_pretrained(folder, max_shard_size=f"{what.asked.export_size}GB")
    what.save_words(folder)
    for file in folder.glob("*.safetensors"):
        check_finite(file)
