"""`tuner train` under torchrun, accelerate or LLaMA-Factory's variables: one run with as many processes as were asked for.

A launcher starts the command once for each process. The first makes the run, which starts its own processes; the others
have nothing to do and end at once, which launchers take for a good end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from tuner import hardware
from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr

YES = ("1", "true", "y", "yes", "on")
FSDP = {
    "version": "FSDP_VERSION",
    "reshard_after_forward": "FSDP_RESHARD_AFTER_FORWARD",
    "auto_wrap_policy": "FSDP_AUTO_WRAP_POLICY",
    "transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP",
    "min_num_params": "FSDP_MIN_NUM_PARAMS",
    "state_dict_type": "FSDP_STATE_DICT_TYPE",
    "cpu_offload": "FSDP_OFFLOAD_PARAMS",
    "cpu_ram_efficient_loading": "FSDP_CPU_RAM_EFFICIENT_LOADING",
    "activation_checkpointing": "FSDP_ACTIVATION_CHECKPOINTING",
}
"""transformers' words for what a file of accelerate says, and the variable by which `accelerate launch` hands it on."""


def spare() -> bool:
    """Whether a launcher started this process as another than the first."""
    return _number("WORLD_SIZE") > 1 and (os.environ.get("RANK") or "0") != "0"


def asked() -> dict[str, Any]:
    """The knobs that the environment of this process asks for. Raises ConfigError for what cannot be had here."""
    if max(_number("NNODES"), _number("GROUP_WORLD_SIZE")) > 1 or 1 < _number("LOCAL_WORLD_SIZE") < _number(
        "WORLD_SIZE"
    ):
        said = tr(
            "The environment (NNODES, WORLD_SIZE) asks for several machines, and a run has its processes on one; "
            "start it on one machine, with NNODES=1."
        )
        raise ConfigError([Problem("nproc_per_node", said)])
    return dict(_knobs(os.environ))


def _knobs(said: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    if count := _processes():
        yield "nproc_per_node", count
    if _yes("ACCELERATE_USE_CPU"):
        yield "use_cpu", True
    if (precision := said.get("ACCELERATE_MIXED_PRECISION", "no")) in ("bf16", "fp16"):
        yield precision, True
    if _yes("ACCELERATE_USE_FSDP"):
        yield "fsdp", "true"
        yield "fsdp_config", {name: said[variable] for name, variable in FSDP.items() if said.get(variable)}
    if _yes("ACCELERATE_USE_DEEPSPEED"):
        yield "deepspeed", said.get("ACCELERATE_DEEPSPEED_CONFIG_FILE") or _zero(said)


def _processes() -> int:
    """How many are asked for; 0 where nothing asks for several, or for one explicitly. Raises ConfigError."""
    if (world := _number("WORLD_SIZE")) > 1:
        return world
    named = os.environ.get("NPROC_PER_NODE", "").strip().lower()
    if named in ("gpu", "auto") or (not named and _yes("FORCE_TORCHRUN")):
        return max(1, len(hardware.gpus()))
    if named and not (named.isdigit() and int(named)):
        said = tr(
            "NPROC_PER_NODE in the environment is {named!r}; set it to a number from 1 on, to gpu or to auto.",
            named=named,
        )
        raise ConfigError([Problem("nproc_per_node", said)])
    return int(named or 0)


def _zero(said: Mapping[str, str]) -> dict[str, Any]:
    """A DeepSpeed file as short as accelerate's questions about it; transformers fills in what is auto."""
    return {
        "zero_optimization": {"stage": int(said.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") or 2)},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
    }


def _yes(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in YES


def _number(name: str) -> int:
    """A count in the environment; 0 where there is none (NNODES may be a range, as 1:4: the least counts)."""
    text = os.environ.get(name, "").split(":")[0].strip()
    return int(text) if text.isdigit() else 0
