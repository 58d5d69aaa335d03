"""What would stop a run before it begins: the machine, and the files and folders that knobs name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from tuner import hardware
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.config.settings import settings
from tuner.config.spelling import asks_for_fsdp
from tuner.plan.facts import place
from tuner.text.lookup import tr

LIBRARIES = 300 * 2**20
"""Bytes that each of several processes takes with all libraries and no model: 305 to 330 MB measured, without what they
share."""
FLOAT8 = (8, 9)
"""The first GPUs that multiply 8-bit floats."""


def elsewhere() -> bool:
    """Whether runs live on other machines. A file that is damaged meanwhile must not end a run that has begun."""
    with suppress(ConfigError):
        return settings().elsewhere
    return False


def machine(config: Config) -> Iterator[Problem]:
    """What this machine cannot do. Of a run that goes to a cluster its node says it."""
    if elsewhere():
        return
    cards = () if config.use_cpu else hardware.gpus()
    if config.num_gpus > 1 and not cards:
        said = tr(
            "--num_gpus {num_gpus} needs as many GPUs, and none is here; processes that share the CPU are asked "
            "for with --nproc_per_node {num_gpus}.",
            num_gpus=config.num_gpus,
        )
        yield Problem("num_gpus", said, {"num_gpus": 1})
    elif cards and config.processes > len(cards):
        knob = "nproc_per_node" if config.nproc_per_node else "num_gpus"
        said = tr(
            "--{knob} {processes} needs as many GPUs, and this machine has {number}.",
            knob=knob,
            processes=config.processes,
            number=len(cards),
        )
        yield Problem(knob, said, {knob: len(cards)})
    elif not cards:
        yield from _shares(config)
    if asks_for_fsdp(config.fsdp) and not cards:
        said = tr(
            "--fsdp {fsdp} spreads a model over GPUs, and this run computes on the CPU, where it would stay whole "
            "in each process; leave it out.",
            fsdp=config.fsdp,
        )
        yield Problem("fsdp", said, {"fsdp": None})
    if (config.bf16 or config.pure_bf16) and (old := [g for g in cards if not g.bf16]):
        name = "bf16" if config.bf16 else "pure_bf16"
        said = tr(
            "--{name} True does not work on {name_2}, which has no bfloat16; set --{name} False --fp16 True, "
            "or --use_cpu True.",
            name=name,
            name_2=old[0].name,
        )
        yield Problem(name, said, {name: False, "fp16": True})
    if config.tf32 and not any(g.capability >= (8, 0) for g in cards):
        yield Problem(
            "tf32", tr("--tf32 True needs a GPU of Ampere (8.0) or later; leave it out."), {"tf32": None}
        )
    if config.fp8 and not any(g.capability >= FLOAT8 for g in cards):
        said = tr("--fp8 True needs a GPU with 8-bit floats (Ada 8.9, Hopper 9.0 or later); leave it out.")
        yield Problem("fp8", said, {"fp8": False})
    if config.fp16 and (config.use_cpu or not hardware.gpus()):
        yield Problem(
            "fp16",
            tr("--fp16 True needs a GPU; set --fp16 False."),
            {"fp16": False},
        )


def _shares(config: Config) -> Iterator[Problem]:
    """More processes on the CPU than the machine's memory holds, even with no model in them."""
    room = hardware.whole_memory(use_cpu=True) // LIBRARIES
    if 1 < config.processes > room:
        said = tr(
            "--nproc_per_node {processes} starts as many processes on this machine's {cpu_count} cores, and its "
            "memory holds {room} of them at the most, before any model is loaded; ask for as many as there are cores.",
            processes=config.processes,
            cpu_count=os.cpu_count(),
            room=room,
        )
        yield Problem("nproc_per_node", said, {"nproc_per_node": max(1, min(room, os.cpu_count() or 1))})


def slow_bf16(config: Config) -> Iterator[str]:
    """A type of numbers that this processor computes without having it."""
    on_cpu = config.use_cpu or not hardware.gpus()
    if (config.bf16 or config.pure_bf16) and on_cpu and not hardware.cpu_bf16():
        yield (
            tr(
                "--bf16 True is computed here, but slowly: this processor has no bfloat16 of its own, and a step takes "
                "3 to 6 times as long as with --bf16 False."
            )
        )


def one_of_several(config: Config) -> Iterator[str]:
    """GPUs that a run leaves alone, for it was not asked to take them."""
    cards = () if config.use_cpu else hardware.gpus()
    if len(cards) > 1 and config.processes == 1 and not elsewhere():
        yield tr(
            "This machine has {number} GPUs and this run takes one; --num_gpus {number} takes all.",
            number=len(cards),
        )


def files(config: Config) -> Iterator[Problem]:
    """Files that knobs name beside model and data."""
    named = str(config.resume_from_checkpoint or "").strip()
    if named.lower() not in ("", "true", "false", "none") and not place(named).is_dir():
        said = tr(
            "--resume_from_checkpoint {named} does not exist; name a checkpoint-N folder, or leave it out.",
            named=named,
        )
        yield Problem("resume_from_checkpoint", said, {"resume_from_checkpoint": None})
    if isinstance(config.deepspeed, str) and not place(config.deepspeed).is_file():
        said = tr(
            "--deepspeed {deepspeed} is no file; give DeepSpeed's JSON file, or leave it out.",
            deepspeed=config.deepspeed,
        )
        yield Problem("deepspeed", said, {"deepspeed": None})


def output(config: Config) -> Iterator[Problem]:
    """The folder that results go to: whether it can be written and has room."""
    if not config.output_dir:
        return
    folder = place(config.output_dir)
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        yield Problem(
            "output_dir",
            tr(
                "--output_dir {output_dir} cannot be written; choose another folder.",
                output_dir=config.output_dir,
            ),
        )
    free = hardware.usage(folder).disk_free
    if free < hardware.GIB // 4:
        yield Problem(
            "output_dir",
            tr("Only {free:.0f} MiB of disk are free there; make room first.", free=free / 2**20),
        )
