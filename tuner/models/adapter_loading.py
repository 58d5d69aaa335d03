"""An adapter put on a model, all of it or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.config.models import adapter_refusal
from tuner.models.hub import resolve_model, token_of
from tuner.text.lookup import tr
from tuner.tracking.adapters import folder_of, named_version
from tuner.tracking.store import TrackerError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"


def adapter_folder(config: Config, name: str) -> Path:
    """Where an adapter's files are: a folder, a registered version (`name@alias`, `name/3`) or a name on the hub.

    Raises ConfigError when there are none.
    """
    folder = (paths.home() / name).resolve()
    if not folder.is_dir():
        folder = _registered(name) or resolve_model(name, None, config.cache_dir, token=token_of(config))
    folder = folder / (config.adapter_folder or "")
    if not (folder / WEIGHTS).is_file():
        sentence = tr(
            "--adapter_name_or_path {name} holds no {file}; name the folder that does.",
            name=name,
            file=WEIGHTS,
        )
        raise ConfigError([Problem("adapter_name_or_path", sentence)])
    if why := adapter_refusal(folder):
        raise ConfigError([Problem("adapter_name_or_path", f"--adapter_name_or_path {name} {why}")])
    return folder


def _registered(name: str) -> Path | None:
    """The folder of a version that is named as the registry does; None for another name."""
    try:
        row = named_version(name)
        return folder_of(row) if row else None
    except (ValueError, TrackerError) as error:
        raise ConfigError([Problem("adapter_name_or_path", str(error))]) from error


def put_on(
    model: PreTrainedModel | PeftModel, folder: Path, trainable: bool = False, name: str = "default"
) -> PeftModel:
    """The model with an adapter on it, all of it, beside those that it has. Raises ConfigError where they do not fit.

    PEFT only warns of an adapter that brings none of the weights that it announces: training would start at nothing.
    """
    try:
        made = _added(model, folder, trainable, name)
        found = set_peft_model_state_dict(made, load_peft_weights(str(folder), device="cpu"), name)
    except (RuntimeError, ValueError) as error:
        if "size mismatch" not in str(error) and "Target modules" not in str(error):
            raise
        raise _unfit(folder, tr("its parts have other sizes than this model's layers")) from error
    missing = [key for key in found.missing_keys if f".{name}" in key and re.search(r"lora_|oft_", key)]
    unknown = [key for key in found.unexpected_keys if re.search(r"lora_|oft_", key)]
    if missing:
        raise _unfit(
            folder,
            tr(
                "it brings no weights for {count} of the parts it announces ({first})",
                count=len(missing),
                first=missing[0],
            ),
        )
    if unknown:
        raise _unfit(
            folder,
            tr(
                "{count} of its parts are for layers that this model does not have ({first})",
                count=len(unknown),
                first=unknown[0],
            ),
        )
    return made


def _added(model: PreTrainedModel | PeftModel, folder: Path, trainable: bool, name: str) -> PeftModel:
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), name, is_trainable=trainable)
        return model
    return PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=trainable)


def _unfit(folder: Path, said: str) -> ConfigError:
    sentence = tr(
        "The adapter {folder} was not trained on this model: {said}; name the model it was trained on.",
        folder=folder,
        said=said,
    )
    return ConfigError([Problem("adapter_name_or_path", sentence)])
