"""A LoRA adapter as GGUF, which llama.cpp and Ollama put on the base model's own file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TensorNameMap
from safetensors import safe_open

from tuner.config.knobs import ConfigError, Problem
from tuner.export.gguf import shapes
from tuner.export.gguf.shapes import Shape
from tuner.export.gguf.weights import Numbers, interleaved, stored, turned_heads
from tuner.text.lookup import tr

BEFORE = "base_model.model."
SIDES = {".lora_A.weight": ".lora_a", ".lora_B.weight": ".lora_b"}


@dataclass(frozen=True)
class Side:
    """One of the two matrices of a layer's adapter: its name in PEFT's file, its layer, and its name in GGUF."""

    name: str
    layer: str
    written: str


def write(adapter: Path, config: Any, file: Path, outtype: str, name: str) -> None:
    """Write PEFT's folder as GGUF. `config` is the base model's. Raises ConfigError for what such a file cannot hold."""
    said = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    shape = shapes.shape_of(config)
    for differs, why in _beyond(said):
        if differs:
            raise _refuse(why)
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[shape.arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(said["lora_alpha"]))
    for written, values, kind in _matrices(adapter, said, config, shape, outtype):
        writer.add_tensor(written, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _refuse(why: str) -> ConfigError:
    sentence = tr(
        "This adapter cannot be written as GGUF: {why}; use --export_format gguf, which merges it.", why=why
    )
    return ConfigError([Problem("export_format", sentence, {"export_format": "gguf"})])


def _beyond(said: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """What an adapter may have and such a file has no place for."""
    kind = str(said.get("peft_type", "LORA"))
    return [
        (kind != "LORA", tr("it is {kind}, and only LoRA is known there", kind=kind)),
        (bool(said.get("use_dora")), tr("it is DoRA, which also scales the weights' lengths")),
        (bool(said.get("modules_to_save")), tr("it trained whole modules beside its matrices")),
        (bool(said.get("trainable_token_indices")), tr("it trained single tokens")),
        (said.get("bias", "none") != "none", tr("it trained biases")),
        (bool(said.get("fan_in_fan_out")), tr("its layers are stored the other way round")),
        (bool(said.get("target_parameters")), tr("it is on parameters that are no layers")),
    ]


def _matrices(
    adapter: Path, said: Mapping[str, Any], config: Any, shape: Shape, outtype: str
) -> Iterator[tuple[str, Numbers, GGMLQuantizationType]]:
    """Every matrix by its name in GGUF, with the type it is stored in. An adapter is small: all are held at once."""
    names = gguf.get_tensor_name_map(shape.arch, config.num_hidden_layers)
    with safe_open(adapter / "adapter_model.safetensors", framework="np") as opened:
        held = {name: opened.get_tensor(name).astype(np.float32) for name in opened.keys()}  # noqa: SIM118
    for name, values in held.items():
        side = _side(name, names, config)
        if side.written.endswith(".lora_b"):
            values = values * np.float32(_correction(side.layer, values.shape[1], said))
            heads = turned_heads(side.layer + ".weight", config) if shape.pairs else 0
            values = interleaved(values, heads) if heads else values
        yield side.written, values, stored(values.shape, outtype)


def _side(name: str, names: TensorNameMap, config: Any) -> Side:
    end = next((end for end in SIDES if name.endswith(end)), None)
    layer = name.removeprefix(BEFORE).removesuffix(end or "")
    written = names.get_name(f"{layer}.weight", try_suffixes=(".weight",)) if end else None
    if end is None or written is None or layer == "model.embed_tokens":
        raise _refuse(tr("its part {name} has no place there", name=name))
    if layer == "lm_head" and config.tie_word_embeddings:
        raise _refuse(tr("it is on the head, which is the embeddings in this model"))
    return Side(name, layer, written + SIDES[end])


def _correction(layer: str, rank: int, said: Mapping[str, Any]) -> float:
    """By what B is multiplied so that llama.cpp's alpha / rank, one alpha for all, is this layer's own scale."""
    alpha = float(_of_layer(said.get("alpha_pattern"), layer) or said["lora_alpha"])
    scale = alpha / (rank**0.5 if said.get("use_rslora") else rank)
    return scale / (float(said["lora_alpha"]) / rank)


def _of_layer(pattern: Mapping[str, Any] | None, layer: str) -> Any:
    """A pattern's value for a layer, found as PEFT finds it: by the end of the layer's name."""
    from peft.utils.other import get_pattern_key

    key = get_pattern_key((pattern or {}).keys(), layer)
    return (pattern or {}).get(key)
