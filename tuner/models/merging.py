"""Adapters merged into the weights they were trained on: once, kept, and equal to the model with the adapter on it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tuner import paths
from tuner.config.config import Config
from tuner.data.build_once import build_once
from tuner.models import loading
from tuner.models.adapter_loading import put_on
from tuner.models.loading import Source
from tuner.models.vision import copy_processor


def merge_once(config: Config, source: Source, adapters: Sequence[Path]) -> Source:
    """The model with these adapters merged in, in their order; made the first time and kept under mlruns/models.

    It is found again by all that it is made of: the model's files, each adapter's weights and settings (alpha, rslora
    and the like change the product and not the weights), and the number type.
    """
    # What this run alone changes about a model when it loads it must not be kept for others.
    plain = config.model_copy(update={"rope_scaling": None, "upcast_layernorm": False})
    kind = loading.compute_type(plain)
    digest = hashlib.sha256(f"{loading.fingerprint(source)} {kind}".encode())
    for adapter in adapters:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            digest.update(hashlib.sha256((adapter / name).read_bytes()).digest())

    def make(fresh: Path) -> None:
        model = loading.load(plain, source, bits=None, whole=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # tied ends are seen to
            for adapter in adapters:
                model = merged(put_on(model, adapter))
        model.save_pretrained(fresh)
        loading.tokenizer(plain, source).save_pretrained(fresh)
        copy_processor(source.folder, fresh)

    folder = paths.models() / f"{paths.slug(source.folder.name)}-merged-{digest.hexdigest()[:12]}"
    return Source(build_once(folder, make), str(folder.resolve()))


def merged(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter's product added to its weights; the same logits.

    Where input and output embeddings are one tensor and the adapter changes either, they become two first: an adapter
    sees them as two layers, and what it adds to one must not land in the other.
    """
    base = model.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    inner = [_innermost(end) for end in ends]
    changed = any(end is not layer for end, layer in zip(ends, inner, strict=True))
    if changed and None not in inner and inner[0].weight is inner[1].weight:
        inner[1].weight = nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)
    whole: PreTrainedModel = model.merge_and_unload()
    if changed:
        _say_whether_tied(whole)
    return whole


def _innermost(layer: Any) -> Any:
    """The layer of the model itself, under whatever PEFT put around it."""
    while True:
        inside = getattr(layer, "base_layer", None) or getattr(layer, "original_module", None)
        if inside is None:
            return layer
        layer = inside


def _say_whether_tied(model: PreTrainedModel) -> None:
    """Write into the model's configuration what is so: loading would tie the ends again."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if None in ends or ends[0].weight.data_ptr() == ends[1].weight.data_ptr():
        return
    for settings in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        settings.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
