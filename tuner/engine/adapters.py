"""Adapters by PEFT: a fresh one, one that is gone on with, and those that are merged away first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, OFTConfig, PeftConfig, PeftModel
from transformers import AutoConfig

from tuner.config import layer_names
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.engine import layers, pissa
from tuner.models import loading
from tuner.models.adapter_loading import adapter_folder, put_on
from tuner.models.loading import Source
from tuner.models.merging import merge_once
from tuner.models.vision import frozen_modules
from tuner.plan.engine import grows
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_of(config: Config, source: Source) -> Source:
    """The model the weights of this run sit on.

    Adapters that are not gone on with are merged into the model once and the result is kept, because the adapter that
    comes out fits that model and no other: LLaMA-Factory names the unmerged one in it, which gives other answers.
    """
    given = config.adapter_name_or_path
    goes_on = config.finetuning_type in ("lora", "oft") and not config.create_new_adapter
    merged = given[:-1] if goes_on else given
    return merge_once(config, source, [adapter_folder(config, name) for name in merged]) if merged else source


def attach(
    config: Config, model: PreTrainedModel, checkpoint: Path | None = None
) -> tuple[PreTrainedModel | PeftModel, PeftConfig | None]:
    """The model to train and, for an adapter that starts from nothing, its settings for the trainer to add.

    A trainer that adds the adapter itself knows that the reference is the model without it. An adapter that starts
    from something is added here: the trainer then keeps a frozen copy of it as the reference. `checkpoint` is where the
    run goes on from.
    """
    if config.adapter_name_or_path and not config.create_new_adapter:
        folder = adapter_folder(config, config.adapter_name_or_path[-1])
        return put_on(model, folder, trainable=True), None
    if config.finetuning_type == "oft":
        return model, oft(config, model)
    fresh = lora(config, model)
    return (pissa.begin(config, model, fresh, checkpoint), None) if config.pissa_init else (model, fresh)


def lora(config: Config, model: PreTrainedModel) -> LoraConfig:
    """LoRA as the config says; alpha is twice the rank unless given."""
    start: bool | str = True
    if config.pissa_init:
        start = "pissa" if config.pissa_iter == -1 else f"pissa_niter_{config.pissa_iter}"
    return LoraConfig(
        task_type=_task(model),
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules=targets(config, model),
        exclude_modules=frozen_modules(config, model),
        modules_to_save=_saved_whole(config, model),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=start,
    )


def oft(config: Config, model: PreTrainedModel) -> OFTConfig:
    """Rotations of the weights (arXiv 2306.07280); either the number of blocks or their size is given."""
    return OFTConfig(
        task_type=_task(model),
        r=config.oft_rank,
        oft_block_size=0 if config.oft_rank else config.oft_block_size,
        module_dropout=config.module_dropout,
        target_modules=targets(config, model),
        exclude_modules=frozen_modules(config, model),
        modules_to_save=_saved_whole(config, model),
    )


def _task(model: PreTrainedModel) -> str:
    return "SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM"


def _saved_whole(config: Config, model: PreTrainedModel) -> list[str] | None:
    """The layers trained whole beside the adapter: those named, and the embeddings where tokens were added."""
    names = {name for name, _ in model.named_modules()}
    if found := list(layer_names.unknown("additional_target", config.additional_target, names, None)):
        raise ConfigError(found)
    if config.additional_target or not grows(config):
        return list(config.additional_target) or None
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if any(module is e for e in ends)
    ]


def check_layers(config: Config, source: Source, kind: Any, **changes: Any) -> None:
    """Raises ConfigError where a name of layers fits none of this model, before data and weights are read.

    The model is built without weights. One that cannot be built so is left to the loading, which says what it lacks.
    """
    if config.finetuning_type not in ("lora", "oft") or not (
        config.create_new_adapter or not config.adapter_name_or_path
    ):
        return
    try:
        shape = AutoConfig.from_pretrained(
            source.folder, trust_remote_code=config.trust_remote_code, **changes
        )
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = (kind or loading.writes(shape)).from_config(
                shape, trust_remote_code=config.trust_remote_code
            )
    except Exception:  # noqa: BLE001  whatever it is, it is no matter of layers' names
        return
    oft(config, model) if config.finetuning_type == "oft" else lora(config, model)


def targets(config: Config, model: PreTrainedModel) -> str | list[str]:
    """The layers that get an adapter: every linear one except the head, those named, or those a pattern fits; with
    use_llama_pro those of them that lie in the expanded blocks, by their whole names.

    Raises ConfigError when a name fits no layer, or the head, which TRL scores with its own weights.
    """
    knob = (
        "oft_target" if config.finetuning_type == "oft" and config.oft_target != ("all",) else "lora_target"
    )
    asked: tuple[str, ...] = getattr(config, knob)
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    inside = {n for n, m in modules.items() if isinstance(m, torch.nn.Linear) and m is not head}
    if asked != ("all",):
        shown = sorted({n.rsplit(".", 1)[-1] for n in inside})
        if found := list(layer_names.unknown(knob, asked, set(modules), shown)):
            raise ConfigError(found)
        hit = {
            n for n in modules if any(layer_names.fits(name, {n}, alone=len(asked) == 1) for name in asked)
        }
        if any(modules[name] is head for name in hit if head is not None):
            sentence = tr(
                "--{knob} {asked} means the head, too, whose adapter would not be trained; leave it out and train it whole with --additional_target lm_head.",
                knob=knob,
                asked=",".join(asked),
            )
            raise ConfigError([Problem(knob, sentence)])
        inside = hit
    left = frozen_modules(config, model)
    inside = {n for n in inside if not (left and re.fullmatch(left, n))}
    if left and not inside:
        raise ConfigError([_all_frozen(knob, asked)])
    if config.use_llama_pro:
        prefix, count = layers.stack(model)
        blocks = tuple(f"{prefix}.{i}." for i in layers.wanted_layers(config, count))
        return sorted(name for name in inside if name.startswith(blocks))
    if asked == ("all",):
        return "all-linear"
    return asked[0] if len(asked) == 1 and layer_names.PATTERN.search(asked[0]) else list(asked)


def _all_frozen(knob: str, asked: tuple[str, ...]) -> Problem:
    sentence = tr(
        "--{knob} {asked} means layers of parts that are left as they are, and so nothing would be trained; set --freeze_vision_tower, --freeze_multi_modal_projector or --freeze_language_model False.",
        knob=knob,
        asked=",".join(asked),
    )
    return Problem(knob, sentence, {"freeze_language_model": False})


def keep_only_adapter_dropout(model: torch.nn.Module) -> None:
    """Silence every dropout but that of the adapter in training.

    Log-probabilities are compared with a reference's, so noise of the base model would only hide the difference;
    lora_dropout is what the config asked for and stays.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.endswith("lora_dropout.default"):
            module.p = 0.0
