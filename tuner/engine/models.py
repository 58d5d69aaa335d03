"""Models and tokenizers, loaded as a config says: right type, right attention, safetensors, no code of strangers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = {
    "disabled": "eager",
    "sdpa": "sdpa",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
}


@dataclass(frozen=True)
class Source:
    """Where a model's files are, and the name an adapter gives its base: an absolute folder or a hub name."""

    folder: Path
    base: str


def find(config: Config, name: str | None = None) -> Source:
    """A model's folder on this machine, fetched or converted if need be. Raises ConfigError with one sentence."""
    from tuner.engine.hub import resolve_model
    from tuner.engine.legacy import native

    name = name or str(config.model_name_or_path)
    local = (paths.home() / Path(name).expanduser()).resolve()
    given = str(local) if local.is_dir() else name
    folder = resolve_model(
        given,
        config.model_revision,
        config.cache_dir,
        token=config.hf_hub_token,
        trust_remote_code=config.trust_remote_code,
    )
    ready = native(folder, paths.models())
    return Source(ready, given if ready == folder and not local.is_dir() else str(ready.resolve()))


def tokenizer(config: Config, source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer that is saved beside the weights; it pads on the right and always knows a padding token."""
    made = AutoTokenizer.from_pretrained(
        source.folder,
        trust_remote_code=config.trust_remote_code,
        padding_side="right",
    )
    if made.pad_token is None:
        made.pad_token = made.eos_token
    return made


def compute_type(config: Config) -> torch.dtype:
    """What matrix products are done in."""
    if config.bf16:
        return torch.bfloat16
    return torch.float16 if config.fp16 else torch.float32


def load(config: Config, source: Source, **changes: Any) -> PreTrainedModel:
    """The causal language model, on this process's device.

    Frozen weights are kept in the compute type, weights that are trained whole in float32: updates of a step are
    smaller than bfloat16 can hold. `changes` are passed to `from_pretrained`.
    """
    settings: dict[str, Any] = {
        "dtype": compute_type(config) if config.finetuning_type == "lora" else torch.float32,
        "trust_remote_code": config.trust_remote_code,
        "use_safetensors": True,
        "low_cpu_mem_usage": True,
    }
    if config.flash_attn != "auto":
        settings["attn_implementation"] = _attention(config.flash_attn)
    shape = AutoConfig.from_pretrained(source.folder, trust_remote_code=config.trust_remote_code)
    model = AutoModelForCausalLM.from_pretrained(source.folder, config=shape, **{**settings, **changes})
    # What PEFT writes into adapter_config.json: a name the adapter can be loaded with elsewhere.
    model.name_or_path = source.base
    model.config._name_or_path = source.base
    model.config.use_cache = False
    return model


def _attention(asked: str) -> str:
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    there = {"fa2": is_flash_attn_2_available, "fa3": is_flash_attn_3_available}
    if asked in there and not there[asked]():
        package = {"fa2": "flash-attn", "fa3": "flash-attn-3"}[asked]
        sentence = f"--flash_attn {asked} needs the library {package}, which is not installed; use --flash_attn sdpa."
        raise ConfigError([Problem("flash_attn", sentence, {"flash_attn": "sdpa"})])
    return ATTENTION[asked]
