"""Before a GPU is used: what would stop this run on this machine.

Everything here is known without torch, in well under a second, so that the form can ask at every change.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tuner import hardware, tensors
from tuner.config import layer_names, libraries
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.config.models import adapter_refusal, needs_remote_code
from tuner.config.settings import settings
from tuner.config.spelling import asks_for_fsdp
from tuner.config.without_effect import unheeded
from tuner.data.catalog import named, pick, pick_eval
from tuner.data.mix import kept_aside
from tuner.data.template_choice import unknown
from tuner.plan import schedule
from tuner.plan.engine import PACKED, refusal
from tuner.plan.facts import all_rows, learnt_rows, model_of, place
from tuner.rewards import registry
from tuner.text.lookup import tr
from tuner.text.message import Message

HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
LIBRARIES = 300 * 2**20
"""Bytes that each of several processes takes with all libraries and no model: 305 to 330 MB measured, without what they
share."""
LEGACY = ("qwen", "internlm2")


def problems(config: Config) -> list[Problem]:
    """All that would stop the run, each in one sentence beside its knob; empty when it can start."""
    return [
        *_settings(),
        *_task(config),
        *_model(config),
        *_adapters(config),
        *_data(config),
        *_probe(config),
        *registry.problems(config),
        *_engine(config),
        *_rewarded(config),
        *_machine(config),
        *libraries.missing(config),
        *_files(config),
        *_output(config),
    ]


def model_problems(config: Config) -> list[Problem]:
    """What stands against loading the model alone, for runs that use one and do not train."""
    return [*_model(config), *libraries.missing(config)]


def _settings() -> Iterator[Problem]:
    try:
        settings()
    except ConfigError as error:
        yield from error.problems


def _elsewhere() -> bool:
    """Whether runs live on other machines. A file that is damaged meanwhile must not end a run that has begun."""
    with suppress(ConfigError):
        return settings().elsewhere
    return False


def _task(config: Config) -> Iterator[Problem]:
    if not (config.do_train or config.do_eval or config.do_predict):
        said = tr("The run has nothing to do; set --do_train True, or --do_eval or --do_predict.")
        yield Problem("do_train", said, {"do_train": True})


def _model(config: Config) -> Iterator[Problem]:
    name = config.model_name_or_path
    if not name:
        return
    folder = place(name)
    if not folder.is_dir():
        if not HUB_NAME.match(name) or name.startswith((".", "/", "~")):
            yield Problem(
                "model_name_or_path",
                tr(
                    "--model_name_or_path {name} is no folder here and no hub name; give a folder or owner/name.",
                    name=name,
                ),
            )
        elif os.environ.get("HF_HUB_OFFLINE") == "1" and not _in_hub_cache(name):
            yield Problem(
                "model_name_or_path",
                tr(
                    "--model_name_or_path {name} is not on this machine and the hub is switched off "
                    "(HF_HUB_OFFLINE=1); give a local folder.",
                    name=name,
                ),
            )
        return
    yield from _model_folder(config, folder)


def _model_folder(config: Config, folder: Path) -> Iterator[Problem]:
    name = config.model_name_or_path
    if not (folder / "config.json").is_file():
        yield Problem(
            "model_name_or_path",
            tr("--model_name_or_path {name} holds no config.json; it is not a model.", name=name),
        )
        return
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = said.get("model_type", "")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        yield Problem(
            "model_name_or_path",
            tr("{name}/config.json is not valid JSON; download the model again.", name=name),
        )
        return
    pickled = any(folder.glob("*.bin")) and kind in LEGACY
    if not any(folder.glob("*.safetensors")) and not pickled and not config.train_from_scratch:
        yield Problem(
            "model_name_or_path",
            tr(
                "--model_name_or_path {name} holds no *.safetensors; other weight files can run code and are not read.",
                name=name,
            ),
        )
    if (why := needs_remote_code(folder)) and not config.trust_remote_code:
        yield Problem("trust_remote_code", why)
    if (library := libraries.checkpoint(said.get("quantization_config"))) and not library.there:
        yield library.missing("model_name_or_path")
    yield from layer_names.problems(config, folder, kind)
    yield from _blocks(config, said.get("num_hidden_layers"))
    yield from _rank(config)


def _blocks(config: Config, layers: object) -> Iterator[Problem]:
    asked = config.freeze_trainable_layers
    if config.use_llama_pro and isinstance(layers, int) and (asked < 1 or layers % asked):
        said = tr(
            "--freeze_trainable_layers {asked} does not divide the model's {layers} layers, so it was not expanded by "
            "that many blocks; give the number it was expanded by.",
            asked=asked,
            layers=layers,
        )
        yield Problem("freeze_trainable_layers", said)


def _rank(config: Config) -> Iterator[Problem]:
    """An adapter that cannot fit: its weights, gradients and Adam's two moments are float32."""
    shape = model_of(config).shape
    if shape is None or config.finetuning_type != "lora":
        return
    needed = 16 * shape.lora_parameters(config.lora_rank, config.lora_target)
    there = hardware.whole_memory(config.use_cpu)
    if needed > there and not _elsewhere():
        said = tr(
            "--lora_rank {lora_rank} makes adapters that take {needed:,.0f} GiB to train, and the "
            "device has {there:,.0f} GiB in all; 8 to 64 is usual.",
            lora_rank=config.lora_rank,
            needed=needed / hardware.GIB,
            there=there / hardware.GIB,
        )
        yield Problem("lora_rank", said, {"lora_rank": 64})


def _in_hub_cache(name: str) -> bool:
    from tuner.config.models import hub_cache_models

    return name in hub_cache_models()


def _adapters(config: Config) -> Iterator[Problem]:
    for knob in ("adapter_name_or_path", "ref_model_adapters"):
        for name in getattr(config, knob):
            folder = place(name)
            if not folder.is_dir() and HUB_NAME.match(name):
                continue
            folder = folder / (config.adapter_folder or "")
            if not (folder / "adapter_config.json").is_file():
                said = tr(
                    "--{knob} {name} holds no adapter_config.json; give an adapter's folder.",
                    knob=knob,
                    name=name,
                )
                yield Problem(knob, said)
            elif why := adapter_refusal(folder) or unfit_adapter(str(config.model_name_or_path), folder):
                yield Problem(knob, f"--{knob} {name} {why}")


ADAPTER_PART = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def unfit_adapter(model: str, folder: Path) -> str:
    """Why an adapter cannot be put on a model, as the end of a sentence; empty where nothing speaks against it."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        return ""  # said when it is looked for
    try:
        if not tensors.header(weights)[0]:
            return tr(
                "holds no weights ({name} is empty); training from it would start at nothing.",
                name=weights.name,
            )
        parts = tensors.matrices(weights)
    except tensors.BrokenWeights as error:
        return tr("cannot be read: {error}", error=error)
    said, ranks = (
        _rank_of(folder),
        {shape[0] for key, shape in parts.items() if key.endswith(".lora_A.weight")},
    )
    if said is not None and ranks and ranks != {said}:
        found = ", ".join(map(str, sorted(ranks)))
        return tr(
            "says rank {said} in adapter_config.json, but its weights have rank {found}; take a whole copy of it.",
            said=said,
            found=found,
        )
    base = _matrices(place(model))
    for key, shape in parts.items():
        part = ADAPTER_PART.fullmatch(key)
        theirs = base.get(f"{part['module']}.weight") if part else None
        # A rank has nothing to do with the model, the other side is one of the layer's own; some layers lie transposed.
        if part and theirs and (shape[1] if part["side"] == "A" else shape[0]) not in theirs:
            return tr(
                "was trained on another model: its part for {module} is {shape} x {shape_2}, and that layer of"
                " {model} is {theirs} x {theirs_2}; name the model it was trained on.",
                module=part["module"],
                shape=shape[0],
                shape_2=shape[1],
                model=model,
                theirs=theirs[0],
                theirs_2=theirs[1],
            )
    return ""


def _rank_of(folder: Path) -> int | None:
    """The rank that an adapter's description gives all its layers; None where they have their own."""
    with suppress(OSError, ValueError, AttributeError):
        said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        rank = said.get("r")
        return rank if isinstance(rank, int) and not said.get("rank_pattern") else None
    return None


def _matrices(folder: Path) -> dict[str, tuple[int, int]]:
    """The matrices of a model's folder; none where it is not on this machine or cannot be read."""
    found: dict[str, tuple[int, int]] = {}
    with suppress(tensors.BrokenWeights, OSError):
        for path in folder.glob("*.safetensors"):
            found |= tensors.matrices(path)
    return found


def _data(config: Config) -> Iterator[Problem]:
    for knob, find in (("dataset", pick), ("eval_dataset", pick_eval)):
        try:
            entries = find(config)
        except ConfigError as error:
            yield from (replace(problem, knob=knob) for problem in error.problems)
            return
        for entry in entries:
            try:
                entry.files()
            except ConfigError as error:
                yield from error.problems
                continue
            if said := entry.fits(config.stage):
                yield Problem(knob, said)
    try:
        kept_aside(None if config.streaming else all_rows(config), config.val_size)
    except ConfigError as error:
        yield from error.problems
    rows = learnt_rows(config) if config.dataloader_drop_last and not config.streaming else None
    size = config.per_device_train_batch_size * config.processes
    if rows is not None and rows < size:
        yield no_full_batch(rows, size)
    if found := unknown(config.template):
        yield found


def no_full_batch(rows: int, size: int) -> Problem:
    """What is said where batches that are not full are left out and there is no other."""
    said = tr(
        "--dataloader_drop_last True leaves out a batch that is not full, and the {rows} rows make none of {size}; "
        "set it to False.",
        rows=rows,
        size=size,
    )
    return Problem("dataloader_drop_last", said, {"dataloader_drop_last": False})


def _probe(config: Config) -> Iterator[Problem]:
    if not config.probe:
        return
    try:
        (entry,) = named([config.probe], config.dataset_dir)
        entry.files()
        if entry.media or entry.kind == "text":
            said = tr(
                "--probe {probe} holds no questions; name a set of chats, pairs or marked answers.",
                probe=config.probe,
            )
            yield Problem("probe", said, {"probe": None})
    except ConfigError as error:
        said = tr(
            "{error} Choose another one for --probe, or leave it empty: the run then asks no held-out questions.",
            error=error,
        )
        yield Problem("probe", said, {"probe": None})


def _engine(config: Config) -> Iterator[Problem]:
    """The packed engine, asked for in vain."""
    if config.engine != PACKED or PACKED not in config.kind.engines:  # of no effect elsewhere
        return
    model = model_of(config)
    if why := refusal(config, model.config, model.adapter):
        yield packed_in_vain(why)


def _rewarded(config: Config) -> Iterator[Problem]:
    """A run that learns from rewards: what its batches do not come out even with."""
    if not config.kind.rewarded:
        return
    if config.sharded:
        said = tr(
            "--stage {stage} needs the whole model in each process, which writes answers with it; leave --fsdp and "
            "--deepspeed out.",
            stage=config.stage,
        )
        yield Problem("fsdp", said, {"fsdp": None, "deepspeed": None})
    if config.fp16:
        said = tr(
            "--fp16 True is not for --stage {stage}, whose gradients are not scaled; use --bf16 True, or neither.",
            stage=config.stage,
        )
        yield Problem("fp16", said, {"fp16": False, "bf16": True})
    yield from schedule.problems(config, learnt_rows(config))


def packed_in_vain(why: Message) -> Problem:
    """What is said where only the packed engine will do, and it does not take the run."""
    said = tr("--engine packed does not take this run: {why}", why=why)
    return Problem("engine", said, {"engine": "auto"})


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


def _machine(config: Config) -> Iterator[Problem]:
    """What this machine cannot do. Of a run that goes to a cluster its node says it."""
    if _elsewhere():
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
    if config.fp16 and (config.use_cpu or not hardware.gpus()):
        yield Problem(
            "fp16",
            tr("--fp16 True needs a GPU; set --fp16 False."),
            {"fp16": False},
        )


def _files(config: Config) -> Iterator[Problem]:
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


def notes(config: Config, at_work: bool = False) -> list[str]:
    """What does not stop the run and is not what everybody expects, each in one sentence. Of one that is `at_work` this
    machine is the one that it lives on."""
    return [
        *(_slow_bf16(config) if at_work or not _elsewhere() else ()),
        *_one_of_several(config),
        *_keeps_the_last(config),
        *_experts_left_out(config),
        *unheeded(config),
    ]


def _slow_bf16(config: Config) -> Iterator[str]:
    on_cpu = config.use_cpu or not hardware.gpus()
    if (config.bf16 or config.pure_bf16) and on_cpu and not hardware.cpu_bf16():
        yield (
            tr(
                "--bf16 True is computed here, but slowly: this processor has no bfloat16 of its own, and a step takes "
                "3 to 6 times as long as with --bf16 False."
            )
        )


def _keeps_the_last(config: Config) -> Iterator[str]:
    if config.do_train and config.early_stopping_steps and not config.load_best_model_at_end:
        yield (
            tr(
                "--early_stopping_steps ends the run {early_stopping_steps} measurements after the best one, and the "
                "last weights are kept, which measured worse; --load_best_model_at_end True keeps the best.",
                early_stopping_steps=config.early_stopping_steps,
            )
        )


def _experts_left_out(config: Config) -> Iterator[str]:
    """All linears, to PEFT, are not those of every mixture's experts."""
    everywhere = config.do_train and config.finetuning_type == "lora" and config.lora_target == ("all",)
    shape = model_of(config).shape if everywhere and not config.adapter_name_or_path else None
    if shape is not None and shape.experts is not None and not shape.experts.adapted:
        yield tr(
            "--lora_target all adapts the attention of this mixture of experts and leaves its {number} experts a layer as "
            "they are.",
            number=shape.experts.count,
        )


def _one_of_several(config: Config) -> Iterator[str]:
    cards = () if config.use_cpu else hardware.gpus()
    if len(cards) > 1 and config.processes == 1 and not _elsewhere():
        yield tr(
            "This machine has {number} GPUs and this run takes one; --num_gpus {number} takes all.",
            number=len(cards),
        )


def _output(config: Config) -> Iterator[Problem]:
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
