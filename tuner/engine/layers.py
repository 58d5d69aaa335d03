"""Training weights as they are: all of them, or some layers while the rest is frozen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem, nearest
from tuner.config.vision import part_of
from tuner.models import vision
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train_only(config: Config, model: PreTrainedModel) -> None:
    """Freeze everything that finetuning_type freeze does not name; full trains all. Raises ConfigError."""
    if config.finetuning_type == "full":
        model.requires_grad_(True)
        vision.freeze(config, model)
        return
    prefix, count = stack(model)
    inside = wanted_layers(config, count)
    names = {name for name, _ in model.named_parameters()}
    parts = _parts(config, names, prefix)
    extra = _extra(config, names, prefix)
    for name, weight in model.named_parameters():
        found = re.match(rf"{re.escape(prefix)}\.(\d+)\.(.*)", name)
        in_layer = found is not None and int(found.group(1)) in inside and _named(found.group(2), parts)
        weight.requires_grad_(in_layer or (found is None and bool(extra) and _named(name, extra)))
    vision.freeze(config, model)


def stack(model: PreTrainedModel) -> tuple[str, int]:
    """The name of the list of layers and how many it has."""
    wanted = model.config.get_text_config().num_hidden_layers
    parts = vision.parts_of(model)
    for name, module in model.named_modules():
        if parts and part_of(parts, name) != "language":  # a tower may have as many
            continue
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return name, wanted
    raise ConfigError(
        [
            Problem(
                "finetuning_type",
                tr(
                    "The layers of {model} are not known here; use --finetuning_type lora.",
                    model=type(model).__name__,
                ),
            )
        ]
    )


def wanted_layers(config: Config, count: int) -> set[int]:
    """The numbers of the layers to train, of `count`: the last or first ones, or the expanded blocks of LLaMA Pro."""
    asked = config.freeze_trainable_layers
    if config.use_llama_pro:
        if asked < 1 or count % asked:
            sentence = tr(
                "--freeze_trainable_layers {asked} does not divide the model's {count} layers, so it was not expanded by that many blocks; give the number it was expanded by.",
                asked=asked,
                count=count,
            )
            raise ConfigError([Problem("freeze_trainable_layers", sentence)])
        stride = count // asked
        return set(range(stride - 1, count, stride))
    return set(range(max(0, count - asked), count)) if asked > 0 else set(range(min(count, -asked)))


def _parts(config: Config, names: set[str], prefix: str) -> list[str]:
    """The modules inside a layer that are trained; empty for all."""
    asked = list(config.freeze_trainable_modules)
    if asked == ["all"]:
        return []
    lead = f"{prefix}.0."
    known = {piece for n in names if n.startswith(lead) for piece in n[len(lead) :].split(".")[:-1]}
    return _checked("freeze_trainable_modules", asked, known)


def _extra(config: Config, names: set[str], prefix: str) -> list[str]:
    known = {piece for n in names if not n.startswith(f"{prefix}.") for piece in n.split(".")[:-1]}
    return _checked("freeze_extra_modules", list(config.freeze_extra_modules), known)


def _checked(knob: str, asked: list[str], known: set[str]) -> list[str]:
    for name in asked:
        if name not in known:
            raise ConfigError([Problem(knob, _no_part(knob, name, known))])
    return asked


def _no_part(knob: str, name: str, known: set[str]) -> str:
    if like := nearest(name, known):
        return tr(
            "--{knob} {name} is no part of this model; did you mean {like}?", knob=knob, name=name, like=like
        )
    every = ", ".join(sorted(known))
    return tr(
        "--{knob} {name} is no part of this model; there are {known}.", knob=knob, name=name, known=every
    )


def _named(name: str, parts: list[str]) -> bool:
    return not parts or any(part in name.split(".") for part in parts)
