"""What would stop a run before it begins: its model and the adapters that it starts from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tuner import hardware, tensors
from tuner.config import layer_names, libraries
from tuner.config.config import Config
from tuner.config.knobs import Problem
from tuner.config.models import adapter_refusal, needs_remote_code
from tuner.plan.facts import model_of, place
from tuner.plan.machine_checks import elsewhere
from tuner.text.lookup import tr

HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


LEGACY = ("qwen", "internlm2")


def model(config: Config) -> Iterator[Problem]:
    """The model that it starts from: whether it is there, is one, and may be loaded."""
    name = config.model_name_or_path
    if not name:
        return
    folder = place(name)
    if not folder.is_dir():
        if not HUB_NAME.match(name) or name.startswith((".", "/", "~")):
            yield Problem(
                "model_name_or_path",
                tr(
                    "--model_name_or_path {name} is no folder here and no hub name; give a folder or owner/name.",
                    name=name,
                ),
            )
        elif os.environ.get("HF_HUB_OFFLINE") == "1" and not _in_hub_cache(name):
            yield Problem(
                "model_name_or_path",
                tr(
                    "--model_name_or_path {name} is not on this machine and the hub is switched off "
                    "(HF_HUB_OFFLINE=1); give a local folder.",
                    name=name,
                ),
            )
        return
    yield from _model_folder(config, folder)


def _model_folder(config: Config, folder: Path) -> Iterator[Problem]:
    name = config.model_name_or_path
    if not (folder / "config.json").is_file():
        yield Problem(
            "model_name_or_path",
            tr("--model_name_or_path {name} holds no config.json; it is not a model.", name=name),
        )
        return
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = said.get("model_type", "")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        yield Problem(
            "model_name_or_path",
            tr("{name}/config.json is not valid JSON; download the model again.", name=name),
        )
        return
    pickled = any(folder.glob("*.bin")) and kind in LEGACY
    if not any(folder.glob("*.safetensors")) and not pickled and not config.train_from_scratch:
        yield Problem(
            "model_name_or_path",
            tr(
                "--model_name_or_path {name} holds no *.safetensors; other weight files can run code and are not read.",
                name=name,
            ),
        )
    if (why := needs_remote_code(folder)) and not config.trust_remote_code:
        yield Problem("trust_remote_code", why)
    if (library := libraries.checkpoint(said.get("quantization_config"))) and not library.there:
        yield library.missing("model_name_or_path")
    yield from layer_names.problems(config, folder, kind)
    yield from _blocks(config, said.get("num_hidden_layers"))
    yield from _rank(config)


def _blocks(config: Config, layers: object) -> Iterator[Problem]:
    asked = config.freeze_trainable_layers
    if config.use_llama_pro and isinstance(layers, int) and (asked < 1 or layers % asked):
        said = tr(
            "--freeze_trainable_layers {asked} does not divide the model's {layers} layers, so it was not expanded by "
            "that many blocks; give the number it was expanded by.",
            asked=asked,
            layers=layers,
        )
        yield Problem("freeze_trainable_layers", said)


def _rank(config: Config) -> Iterator[Problem]:
    """An adapter that cannot fit: its weights, gradients and Adam's two moments are float32."""
    shape = model_of(config).shape
    if shape is None or config.finetuning_type != "lora":
        return
    needed = 16 * shape.lora_parameters(config.lora_rank, config.lora_target)
    there = hardware.whole_memory(config.use_cpu)
    if needed > there and not elsewhere():
        said = tr(
            "--lora_rank {lora_rank} makes adapters that take {needed:,.0f} GiB to train, and the "
            "device has {there:,.0f} GiB in all; 8 to 64 is usual.",
            lora_rank=config.lora_rank,
            needed=needed / hardware.GIB,
            there=there / hardware.GIB,
        )
        yield Problem("lora_rank", said, {"lora_rank": 64})


def _in_hub_cache(name: str) -> bool:
    from tuner.config.models import hub_cache_models

    return name in hub_cache_models()


def adapters(config: Config) -> Iterator[Problem]:
    """Adapters that are named: whether they are whole and fit the model."""
    for knob in ("adapter_name_or_path", "ref_model_adapters"):
        for name in getattr(config, knob):
            folder = place(name)
            if not folder.is_dir() and HUB_NAME.match(name):
                continue
            folder = folder / (config.adapter_folder or "")
            if not (folder / "adapter_config.json").is_file():
                said = tr(
                    "--{knob} {name} holds no adapter_config.json; give an adapter's folder.",
                    knob=knob,
                    name=name,
                )
                yield Problem(knob, said)
            elif why := adapter_refusal(folder) or unfit_adapter(str(config.model_name_or_path), folder):
                yield Problem(knob, f"--{knob} {name} {why}")


ADAPTER_PART = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def unfit_adapter(model: str, folder: Path) -> str:
    """Why an adapter cannot be put on a model, as the end of a sentence; empty where nothing speaks against it."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        return ""  # said when it is looked for
    try:
        if not tensors.header(weights)[0]:
            return tr(
                "holds no weights ({name} is empty); training from it would start at nothing.",
                name=weights.name,
            )
        parts = tensors.matrices(weights)
    except tensors.BrokenWeights as error:
        return tr("cannot be read: {error}", error=error)
    said, ranks = (
        _rank_of(folder),
        {shape[0] for key, shape in parts.items() if key.endswith(".lora_A.weight")},
    )
    if said is not None and ranks and ranks != {said}:
        found = ", ".join(map(str, sorted(ranks)))
        return tr(
            "says rank {said} in adapter_config.json, but its weights have rank {found}; take a whole copy of it.",
            said=said,
            found=found,
        )
    base = _matrices(place(model))
    for key, shape in parts.items():
        part = ADAPTER_PART.fullmatch(key)
        theirs = base.get(f"{part['module']}.weight") if part else None
        # A rank has nothing to do with the model, the other side is one of the layer's own; some layers lie transposed.
        if part and theirs and (shape[1] if part["side"] == "A" else shape[0]) not in theirs:
            return tr(
                "was trained on another model: its part for {module} is {shape} x {shape_2}, and that layer of"
                " {model} is {theirs} x {theirs_2}; name the model it was trained on.",
                module=part["module"],
                shape=shape[0],
                shape_2=shape[1],
                model=model,
                theirs=theirs[0],
                theirs_2=theirs[1],
            )
    return ""


def _rank_of(folder: Path) -> int | None:
    """The rank that an adapter's description gives all its layers; None where they have their own."""
    with suppress(OSError, ValueError, AttributeError):
        said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = said.get("r")
        return rank if isinstance(rank, int) and not said.get("rank_pattern") else None
    return None


def _matrices(folder: Path) -> dict[str, tuple[int, int]]:
    """The matrices of a model's folder; none where it is not on this machine or cannot be read."""
    found: dict[str, tuple[int, int]] = {}
    with suppress(tensors.BrokenWeights, OSError):
        for path in folder.glob("*.safetensors"):
            found |= tensors.matrices(path)
    return found
