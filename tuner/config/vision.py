"""Models that take pictures: which they are, by their config.json, and what their parts are called. No torch.

A part's names are those of modules in transformers 5, by which weights are frozen and adapters stay out of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """Names of modules: the tower that reads pixels, the projector behind it, the language model. A name in the projector
    may lie inside the tower's. `layers` says how its config.json calls the tower's depth."""

    tower: str
    projector: str
    language: tuple[str, ...]
    layers: str = "num_hidden_layers"


_QWEN = Family("model.visual", "model.visual.merger", ("model.language_model", "lm_head"), "depth")
_IDEFICS = Family("model.vision_model", "model.connector", ("model.text_model", "lm_head"))
FAMILIES: Mapping[str, Family] = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "gemma3": Family(
        "model.vision_tower", "model.multi_modal_projector", ("model.language_model", "lm_head")
    ),
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
}
"""By model_type."""


def family(model: Mapping[str, Any]) -> Family | None:
    """How the parts of a model are called, from its config.json; None for one that takes no pictures here."""
    if not isinstance(model.get("vision_config"), Mapping):
        return None
    return FAMILIES.get(str(model.get("model_type")))


def takes_pictures(model: Mapping[str, Any]) -> bool:
    """Whether a model of this config.json is trained with pictures."""
    return family(model) is not None


def part_of(named: Family, module: str) -> str:
    """Which part a module or weight is in: `tower`, `projector` or `language`."""
    if _inside(module, named.projector):
        return "projector"
    return "tower" if _inside(module, named.tower) else "language"


def _inside(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


_GEMMA3_TEXT = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
}  # fmt: skip
"""What transformers takes where Gemma 3's own files say nothing, which they often do."""


def language_config(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's fields of a config.json, whose sizes count; of a model without pictures, itself.

    They stand in `text_config`; older files of Qwen2-VL and Qwen2.5-VL have them beside `vision_config`.
    """
    named = family(model)
    if named is None:
        return model
    inner = model.get("text_config")
    flat = {name: value for name, value in model.items() if name not in ("model_type", "vision_config")}
    own = dict(inner) if isinstance(inner, Mapping) else flat
    kind = str(model["model_type"])
    tied = {"tie_word_embeddings": model["tie_word_embeddings"]} if "tie_word_embeddings" in model else {}
    if kind == "gemma3":
        return {"model_type": "gemma3_text", **_GEMMA3_TEXT, **tied, **own}
    return {"model_type": f"{kind}_text" if named is _QWEN else "llama", **tied, **own}
