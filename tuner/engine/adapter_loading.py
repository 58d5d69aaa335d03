"""An adapter put on a model, all of it or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from tuner.config.knobs import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def put_on(model: PreTrainedModel, folder: Path, trainable: bool = False) -> PeftModel:
    """The model with an adapter on it, all of it. Raises ConfigError where the two do not belong together.

    PEFT only warns of an adapter that brings none of the weights that it announces: training would start at nothing.
    """
    try:
        made = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        found = set_peft_model_state_dict(made, load_peft_weights(str(folder), device="cpu"))
    except (RuntimeError, ValueError) as error:
        if "size mismatch" not in str(error) and "Target modules" not in str(error):
            raise
        raise _unfit(folder, "its parts have other sizes than this model's layers") from error
    missing = [key for key in found.missing_keys if ".default" in key and re.search(r"lora_|oft_", key)]
    unknown = [key for key in found.unexpected_keys if re.search(r"lora_|oft_", key)]
    if missing:
        raise _unfit(
            folder, f"it brings no weights for {len(missing)} of the parts it announces ({missing[0]})"
        )
    if unknown:
        raise _unfit(
            folder, f"{len(unknown)} of its parts are for layers that this model does not have ({unknown[0]})"
        )
    return made


def _unfit(folder: Path, said: str) -> ConfigError:
    sentence = (
        f"The adapter {folder} was not trained on this model: {said}; name the model it was trained on."
    )
    return ConfigError([Problem("adapter_name_or_path", sentence)])
