"""Models and tokenizers, loaded as a config says: right type, right attention, safetensors, no code of strangers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.config.vision import takes_pictures
from tuner.models.quantization import check_checkpoint
from tuner.models.quantization import settings as quantized
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

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
    from tuner.models.hub import resolve_model, token_of
    from tuner.models.legacy import native

    name = name or str(config.model_name_or_path)
    local = (paths.home() / Path(name).expanduser()).resolve()
    given = str(local) if local.is_dir() else name
    folder = resolve_model(
        given,
        config.model_revision,
        config.cache_dir,
        token=token_of(config),
        trust_remote_code=config.trust_remote_code,
    )
    ready = native(folder, paths.models())
    return Source(ready, given if ready == folder and not local.is_dir() else str(ready.resolve()))


def fingerprint(source: Source) -> str:
    """A name for the model's files as they are: what is made from them is made anew when they change. No file is read."""
    folder = source.folder.resolve()
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    parts = [str(folder), *(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


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
    if config.infer_dtype != "auto" and not config.do_train:
        return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[
            config.infer_dtype
        ]
    if config.bf16 or config.pure_bf16:
        return torch.bfloat16
    return torch.float16 if config.fp16 else torch.float32


def load(
    config: Config,
    source: Source,
    *,
    bits: int | None,
    whole: bool,
    kind: type[_BaseAutoModelClass] | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """The model of a config. `bits` quantizes it; `whole` says that all its weights are trained and kept in float32.
    Without a `kind` it is one that writes.

    Frozen weights are kept in the compute type. Raises ConfigError where a library is missing.
    """
    shape = AutoConfig.from_pretrained(source.folder, trust_remote_code=config.trust_remote_code, **changes)
    check_checkpoint(getattr(shape, "quantization_config", None))
    kind = kind or writes(shape)
    stretch(config, shape)
    kept = torch.float32 if whole and not config.pure_bf16 else compute_type(config)
    options: dict[str, Any] = {"dtype": kept, "trust_remote_code": config.trust_remote_code}
    if config.flash_attn != "auto":
        options["attn_implementation"] = _attention(config.flash_attn)
    torch.manual_seed(config.seed)  # what the files lack is drawn: a whole model, the head of one that scores
    if config.train_from_scratch:
        model = kind.from_config(shape, **options)
    else:
        if bits:
            options["quantization_config"] = quantized(config, bits, compute_type(config))
            options["device_map"] = {"": device(config)}
        model = kind.from_pretrained(
            source.folder,
            config=shape,
            use_safetensors=True,
            low_cpu_mem_usage=config.low_cpu_mem_usage,
            **options,
        )
    # What PEFT writes into adapter_config.json: a name the adapter can be loaded with elsewhere.
    model.name_or_path = source.base
    model.config._name_or_path = source.base
    model.config.use_cache = False
    _upcast(config, model)
    return model


def writes(shape: PretrainedConfig) -> type[_BaseAutoModelClass]:
    """The class of a model that writes: with its eyes, where it takes pictures."""
    return AutoModelForImageTextToText if takes_pictures(shape.to_dict()) else AutoModelForCausalLM


def written_by(folder: Path, trust_remote_code: bool = False) -> type[_BaseAutoModelClass]:
    """The same of a model's folder."""
    return writes(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))


def device(config: Config) -> str:
    """Where this process computes: its GPU, or the CPU."""
    return (
        f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() and not config.use_cpu else "cpu"
    )


def stretch(config: Config, shape: Any) -> None:
    """Positions for texts longer than the model was made for: the factor that cutoff_len needs, rounded up."""
    shape = shape.get_text_config() if hasattr(shape, "get_text_config") else shape
    longest = getattr(shape, "max_position_embeddings", None)
    if not config.rope_scaling:
        return
    if longest is None or not hasattr(shape, "rope_parameters"):
        sentence = tr(
            "--rope_scaling {kind} does not fit this model, which has no rotary positions; leave it empty.",
            kind=config.rope_scaling,
        )
        raise ConfigError([Problem("rope_scaling", sentence, {"rope_scaling": None})])
    if config.cutoff_len <= longest:
        return
    factor = float(math.ceil(config.cutoff_len / longest))
    rope = {**(shape.rope_parameters or {}), "rope_type": config.rope_scaling, "factor": factor}
    if config.rope_scaling in ("dynamic", "yarn", "llama3"):
        rope["original_max_position_embeddings"] = longest
    if config.rope_scaling == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    shape.rope_parameters = rope
    shape.max_position_embeddings = int(longest * factor)


def _upcast(config: Config, model: PreTrainedModel) -> None:
    if config.upcast_layernorm:
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and ("norm" in name or "ln" in name.rsplit(".", 2)[-2]):
                weight.data = weight.data.to(torch.float32)
    head = model.get_output_embeddings()
    if config.upcast_lmhead_output and head is not None:
        head.register_forward_hook(lambda module, given, output: output.to(torch.float32))


def _attention(asked: str) -> str:
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    there = {"fa2": is_flash_attn_2_available, "fa3": is_flash_attn_3_available}
    if asked in there and not there[asked]():
        package = {"fa2": "flash-attn", "fa3": "flash-attn-3"}[asked]
        sentence = tr(
            "--flash_attn {asked} needs the library {package}, which is not installed; use --flash_attn sdpa.",
            asked=asked,
            package=package,
        )
        raise ConfigError([Problem("flash_attn", sentence, {"flash_attn": "sdpa"})])
    return ATTENTION[asked]
