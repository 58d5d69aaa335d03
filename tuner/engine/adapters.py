"""Adapters by PEFT: a fresh one, one that is gone on with, and those that are merged away first."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import (
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from transformers import set_seed

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data.made_once import made_once
from tuner.engine import layers, models
from tuner.engine.models import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
PISSA_START = "pissa_init"


def base_of(config: Config, source: Source) -> Source:
    """The model the weights of this run sit on.

    Adapters that are not gone on with are merged into the model once and the result is kept, because the adapter that
    comes out fits that model and no other: LLaMA-Factory names the unmerged one in it, which gives other answers.
    """
    given = config.adapter_name_or_path
    goes_on = config.finetuning_type in ("lora", "oft") and not config.create_new_adapter
    merged = given[:-1] if goes_on else given
    return merge_once(config, source, [adapter_folder(config, name) for name in merged]) if merged else source


def adapter_folder(config: Config, name: str) -> Path:
    """Where an adapter's files are. Raises ConfigError when there are none."""
    folder = (paths.home() / name).resolve()
    if not folder.is_dir():
        from tuner.engine.hub import resolve_model

        folder = resolve_model(name, None, config.cache_dir, token=config.hf_hub_token)
    folder = folder / (config.adapter_folder or "")
    if not (folder / WEIGHTS).is_file():
        sentence = f"--adapter_name_or_path {name} holds no {WEIGHTS}; name the folder that does."
        raise ConfigError([Problem("adapter_name_or_path", sentence)])
    return folder


def merge_once(config: Config, source: Source, adapters: Sequence[Path]) -> Source:
    """The model with these adapters merged in, in their order; made the first time and kept under mlruns/models."""
    digest = hashlib.sha256(source.base.encode())
    for adapter in adapters:
        digest.update((adapter / WEIGHTS).read_bytes())

    def make(fresh: Path) -> None:
        model = models.load(config, source, bits=None, whole=False)
        for adapter in adapters:
            model = put_on(model, adapter).merge_and_unload()
        model.save_pretrained(fresh)
        models.tokenizer(config, source).save_pretrained(fresh)

    folder = paths.models() / f"{paths.slug(source.folder.name)}-merged-{digest.hexdigest()[:12]}"
    return Source(made_once(folder, make), str(folder.resolve()))


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


def attach(config: Config, model: PreTrainedModel) -> tuple[PreTrainedModel | PeftModel, PeftConfig | None]:
    """The model to train and, for an adapter that starts from nothing, its settings for the trainer to add.

    A trainer that adds the adapter itself knows that the reference is the model without it. An adapter that starts
    from something is added here: the trainer then keeps a frozen copy of it as the reference.
    """
    if config.adapter_name_or_path and not config.create_new_adapter:
        folder = adapter_folder(config, config.adapter_name_or_path[-1])
        return put_on(model, folder, trainable=True), None
    fresh = oft(config, model) if config.finetuning_type == "oft" else lora(config, model)
    if config.pissa_init:
        set_seed(config.seed)  # the fast decomposition is random; a resumed run must find the same one
        made = get_peft_model(model, fresh)
        # From here on it is an adapter like any other: a copy of it must not decompose the weights again.
        made.peft_config["default"].init_lora_weights = True
        return made, None
    return model, fresh


def lora(config: Config, model: PreTrainedModel) -> LoraConfig:
    """LoRA as the config says; alpha is twice the rank unless given."""
    start: bool | str = True
    if config.pissa_init:
        start = "pissa" if config.pissa_iter == -1 else f"pissa_niter_{config.pissa_iter}"
    chosen = None
    if config.use_llama_pro:
        chosen = sorted(layers.wanted_layers(config, layers.stack(model)[1]))
    return LoraConfig(
        task_type=_task(model),
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules=targets(config, model),
        layers_to_transform=chosen,
        modules_to_save=_saved_whole(config, model),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=start,  # type: ignore[arg-type]
    )


def oft(config: Config, model: PreTrainedModel) -> OFTConfig:
    """Rotations of the weights (arXiv 2306.07280); either the number of blocks or their size is given."""
    return OFTConfig(
        task_type=_task(model),
        r=config.oft_rank,
        oft_block_size=0 if config.oft_rank else config.oft_block_size,
        module_dropout=config.module_dropout,
        target_modules=targets(config, model),
        modules_to_save=_saved_whole(config, model),
    )


def _task(model: PreTrainedModel) -> str:
    return "SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM"


def _saved_whole(config: Config, model: PreTrainedModel) -> list[str] | None:
    """The layers trained whole beside the adapter: those named, and the embeddings where tokens were added."""
    if config.additional_target or not models.grows(config):
        return list(config.additional_target) or None
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if any(module is e for e in ends)
    ]


def targets(config: Config, model: PreTrainedModel) -> str | list[str]:
    """The layers that get an adapter: every linear one except the head, those named, or those a pattern fits.

    Raises ConfigError when a name fits no layer.
    """
    asked = list(config.lora_target)
    if config.finetuning_type == "oft" and config.oft_target != ("all",):
        asked = list(config.oft_target)
    if asked == ["all"]:
        return "all-linear"
    if len(asked) == 1 and re.search(r"[\\^$*+?()\[\]|]", asked[0]):
        return asked[0]
    names = [name for name, _ in model.named_modules()]
    linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    for name in asked:
        if not any(n == name or n.endswith(f".{name}") for n in names):
            sentence = f"--lora_target {name} is no layer of this model; it has {', '.join(sorted(linear))}, or say all."
            raise ConfigError([Problem("lora_target", sentence, {"lora_target": ["all"]})])
    return asked


def keep_only_adapter_dropout(model: torch.nn.Module) -> None:
    """Silence every dropout but that of the adapter in training.

    Log-probabilities are compared with a reference's, so noise of the base model would only hide the difference;
    lora_dropout is what the config asked for and stays.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.endswith("lora_dropout.default"):
            module.p = 0.0


def remember_pissa(model: torch.nn.Module, folder: Path) -> None:
    """Keep the adapter a PiSSA run starts from; the plain LoRA at the end is the difference to it."""
    model.save_pretrained(str(folder / PISSA_START), selected_adapters=["default"])


def save_pissa(model: torch.nn.Module, start: Path, output: Path) -> None:
    """A PiSSA adapter as a plain LoRA of twice the rank, which fits the model as it was.

    Unconverted it would fit only the remainder of the decomposition, which is not kept anywhere.
    """
    settings = model.peft_config["default"]
    settings.init_lora_weights = "pissa"  # what PEFT wants to hear before it converts
    model.save_pretrained(
        str(output),
        selected_adapters=["default"],
        path_initial_model_for_weight_conversion=str(start / PISSA_START),
    )
    settings.init_lora_weights = True
