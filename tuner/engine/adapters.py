"""Adapters by PEFT: a fresh one, one that is gone on with, and those that are merged away first."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftConfig, PeftModel

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.engine import models
from tuner.engine.models import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_of(config: Config, source: Source) -> Source:
    """The model the adapter of this run sits on.

    Adapters that are not gone on with are merged into the model once and the result is kept, because the adapter that
    comes out fits that model and no other: LLaMA-Factory names the unmerged one in it, which gives other answers.
    """
    given = config.adapter_name_or_path
    merged = given if config.create_new_adapter else given[:-1]
    return merge_once(config, source, [adapter_folder(config, name) for name in merged]) if merged else source


def adapter_folder(config: Config, name: str) -> Path:
    """Where an adapter's files are. Raises ConfigError when there are none."""
    folder = (paths.home() / name).resolve()
    if not folder.is_dir() and not name.startswith((".", "/")):
        from tuner.engine.hub import resolve_model

        folder = resolve_model(name, None, config.cache_dir, token=config.hf_hub_token)
    if not (folder / "adapter_model.safetensors").is_file():
        sentence = (
            f"--adapter_name_or_path {name} holds no adapter_model.safetensors; name the folder that does."
        )
        raise ConfigError([Problem("adapter_name_or_path", sentence)])
    return folder


def merge_once(config: Config, source: Source, adapters: Sequence[Path]) -> Source:
    """The model with these adapters merged in, in their order; made the first time and kept under mlruns/models."""
    digest = hashlib.sha256(source.base.encode())
    for adapter in adapters:
        digest.update((adapter / "adapter_model.safetensors").read_bytes())
    folder = paths.models() / f"{paths.slug(source.folder.name)}-merged-{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        model = models.load(config, source)
        for adapter in adapters:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        fresh = folder.with_name(f"{folder.name}.new")
        model.save_pretrained(fresh)
        models.tokenizer(config, source).save_pretrained(fresh)
        fresh.rename(folder)
    return Source(folder, str(folder.resolve()))


def attach(config: Config, model: PreTrainedModel) -> tuple[PreTrainedModel | PeftModel, PeftConfig | None]:
    """The model to train and, for an adapter that starts from nothing, its settings for the trainer to add.

    A trainer that adds the adapter itself knows that the reference is the model without it.
    """
    if config.adapter_name_or_path and not config.create_new_adapter:
        folder = adapter_folder(config, config.adapter_name_or_path[-1])
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True), None
    return model, lora(config, model)


def lora(config: Config, model: PreTrainedModel) -> LoraConfig:
    """LoRA as the config says; alpha is twice the rank unless given."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules=targets(config, model),
        modules_to_save=list(config.additional_target) or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
    )


def targets(config: Config, model: PreTrainedModel) -> str | list[str]:
    """The layers that get an adapter: every linear one except the head, those named, or those a pattern fits.

    Raises ConfigError when a name fits no layer.
    """
    asked = list(config.lora_target)
    if asked == ["all"]:
        return "all-linear"
    if len(asked) == 1 and re.search(r"[\\^$*+?()\[\]|]", asked[0]):
        return asked[0]
    last = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    full = {name for name, _ in model.named_modules()}
    for name in asked:
        if name not in last and not any(f == name or f.endswith(f".{name}") for f in full):
            sentence = f"--lora_target {name} is no layer of this model; it has {', '.join(sorted(last))}, or say all."
            raise ConfigError([Problem("lora_target", sentence, {"lora_target": ["all"]})])
    return asked


def keep_only_adapter_dropout(model: torch.nn.Module) -> None:
    """Silence every dropout but that of the adapter in training.

    Log-probabilities are compared with a reference's, so noise of the base model would only hide the difference;
    lora_dropout is what the config asked for and stays.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.endswith("lora_dropout.default"):
            module.p = 0.0
