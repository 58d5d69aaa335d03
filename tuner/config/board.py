"""Files of LLaMA-Factory that are no training YAML: its board's saved arguments, and what its other verbs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tuner.config.kinds import KINDS, PREFERENCES, REWARDED
from tuner.config.knobs import ConfigError, Problem
from tuner.config.models import known_models
from tuner.text.lookup import tr

Values = Mapping[str, Any]

STAGES = {kind.board: name for name, kind in KINDS.items() if kind.board}
# What the board calls otherwise than its own flags; every other `train.x` is the flag x.
NAMES = {
    "batch_size": "per_device_train_batch_size",
    "neftune_alpha": "neftune_noise_alpha",
    "use_pissa": "pissa_init",
    "training_stage": "stage",
}
# Fields that count only under a choice made elsewhere in the form, by what their names begin with.
ONLY_WITH = {
    "freeze_trainable": ("finetuning_type", "freeze"),
    "freeze_extra": ("finetuning_type", "freeze"),
    "lora": ("finetuning_type", "lora"),
    "create_new_adapter": ("finetuning_type", "lora"),
    "use_rslora": ("finetuning_type", "lora"),
    "use_dora": ("finetuning_type", "lora"),
    "use_pissa": ("finetuning_type", "lora"),
    "additional_target": ("finetuning_type", "lora"),
    "pref_": ("stage", PREFERENCES),
    "galore_": ("use_galore", True),
    "apollo_": ("use_apollo", True),
    "badam_": ("use_badam", True),
    "swanlab_": ("use_swanlab", True),
    "ppo_": ("stage", REWARDED),
    "reward_model": ("stage", REWARDED),
}
# Not of the run: the page's own state, and what is for videos and trackers that are not asked for.
APART = (
    "extra_args", "compute_type", "ds_stage", "ds_offload", "output_dir", "config_path", "project", "trackio_space_id",
    "hub_private_repo", "video_max_pixels", "video_min_pixels",
)  # fmt: skip


def is_board(values: Values) -> bool:
    """Whether values are the saved arguments of the board: its fields are named `top.x` and `train.x`."""
    return "top.model_name" in values or "train.training_stage" in values


def from_board(values: Values) -> dict[str, Any]:
    """The knobs that the board would have set from its saved arguments.

    It sets trust_remote_code for every run; here that stays for a person to say. Raises ConfigError.
    """
    top = {k.removeprefix("top."): v for k, v in values.items() if k.startswith("top.")}
    train = {k.removeprefix("train."): v for k, v in values.items() if k.startswith("train.")}
    knobs: dict[str, Any] = {
        "stage": STAGES.get(str(train.get("training_stage")), train.get("training_stage")),
        "do_train": True,
        "model_name_or_path": _model(top),
        "finetuning_type": top.get("finetuning_type", "lora"),
        "template": top.get("template"),
        "plot_loss": True,
        **_top(top),
    }
    knobs |= {
        name: train[name]
        for name in ("use_galore", "use_apollo", "use_badam", "use_swanlab")
        if name in train
    }
    for name, value in train.items():
        if name not in APART and name != "training_stage" and _counts(name, knobs):
            knobs[NAMES.get(name, name)] = value or None if value == 0 and name in _EMPTY_AT_ZERO else value
    return _plain(knobs | _derived(train, knobs) | _rewarded(top, train, knobs) | _extra(train))


_EMPTY_AT_ZERO = ("neftune_alpha", "loraplus_lr_ratio", "val_size")


def _counts(name: str, knobs: Values) -> bool:
    for begin, (knob, wanted) in ONLY_WITH.items():
        if name.startswith(begin):
            return knobs.get(knob) in (wanted if isinstance(wanted, tuple) else (wanted,))
    return True


def _model(top: Values) -> Any:
    """The hub name of a model that the board lists by a name of its own; that name where it is not known here."""
    if top.get("model_path"):
        return top["model_path"]
    said = str(top.get("model_name") or "")
    found = [m.hub_id for m in known_models() if _alike(m.name) == _alike(said)]
    return found[0] if len(found) == 1 else said or None


def _alike(name: str) -> str:
    return name.lower().replace("_", ".").removeprefix("meta-")


def _top(top: Values) -> dict[str, Any]:
    knobs: dict[str, Any] = {}
    if str(top.get("quantization_bit", "none")) != "none":
        knobs["quantization_bit"] = int(top["quantization_bit"])
        knobs["quantization_method"] = top.get("quantization_method", "bnb")
    if str(top.get("rope_scaling", "none")) != "none":
        knobs["rope_scaling"] = top["rope_scaling"]
    booster: dict[str, dict[str, Any]] = {
        "flashattn2": {"flash_attn": "fa2"},
        "liger_kernel": {"enable_liger_kernel": True},
        "unsloth": {"use_unsloth": True},
    }
    knobs.update(booster.get(str(top.get("booster")), {}))
    if top.get("checkpoint_path"):
        chosen = top["checkpoint_path"]
        names = [chosen] if isinstance(chosen, str) else list(chosen)
        folders = [_saved(top, name) for name in names]
        knobs |= (
            {"adapter_name_or_path": folders}
            if top.get("finetuning_type", "lora") in ("lora", "oft")
            else {"model_name_or_path": folders[-1]}
        )
    return knobs


def _saved(top: Values, name: str) -> str:
    """Where the board keeps what a run of a model made."""
    return f"saves/{top.get('model_name')}/{top.get('finetuning_type', 'lora')}/{name}"


def _rewarded(top: Values, train: Values, knobs: Values) -> dict[str, Any]:
    """What it sets for PPO, fields or not: the reward model by its folder, and how answers are drawn."""
    if knobs.get("stage") not in REWARDED:
        return {}
    chosen = train.get("reward_model") or []
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    kind = "lora" if top.get("finetuning_type", "lora") == "lora" else "full"
    found = {"reward_model": ",".join(_saved(top, name) for name in names), "reward_model_type": kind}
    return found | {"top_k": 0, "top_p": 0.9}


def _derived(train: Values, knobs: Values) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kind = train.get("compute_type")
    if kind in ("bf16", "fp16", "pure_bf16"):
        found[kind] = True
    if train.get("neat_packing"):
        found["packing"] = True
    if train.get("use_pissa") and knobs.get("finetuning_type") == "lora":
        found["pissa_convert"] = True
    if float(train.get("val_size") or 0) > 1e-6 and knobs.get("stage") not in REWARDED:
        found |= {"eval_strategy": "steps", "eval_steps": train.get("save_steps", 100)}
        found["per_device_eval_batch_size"] = train.get("batch_size", 2)
    if str(train.get("ds_stage", "none")) != "none":
        stage, offload = train["ds_stage"], "_offload" if train.get("ds_offload") else ""
        found["deepspeed"] = f"ds_z{stage}{offload}_config.json"
    return found


def _extra(train: Values) -> dict[str, Any]:
    try:
        extra = json.loads(train.get("extra_args") or "{}")
    except ValueError as error:
        sentence = tr("train.extra_args of the board's file is not JSON: {error}.", error=error)
        raise ConfigError([Problem("", sentence)]) from error
    return extra if isinstance(extra, dict) else {}


def _plain(knobs: Values) -> dict[str, Any]:
    """Without what says nothing, so that each stays at its default."""
    return {k: v for k, v in knobs.items() if v not in (None, "", [])}


# --- files of other verbs ------------------------------------------------------------------------------------------------


def other_verb(values: Values) -> str:
    """What a file is for when it is for another verb of LLaMA-Factory than train, in a sentence; empty for a training file."""
    if {"stage", "do_train", "dataset", "eval_dataset", "do_predict", "do_eval"} & set(values):
        return ""
    if values.get("export_dir"):
        return tr("it exports a model (`llamafactory-cli export`); `tuner export` takes it as it is.")
    if "task" in values:
        return tr(
            "it asks for a benchmark (`llamafactory-cli eval`); `tuner evaluate` measures on a --dataset, or on lm-eval's with "
            "--tasks."
        )
    if "infer_backend" in values or {"model_name_or_path", "template"} <= set(values):
        return tr(
            "it is for talking to a model (`llamafactory-cli chat`, `webchat` or `api`); `tuner chat` and `tuner api` take it as "
            "it is."
        )
    return ""
