"""Before a GPU is used: what would stop this run on this machine, and what it amounts to.

Everything here is known without torch, in well under a second, so that the form can ask at every change.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from tuner import hardware, paths, tensors
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem, nearest
from tuner.config.models import needs_remote_code
from tuner.data.catalog import Entry, pick, pick_eval
from tuner.data.mix import kept_aside
from tuner.data.pages import Pages
from tuner.data.templates import names
from tuner.estimate import Lengths, Memory, ModelShape, run_memory

HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
LEGACY = ("qwen", "internlm2")
BYTES_PER_TOKEN = 5
"""Of a row in a file, its keys and quotes included: 5.3 on chats in English, 4.9 on alpaca's instructions."""


def problems(config: Config) -> list[Problem]:
    """All that would stop the run, each in one sentence beside its knob; empty when it can start."""
    return [
        *_task(config),
        *_model(config),
        *_adapters(config),
        *_data(config),
        *_machine(config),
        *_output(config),
    ]


def _task(config: Config) -> Iterator[Problem]:
    if not (config.do_train or config.do_eval or config.do_predict):
        said = "The run has nothing to do; set --do_train True, or --do_eval or --do_predict."
        yield Problem("do_train", said, {"do_train": True})


def _folder(text: str) -> Path:
    path = Path(text).expanduser()
    return path if path.is_absolute() else paths.home() / path


def _model(config: Config) -> Iterator[Problem]:
    name = config.model_name_or_path
    if not name:
        return
    folder = _folder(name)
    if not folder.is_dir():
        if not HUB_NAME.match(name) or name.startswith((".", "/", "~")):
            yield Problem(
                "model_name_or_path",
                f"--model_name_or_path {name} is no folder here and no hub name; give a folder or owner/name.",
            )
        elif os.environ.get("HF_HUB_OFFLINE") == "1" and not _in_hub_cache(name):
            yield Problem(
                "model_name_or_path",
                f"--model_name_or_path {name} is not on this machine and the hub is switched off "
                "(HF_HUB_OFFLINE=1); give a local folder.",
            )
        return
    yield from _model_folder(config, folder)


def _model_folder(config: Config, folder: Path) -> Iterator[Problem]:
    name = config.model_name_or_path
    if not (folder / "config.json").is_file():
        yield Problem(
            "model_name_or_path", f"--model_name_or_path {name} holds no config.json; it is not a model."
        )
        return
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        yield Problem(
            "model_name_or_path", f"{name}/config.json is not valid JSON; download the model again."
        )
        return
    pickled = any(folder.glob("*.bin")) and kind in LEGACY
    if not any(folder.glob("*.safetensors")) and not pickled and not config.train_from_scratch:
        yield Problem(
            "model_name_or_path",
            f"--model_name_or_path {name} holds no *.safetensors; other weight files can run code and are not read.",
        )
    if (said := needs_remote_code(folder)) and not config.trust_remote_code:
        yield Problem("trust_remote_code", said)


def _in_hub_cache(name: str) -> bool:
    from tuner.config.models import hub_cache_models

    return name in hub_cache_models()


def _adapters(config: Config) -> Iterator[Problem]:
    for name in config.adapter_name_or_path:
        folder = _folder(name)
        local = folder.is_dir() or not HUB_NAME.match(name)
        if local and not (folder / "adapter_config.json").is_file():
            yield Problem(
                "adapter_name_or_path",
                f"--adapter_name_or_path {name} holds no adapter_config.json; give an adapter's folder.",
            )
        elif local and (said := _unfit_adapter(config, folder)):
            yield Problem("adapter_name_or_path", f"--adapter_name_or_path {name} {said}")


ADAPTER_PART = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def _unfit_adapter(config: Config, folder: Path) -> str:
    """Why an adapter cannot be put on the model, as the end of a sentence; empty where nothing speaks against it."""
    folder = folder / (config.adapter_folder or "")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        return ""  # said when it is looked for
    try:
        if not tensors.header(weights)[0]:
            return f"holds no weights ({weights.name} is empty); training from it would start at nothing."
        parts = tensors.matrices(weights)
    except tensors.BrokenWeights as error:
        return f"cannot be read: {error}"
    said, ranks = (
        _rank_of(folder),
        {shape[0] for key, shape in parts.items() if key.endswith(".lora_A.weight")},
    )
    if said is not None and ranks and ranks != {said}:
        found = ", ".join(map(str, sorted(ranks)))
        return f"says rank {said} in adapter_config.json, but its weights have rank {found}; take a whole copy of it."
    base = _matrices(_folder(str(config.model_name_or_path)))
    for key, shape in parts.items():
        part = ADAPTER_PART.fullmatch(key)
        theirs = base.get(f"{part['module']}.weight") if part else None
        # A rank has nothing to do with the model, the other side is one of the layer's own; some layers lie transposed.
        if part and theirs and (shape[1] if part["side"] == "A" else shape[0]) not in theirs:
            return (
                f"was trained on another model: its part for {part['module']} is {shape[0]} x {shape[1]}, and that layer of"
                f" {config.model_name_or_path} is {theirs[0]} x {theirs[1]}; name the model it was trained on."
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
        kept_aside(None if config.streaming else _all_rows(config), config.val_size)
    except ConfigError as error:
        yield from error.problems
    if config.template is not None and config.template not in names():
        like = nearest(config.template, names()) or "chatml"
        said = f"--template {config.template} is not known; did you mean {like}?"
        yield Problem("template", said, {"template": like})


def _machine(config: Config) -> Iterator[Problem]:
    if config.bf16 and not hardware.bf16(config.use_cpu):
        cards = [g for g in hardware.gpus() if not g.bf16]
        where = cards[0].name if cards and not config.use_cpu else "this processor"
        remedy = {"bf16": False, "fp16": True} if cards else {"bf16": False}
        words = "set --bf16 False --fp16 True" if cards else "set --bf16 False"
        yield Problem(
            "bf16", f"--bf16 True does not work on {where}, which has no bfloat16; {words}.", remedy
        )
    if config.fp16 and (config.use_cpu or not hardware.gpus()):
        yield Problem(
            "fp16",
            "--fp16 True needs a GPU; set --fp16 False, or --bf16 True where the processor has it.",
            {"fp16": False},
        )


def _output(config: Config) -> Iterator[Problem]:
    if not config.output_dir:
        return
    folder = _folder(config.output_dir)
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        yield Problem(
            "output_dir", f"--output_dir {config.output_dir} cannot be written; choose another folder."
        )
    free = hardware.usage(folder).disk_free
    if free < hardware.GIB // 4:
        yield Problem("output_dir", f"Only {free / 2**20:.0f} MiB of disk are free there; make room first.")


# --- the run's card ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """What a config amounts to. `rows` and `steps` are None where a set's size is not known yet, `memory` (of one
    device, bytes) where the model's or the set's is not."""

    rows: int | None
    steps: int | None
    examples_per_step: int
    devices: int
    saves: int | None
    memory: Memory | None
    memory_free: int


def card(config: Config) -> Card:
    """Rows, optimizer steps and checkpoints that follow from a config. Rows are those of the files, before any is
    dropped; the data report has the exact count."""
    devices = max(1, len(hardware.gpus())) if not config.use_cpu else 1
    rows = _rows(config)
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * devices
    steps = _steps(config, rows, devices)
    saves = None
    if steps and config.save_strategy == "steps":
        every = config.save_steps if config.save_steps >= 1 else max(1, math.ceil(steps * config.save_steps))
        saves = int(steps // every)
    free, on_gpu = hardware.free_memory(config.use_cpu)
    return Card(
        rows=rows,
        steps=steps,
        examples_per_step=per_step,
        devices=devices,
        saves=saves,
        memory=memory(config, free if on_gpu else 0),
        memory_free=free,
    )


def memory(config: Config, free: int) -> Memory | None:
    """What the run will hold on a device that has `free` bytes (0 for a CPU); None where a size is not known."""
    shape, lengths = _shape(config), _lengths(config)
    return run_memory(config, shape, lengths, free) if shape and lengths else None


def _shape(config: Config) -> ModelShape | None:
    name = str(config.model_name_or_path)
    folder = _folder(name)
    try:
        if not folder.is_dir():
            from huggingface_hub import try_to_load_from_cache

            folder = Path(str(try_to_load_from_cache(name, "config.json"))).parent
        return ModelShape.from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def _lengths(config: Config) -> Lengths | None:
    try:
        files = [f for entry in pick(config) for f in entry.files()]
        found = [s for f in files if len(s := _counted(str(f), f.stat().st_mtime_ns).sizes())]
    except (ConfigError, OSError):
        return None
    if not found:
        return None
    tokens = np.concatenate(found) / BYTES_PER_TOKEN
    return Lengths(float(tokens.mean()), float(tokens.std()), int(tokens.max()))


def _rows(config: Config) -> int | None:
    """The rows that are learnt from."""
    total = _all_rows(config)
    try:
        return total - kept_aside(total, config.val_size) if total is not None else None
    except ConfigError:
        return None


def _all_rows(config: Config) -> int | None:
    """The rows that are read, those kept aside included."""
    try:
        entries = pick(config)
    except ConfigError:
        return None
    counts = [_entry_rows(entry) for entry in entries]
    if not config.streaming:
        counts = [
            entry.num_samples if n and entry.num_samples else n
            for entry, n in zip(entries, counts, strict=True)
        ]
    if not counts or None in counts:
        return None
    limit = config.max_samples or math.inf
    return int(sum(min(c, limit) for c in counts if c is not None))


def _entry_rows(entry: Entry) -> int | None:
    try:
        files = entry.files()
        known = [_counted(str(f), f.stat().st_mtime_ns) for f in files]
    except (ConfigError, OSError):
        return None
    counts = [pages.rows for pages in known]
    return sum(c for c in counts if c is not None) if counts and None not in counts else None


@lru_cache(maxsize=64)
def _counted(file: str, changed: int) -> Pages:
    """A file's index; it counts in the background, and small files are counted before anybody looks."""
    pages = Pages(Path(file))
    until = time.monotonic() + 0.2
    while pages.rows is None and time.monotonic() < until:
        time.sleep(0.005)
    return pages


def _steps(config: Config, rows: int | None, devices: int) -> int | None:
    """Optimizer steps as transformers' Trainer counts them: whole accumulations an epoch, rounded up."""
    if config.max_steps > 0:
        return int(config.max_steps)
    if rows is None:
        return None
    batches = math.ceil(rows / (config.per_device_train_batch_size * devices))
    a_epoch = max(1, math.ceil(batches / config.gradient_accumulation_steps))
    return int(math.ceil(a_epoch * config.num_train_epochs))
