"""The numbers of the part of a model that sees: its weights, and what a step keeps of the pictures it looks at. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.config.vision import family, language_config

_QWEN = {
    "depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14,
    "temporal_patch_size": 2, "spatial_merge_size": 2,
}  # fmt: skip
_SIGLIP = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 12, "patch_size": 32, "image_size": 224,
}  # fmt: skip
_IDEFICS = {**_SIGLIP, "intermediate_size": 3072}
"""What transformers takes where a vision_config says nothing."""


@dataclass(frozen=True)
class Tower:
    """A stack of transformer layers over patches of a picture, and the projector behind it, in matrices' weights (norms and
    biases left out: they are under a hundredth). `inner` is the MLP's width, which two or three matrices have; `pooled` is how
    many patches make a token that the language model reads, `fused` whether queries, keys and values are one matrix, and `sides`
    the inputs and outputs of the projector's linears, on which an adapter may lie."""

    hidden: int
    layers: int
    inner: int
    matrices: int
    ends: int
    projector: int
    sides: int
    pooled: int
    fused: bool

    @classmethod
    def from_config(cls, model: Mapping[str, Any]) -> Tower | None:
        """From a config.json; None for a model without pictures. Raises KeyError for one whose numbers are not told."""
        named = family(model)
        if named is None:
            return None
        kind, text = str(model["model_type"]), int(language_config(model)["hidden_size"])
        if kind.startswith("qwen"):
            return _qwen(kind, _QWEN | _told(model))
        return _siglip(kind, model, (_SIGLIP if kind == "gemma3" else _IDEFICS) | _told(model), text)

    @property
    def of_layer(self) -> int:
        """Weights of a layer."""
        return 4 * self.hidden**2 + self.matrices * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        """Weights of the tower, without the projector."""
        return self.layers * self.of_layer + self.ends

    def lora_parameters(self, rank: int) -> int:
        """LoRA of this rank on all its linears."""
        attention = (6 if self.fused else 8) * self.hidden
        return self.layers * rank * (attention + self.matrices * (self.hidden + self.inner))

    def kept(self, patches: int, width: int, trained: bool) -> int:
        """Bytes that a look at so many patches takes: of one layer where it is left as it is, else of all."""
        one = patches * width * (8 * self.hidden + (self.matrices + 1) * self.inner)
        return one * (self.layers if trained else 1)


def _told(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in dict(model["vision_config"]).items() if value is not None}


def _qwen(kind: str, said: Mapping[str, Any]) -> Tower:
    merge = int(said["spatial_merge_size"]) ** 2
    first = kind == "qwen2_vl"
    hidden = int(said["embed_dim"] if first else said["hidden_size"])
    inner = int(hidden * said["mlp_ratio"]) if first else int(said["intermediate_size"])
    out = int(said["hidden_size"] if first else said["out_hidden_size"])
    patch = 3 * int(said["temporal_patch_size"]) * int(said["patch_size"]) ** 2
    wide = hidden * merge
    one = wide * wide + wide * out
    deep = len(said.get("deepstack_visual_indexes") or ()) if kind == "qwen3_vl" else 0
    places = int(said.get("num_position_embeddings") or 0) * hidden if kind == "qwen3_vl" else 0
    ends = hidden * patch + places + deep * one
    matrices, sides = 3 if kind == "qwen2_5_vl" else 2, 3 * wide + out
    return Tower(hidden, int(said["depth"]), inner, matrices, ends, one, sides, merge, fused=True)


def _siglip(kind: str, model: Mapping[str, Any], said: Mapping[str, Any], text: int) -> Tower:
    hidden, patch = int(said["hidden_size"]), int(said["patch_size"])
    patches = (int(said["image_size"]) // patch) ** 2
    ends = hidden * 3 * patch**2 + patches * hidden
    if kind == "gemma3":
        pooled = max(1, patches // int(model.get("mm_tokens_per_image") or 256))
        projector, sides = hidden * text, 0
    else:
        pooled = int(model.get("scale_factor") or 2) ** 2
        projector, sides = hidden * pooled * text, hidden * pooled + text
    inner = int(said["intermediate_size"])
    return Tower(
        hidden, int(said["num_hidden_layers"]), inner, 2, ends, projector, sides, pooled, fused=False
    )
