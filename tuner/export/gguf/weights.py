"""A model's weights as llama.cpp wants them: read from safetensors one by one, so that only one is in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    TensorNameMap,
    get_tensor_name_map,
    quant_shape_to_byte_shape,
    quants,
)
from numpy.typing import NDArray
from safetensors import safe_open

from tuner.export.gguf.shapes import Shape, head_dim, refuse
from tuner.text.lookup import tr

Numbers = NDArray[Any]
TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
TORCH = "pytorch"  # as safetensors calls it
BLOCK = 32  # numbers that share a scale in q8_0; a row that they do not divide is kept in f16


@dataclass(frozen=True)
class Weight:
    """One weight: its name in safetensors and in GGUF, its rows and columns, and the type it is stored in."""

    name: str
    written: str
    size: tuple[int, ...]
    type: GGMLQuantizationType

    @property
    def bytes(self) -> int:
        return int(math.prod(quant_shape_to_byte_shape(self.size, self.type)))


class Weights:
    """The safetensors of a folder, opened; a context manager."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open = ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> Weights:
        for file in weight_files(self.folder):
            opened = self._open.enter_context(safe_open(file, TORCH))
            self._files |= dict.fromkeys(opened.keys(), opened)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def names(self) -> list[str]:
        return sorted(self._files)

    def size(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str) -> Numbers:
        """One weight in float32."""
        found: Numbers = self._files[name].get_tensor(name).to(torch.float32).numpy()
        return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that make up a model: those its index names, so that files left behind by others are not read."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def plan(weights: Weights, config: Any, shape: Shape, outtype: str) -> list[Weight]:
    """What will be written, in order. Raises ConfigError for a weight that has no place in the shape."""
    names = get_tensor_name_map(shape.arch, config.num_hidden_layers)
    wanted = [name for name in weights.names() if not _left_out(name, config)]
    return [_planned(name, weights.size(name), names, outtype) for name in wanted]


def _left_out(name: str, config: Any) -> bool:
    """What llama.cpp makes itself: a head that is the embeddings, and tables of angles."""
    return name == "lm_head.weight" and config.tie_word_embeddings or name.endswith("rotary_emb.inv_freq")


def _planned(name: str, size: tuple[int, ...], names: TensorNameMap, outtype: str) -> Weight:
    written = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if written is None:
        raise refuse(tr("its weight {name} has no place there", name=name))
    return Weight(name, written, size, stored(size, outtype))


def stored(size: tuple[int, ...], outtype: str) -> GGMLQuantizationType:
    """The type of a weight of this size: norms and biases stay in float32."""
    if len(size) == 1:
        return GGMLQuantizationType.F32
    wanted = TYPES[outtype][0]
    if wanted is GGMLQuantizationType.Q8_0 and size[-1] % BLOCK:
        return GGMLQuantizationType.F16
    return wanted


def announce(writer: GGUFWriter, planned: list[Weight]) -> None:
    """Tell the file what comes, before any of it is read."""
    for weight in planned:
        writer.add_tensor_info(
            weight.written, weight.size, np.dtype(np.float32), weight.bytes, raw_dtype=weight.type
        )


def converted(weights: Weights, planned: list[Weight], config: Any, shape: Shape) -> Iterator[Numbers]:
    """The weights of a plan as they are stored, one at a time. Raises ConfigError where a number does not fit."""
    for weight in planned:
        yield packed(_arranged(weights.read(weight.name), weight.name, config, shape), weight)


def packed(values: Numbers, weight: Weight) -> Numbers:
    """Numbers in the type of their weight."""
    with np.errstate(over="ignore"):
        made: Numbers = quants.quantize(values, weight.type)
    if weight.type is GGMLQuantizationType.F16 and np.isinf(made).any():
        raise refuse(
            tr("numbers of {name} are too large for f16; use --export_outtype bf16", name=weight.name)
        )
    return made


def _arranged(values: Numbers, name: str, config: Any, shape: Shape) -> Numbers:
    if shape.pairs and (heads := turned_heads(name, config)):
        return interleaved(values, heads)
    if shape.norms and name.endswith("norm.weight"):
        return values + np.float32(shape.norms)
    return values


def turned_heads(name: str, config: Any) -> int:
    """How many heads' positions turn in this weight of q or k; 0 for any other weight."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return int(heads.get(name.rsplit(".", 2)[-2], 0))


def interleaved(values: Numbers, heads: int) -> Numbers:
    """Rows of q or k reordered within each head: (x1 x2 x3 | y1 y2 y3) becomes (x1 y1 x2 y2 x3 y3).

    transformers turns row i with row i + half, llama.cpp's Llama turns neighbours.
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def stretched_angles(config: Any) -> dict[str, Numbers]:
    """By what llama.cpp divides each of the angles, float32 (half the turned rows,), where a tensor says how positions
    are stretched: by its name."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        kinds = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
        return {name: np.array(rope[key], np.float32) for name, key in kinds.items()}
    return {"rope_freqs.weight": _llama3(rope, head_dim(config))} if rope.get("rope_type") == "llama3" else {}


def _llama3(rope: Any, turned: int) -> Numbers:
    """Slow angles divided by the factor, fast ones left, those between in between."""
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    waves: Numbers = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, turned, 2, dtype=np.float64) / turned)
    longest = rope["original_max_position_embeddings"]
    share: Numbers = np.clip((longest / waves - low) / (high - low), 0, 1)
    found: Numbers = (1 / ((1 - share) / factor + share)).astype(np.float32)
    return found
