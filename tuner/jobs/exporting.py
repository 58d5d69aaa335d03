"""Before an export: what stands against it on this machine, and what it will take. No torch, nothing is loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tuner import hardware, tensors
from tuner.config import libraries
from tuner.config.export import QUANTIZED, WRITTEN, ExportConfig, contradictions
from tuner.config.knobs import ConfigError, Problem
from tuner.jobs import checking
from tuner.plan.facts import place
from tuner.tensors import BrokenWeights
from tuner.text.lookup import tr
from tuner.tracking.store import TrackerError

RECORD = "export.json"
"""The file that every export ends with, by which it is told from anybody else's folder."""
BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q6_k": 0.83,
    "q5": 0.72,
    "q4": 0.62,
    "q3": 0.54,
    "q2": 0.40,
}
"""Of one number in each type; for K-quants the largest of its kind in llama-quantize's own list for Llama 3 8B."""
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
LIBRARIES = 600 * 2**20
"""Bytes that a worker takes with all libraries and next to no model: 0.51 GiB measured on Linux, and some room."""
PACE = 60 * 2**20
"""Bytes a second that are read, merged and written: a guess that holds within a factor of two on two cores that others
work on, too (0.87 GB of bf16 merged in 142 s, estimated as 98 s). It is told as about."""
ASKING = 2 * 3 * 24 / (4 * 2**30)
"""Seconds for each byte of a model in float32: three prompts of 24 tokens, twice, read it once a token from memory."""
START = 12.0
"""Seconds to load the libraries."""


@dataclass(frozen=True)
class Estimate:
    """What an export takes: bytes of disk at its worst and in the end, bytes of memory, seconds; 0 where unknown."""

    disk: int = 0
    kept: int = 0
    memory: int = 0
    seconds: float = 0.0


def problems(config: ExportConfig) -> list[Problem]:
    """All that would stop the export, each in one sentence beside its knob."""
    found = [
        *contradictions(config),
        *_model(config),
        *_libraries(config),
        *_target(config),
    ]
    return found or list(_room(config, estimate(config)))


def _model(config: ExportConfig) -> Iterator[Problem]:
    """What stands against the model and its adapters."""
    if config.model_name_or_path:
        yield from checking.of_model(config)
        yield from _quantized(config)
    for name in config.adapter_name_or_path:
        with suppress(ValueError, TrackerError):  # said already
            if (folder := checking.folder_of_adapter(name)) and (why := _scores(config, folder)):
                yield Problem("adapter_name_or_path", f"--adapter_name_or_path {name} {why}")


def _quantized(config: ExportConfig) -> Iterator[Problem]:
    said = _json(place(str(config.model_name_or_path)) / "config.json").get("quantization_config")
    if said and config.export_format != "adapter":
        kind = str(said.get("quant_method", "quantized")) if isinstance(said, dict) else "quantized"
        yield Problem(
            "model_name_or_path",
            tr(
                "--model_name_or_path {model_name_or_path} is quantized ({kind}), and nothing is merged into or made "
                "of rounded weights; name the model of full precision that it was made from.",
                model_name_or_path=config.model_name_or_path,
                kind=kind,
            ),
        )


def _scores(config: ExportConfig, folder: Path) -> str:
    """Why an adapter that scores answers is not merged, as the end of a sentence; empty for one that writes them."""
    kind = _json(folder / (config.adapter_folder or "") / "adapter_config.json").get("task_type", "CAUSAL_LM")
    if config.export_format == "adapter" or kind in ("CAUSAL_LM", None):
        return ""
    return tr(
        "is of a model that scores ({kind}) and does not write; export it with --export_format adapter.",
        kind=kind,
    )


def _libraries(config: ExportConfig) -> Iterator[Problem]:
    """What is not installed, and whose absence would be found after minutes."""
    library = libraries.EXPORTED.get(config.export_format)
    if library and not library.there:
        yield library.missing("export_format")
    if config.export_quantization_bit and not libraries.CHECKPOINTS["gptq"].there:
        yield libraries.CHECKPOINTS["gptq"].missing("export_quantization_bit")
    kind = config.export_outtype
    if config.export_format == "gguf" and kind not in ("auto", *WRITTEN) and quantizer() is None:
        yield Problem(
            "export_outtype",
            tr(
                "--export_outtype {kind} is made by llama.cpp's llama-quantize, which is not here: put it on PATH or name its "
                "folder in LLAMA_CPP, or use q8_0.",
                kind=kind,
            ),
            {"export_outtype": "q8_0"},
        )
    yield from _hub(config)


def _hub(config: ExportConfig) -> Iterator[Problem]:
    if not config.export_hub_model_id:
        return
    named = "--export_hub_model_id"
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Problem(
            "export_hub_model_id",
            tr("{named} uploads, and the hub is switched off (HF_HUB_OFFLINE=1).", named=named),
        )
    elif not os.environ.get("HF_TOKEN"):
        yield Problem(
            "export_hub_model_id",
            tr("{named} needs your token; set HF_TOKEN in the environment.", named=named),
        )


def quantizer() -> Path | None:
    """llama.cpp's llama-quantize: in the folder that LLAMA_CPP names, or on PATH."""
    named = os.environ.get("LLAMA_CPP")
    places = [Path(named), Path(named) / "build" / "bin", Path(named) / "bin"] if named else []
    found = shutil.which("llama-quantize", path=os.pathsep.join(map(str, places))) if places else None
    found = found or shutil.which("llama-quantize")
    return Path(found) if found else None


def target(config: ExportConfig) -> Path:
    """The folder that an export makes."""
    return place(str(config.export_dir))


def _target(config: ExportConfig) -> Iterator[Problem]:
    if not config.export_dir:
        return
    folder, named = target(config), f"--export_dir {config.export_dir}"
    parent = folder.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        yield Problem("export_dir", tr("{named} cannot be written; choose another folder.", named=named))
    elif folder.exists() and not folder.is_dir():
        yield Problem("export_dir", tr("{named} is a file; choose another name.", named=named))
    elif folder.is_dir() and any(folder.iterdir()):
        if not is_ours(folder):
            yield Problem(
                "export_dir",
                tr(
                    "{named} holds files that are no export of the studio; choose another folder.",
                    named=named,
                ),
            )
        elif not config.export_replace:
            said = tr(
                "{named} holds an earlier export; choose another folder, or set --export_replace True.",
                named=named,
            )
            yield Problem("export_dir", said, {"export_replace": True})


def is_ours(folder: Path) -> bool:
    """Whether an export of the studio lies there, which may be replaced when that is asked for."""
    return _json(folder / RECORD).get("made_by") == "tuner"


def estimate(config: ExportConfig) -> Estimate:
    """What an export will take, from the sizes that the model's files tell; nothing where they are not on this machine."""
    if config.export_format == "adapter":
        return Estimate(memory=LIBRARIES, seconds=START)
    sizes = _sizes(place(str(config.model_name_or_path)))
    numbers, read = sum(count for count, _ in sizes), sum(count * width for count, width in sizes)
    if not numbers:
        return Estimate()
    kept = int(numbers * _width(config.export_outtype, read / numbers)) if config.merges else 0
    between = _between(config, numbers, read)
    plain = config.export_format == "gguf" and not config.adapter_name_or_path
    memory = (
        LIBRARIES + read + (0 if plain else 4 * numbers)
    )  # measured: 2.89 GiB for 0.81 in bf16, which makes 3.0
    seconds = START + (read + kept + 2 * between) / PACE + 4 * numbers * ASKING
    return Estimate(kept + between, kept, memory, seconds)


def told(needs: Estimate) -> str:
    """An estimate in words."""
    if not needs.memory:
        return tr("How much room and time it takes is not known before the model is here.")
    room = tr("{size} of disk", size=_size(needs.kept)) + (
        tr(" ({size} while it works)", size=_size(needs.disk)) if needs.disk > needs.kept else ""
    )
    return tr(
        "It will take about {room}, {size} of memory and {seconds:,.0f} s.",
        room=room,
        size=_size(needs.memory),
        seconds=needs.seconds,
    )


def _between(config: ExportConfig, numbers: int, read: int) -> int:
    """Bytes of files that are made on the way and not kept."""
    if config.export_format in QUANTIZED:
        return read
    if config.export_format == "lora_gguf":
        return 4 * numbers
    if config.export_format != "gguf":
        return 0
    quantized = config.export_outtype not in ("auto", *WRITTEN)
    merged = numbers * (2 if config.export_outtype == "bf16" else 4) if config.adapter_name_or_path else 0
    return int(merged + (numbers * 4 if quantized else 0))


def _width(outtype: str, own: float) -> float:
    """Bytes a number takes; `own` are the model's."""
    return own if outtype == "auto" else BYTES.get(outtype) or BYTES.get(outtype[:2]) or own


def _sizes(folder: Path) -> list[tuple[int, int]]:
    """How many numbers each weight of a model has, and the bytes of one."""
    found: list[tuple[int, int]] = []
    for file in sorted(folder.glob("*.safetensors")):
        with suppress(BrokenWeights, OSError):
            for tensor in tensors.header(file)[0].values():
                width = DTYPES.get(tensor["dtype"], 1)
                begin, end = tensor["data_offsets"]
                found.append(((end - begin) // width, width))
    return found


def _room(config: ExportConfig, needs: Estimate) -> Iterator[Problem]:
    free = hardware.usage(_there(target(config))).disk_free
    if needs.disk > free:
        yield Problem(
            "export_dir",
            tr(
                "The export needs {size} of disk, and {size_2} are free there; make room or choose another disk.",
                size=_size(needs.disk),
                size_2=_size(free),
            ),
        )
    memory = psutil.virtual_memory().available
    if needs.memory > memory and config.use_cpu:
        yield Problem(
            "model_name_or_path",
            tr(
                "The export needs {size} of memory, and {size_2} are free; stop what runs beside it, or take "
                "a larger machine.",
                size=_size(needs.memory),
                size_2=_size(memory),
            ),
        )


def _size(size: float) -> str:
    for unit, number in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= number:
            return f"{size / number:,.1f} {unit}"
    return f"{size / 2**10:,.0f} KiB"


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        read = json.loads(path.read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else {}
    return {}


def check(config: ExportConfig) -> None:
    """Raises ConfigError with all that would stop the export."""
    if found := problems(config):
        raise ConfigError(found)
