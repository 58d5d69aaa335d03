"""A model's folder written as one GGUF file, with its tokenizer and chat template, by the `gguf` package alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFWriter
from transformers import AutoConfig

from tuner.export.gguf import shapes, vocabulary
from tuner.export.gguf import weights as stored
from tuner.export.gguf.shapes import Shape
from tuner.export.gguf.weights import Weight, Weights
from tuner.text.message import Message

Told = Callable[[float], None]


def write(folder: Path, tokenizer: Any, file: Path, outtype: str, name: str, told: Told) -> list[Message]:
    """Write `folder`'s model to `file`; `told` hears how far it is, 0 to 1. The messages are what its user should know.

    Raises ConfigError where the model has no place in GGUF, before anything is written.
    """
    config = AutoConfig.from_pretrained(folder)
    shape = shapes.shape_of(config)
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[shape.arch])
    with Weights(folder) as weights:
        planned = stored.plan(weights, config, shape, outtype)
        said = _describe(writer, config, shape, tokenizer, weights, outtype, name)
        angles = stored.stretched_angles(config)
        for named, values in angles.items():
            writer.add_tensor_info(named, values.shape, values.dtype, values.nbytes)
        stored.announce(writer, planned)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in angles.values():
            writer.write_tensor_data(values)
        _pour(writer, weights, planned, config, shape, told)
    writer.close()
    return said


def _describe(
    writer: GGUFWriter,
    config: Any,
    shape: Shape,
    tokenizer: Any,
    weights: Weights,
    outtype: str,
    name: str,
) -> list[Message]:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(vocabulary.called(name, tokenizer))
    writer.add_file_type(stored.TYPES[outtype][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    said = shapes.describe(writer, config, shape)
    vocabulary.describe(writer, tokenizer, weights.size("model.embed_tokens.weight")[0])
    return said


def _pour(
    writer: GGUFWriter, weights: Weights, planned: list[Weight], config: Any, shape: Shape, told: Told
) -> None:
    """Read, convert and write one weight after another."""
    total, done = sum(weight.bytes for weight in planned), 0
    made = stored.converted(weights, planned, config, shape)
    for weight, values in zip(planned, made, strict=True):
        writer.write_tensor_data(values)
        done += weight.bytes
        told(done / total)
