"""Optimizers that are not transformers' own: LoRA+, Adam-mini, BAdam, Muon, each by its library."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from tuner.config.config import Config
from tuner.config.libraries import SWITCHES, need, optimizer
from tuner.engine.layers import stack

if TYPE_CHECKING:
    from transformers import Trainer


def names(config: Config) -> dict[str, Any]:
    """GaLore and APOLLO in the words of TrainingArguments, which knows them by name. Raises ConfigError."""
    need(optimizer(config.optim), knob="optim")
    if config.use_galore:
        need(SWITCHES["use_galore"], knob="use_galore")
        _resumable("galore_torch.galore_projector", "GaLoreProjector")
        said: dict[str, Any] = {
            "rank": config.galore_rank,
            "update_proj_gap": config.galore_update_interval,
            "scale": config.galore_scale,
            "proj_type": config.galore_proj_type,
        }
        return _named("galore_adamw", said, config.galore_target, config.galore_layerwise)
    if config.use_apollo:
        need(SWITCHES["use_apollo"], knob="use_apollo")
        _resumable("apollo_torch.random_projector", "GradientProjector")
        _resumable("apollo_torch.svd_projector", "GaLoreProjector")
        said = {
            "rank": config.apollo_rank,
            "update_proj_gap": config.apollo_update_interval,
            "scale": config.apollo_scale,
            "proj": config.apollo_proj,
            "proj_type": config.apollo_proj_type,
            "scale_type": config.apollo_scale_type,
            "scale_front": config.apollo_scale_front,
        }
        return _named("apollo_adamw", said, config.apollo_target, config.apollo_layerwise)
    return {}


def _resumable(module: str, name: str) -> None:
    """Let a checkpoint of this optimizer be read with weights_only: its state holds objects of this one class."""
    torch.serialization.add_safe_globals([getattr(importlib.import_module(module), name)])


def _named(name: str, said: dict[str, Any], targets: tuple[str, ...], layerwise: bool) -> dict[str, Any]:
    return {
        "optim": f"{name}_layerwise" if layerwise else name,
        "optim_args": ",".join(f"{k}={v}" for k, v in said.items()),
        "optim_target_modules": "all-linear" if targets == ("all",) else list(targets),
    }


def make(config: Config, trainer: Trainer) -> Optimizer | None:
    """The optimizer a config asks for beyond transformers' names; None leaves it to transformers."""
    if config.loraplus_lr_ratio:
        return _lora_plus(config, trainer)
    if config.use_badam:
        return _badam(config, trainer)
    if config.use_adam_mini:
        return _adam_mini(config, trainer)
    if config.use_muon:
        return _muon(config, trainer)
    return None


def _lora_plus(config: Config, trainer: Trainer) -> Optimizer:
    """LoRA+ (arXiv 2402.12354): the second matrix learns faster by a ratio."""
    from peft.optimizers import create_loraplus_optimizer

    kind, settings = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    return create_loraplus_optimizer(
        trainer.model,
        kind,
        loraplus_lr_ratio=config.loraplus_lr_ratio,
        loraplus_lr_embedding=config.loraplus_lr_embedding,
        loraplus_weight_decay=config.weight_decay,
        **settings,
    )


def _badam(config: Config, trainer: Trainer) -> Optimizer:
    """BAdam (arXiv 2404.02827): Adam on one block of layers at a time."""
    need(SWITCHES["use_badam"], knob="use_badam")
    badam = importlib.import_module("badam")
    base = trainer.create_optimizer()
    weights = list(trainer.model.named_parameters())
    if config.badam_mode == "layer":
        prefix, count = stack(trainer.model)
        return badam.BlockOptimizer(
            base_optimizer=base,
            named_parameters_list=weights,
            block_prefix_list=[[f"{prefix}.{i}."] for i in range(count)],
            switch_block_every=config.badam_switch_interval,
            start_block=config.badam_start_block,
            switch_mode=config.badam_switch_mode,
            verbose=config.badam_verbose,
        )
    return badam.BlockOptimizerRatio(
        param_groups=base.param_groups,
        named_parameters_list=weights,
        update_ratio=config.badam_update_ratio,
        mask_mode=config.badam_mask_mode,
        verbose=config.badam_verbose,
        include_embedding=False,
    )


def _adam_mini(config: Config, trainer: Trainer) -> Optimizer:
    """Adam-mini (arXiv 2406.16793): one learning rate for each block of the Hessian."""
    need(SWITCHES["use_adam_mini"], knob="use_adam_mini")
    shape = trainer.model.config.get_text_config()
    return importlib.import_module("adam_mini").Adam_mini(
        named_parameters=[(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        dim=shape.hidden_size,
        n_heads=shape.num_attention_heads,
        n_kv_heads=getattr(shape, "num_key_value_heads", shape.num_attention_heads),
    )


def _muon(config: Config, trainer: Trainer) -> Optimizer:
    """Muon for the matrices of the layers, AdamW for embeddings, head, norms and biases."""
    model = trainer.model
    ends = {
        id(e.weight) for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None
    }
    matrices, others = _parted(model.parameters(), lambda w: w.ndim == 2 and id(w) not in ends)
    return CombinedOptimizer(
        torch.optim.Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        AdamW(
            others,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=0.0,
        ),
    )


def _parted(
    weights: Iterable[nn.Parameter], first: Callable[[nn.Parameter], bool]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    trained = [w for w in weights if w.requires_grad]
    return [w for w in trained if first(w)], [w for w in trained if not first(w)]


class CombinedOptimizer(Optimizer):
    """Two optimizers, each with its own weights, stepped as one; schedules see all their groups."""

    def __init__(self, *parts: Optimizer):
        self.parts = parts
        self.defaults: dict[str, Any] = {}
        self._optimizer_step_pre_hooks: dict[int, Any] = {}
        self._optimizer_step_post_hooks: dict[int, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        return {weight: kept for part in self.parts for weight, kept in part.state.items()}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, kept in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(kept)
