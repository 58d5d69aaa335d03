"""Numbers, times and states as the studio says them: one format everywhere, always with a unit."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuner import paths
from tuner.config.config import word
from tuner.config.kinds import KINDS
from tuner.runs.status import Status
from tuner.text.message import term
from tuner.tracking.duration_estimate import ASKING, answered

NONE = "–"
Colour = Literal["red", "orange", "yellow", "blue", "green", "violet", "gray", "primary"]


def number(value: float | None) -> str:
    """Four figures, as typed in a shell: 0.6931, 5e-05, 12,345."""
    if value is None:
        return NONE
    if math.isnan(value) or math.isinf(value):
        return "not a number" if math.isnan(value) else "infinite"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def count(value: int | None, noun: str = "", plural: str = "") -> str:
    """A whole number with what it counts: 1 row, 12,345 rows, 3 queries."""
    if value is None:
        return f"{NONE} {noun}".strip()
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}".strip() if noun else f"{value:,}"


def share(value: float) -> str:
    """A part of a whole: 0.4 is 40%, 0.004 is 0.4%."""
    return f"{value:.0%}" if value >= 0.0995 or value == 0 else f"{value:.1%}"


def size(value: float | None) -> str:
    """Bytes in binary units: 512 B, 1.5 KiB, 23 GiB."""
    if value is None:
        return NONE
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    rank = min(len(units) - 1, int(math.log(value, 1024))) if value >= 1 else 0
    figure = value / 1024**rank
    return f"{figure:.0f} {units[rank]}" if rank == 0 or figure >= 10 else f"{figure:.1f} {units[rank]}"


def duration(seconds: float | None) -> str:
    """A span of time in its two largest units: 0.4 s, 43 s, 2 min 05 s, 1 h 12 min, 3 d 4 h."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(moment: float, now: float | None = None) -> str:
    """How long since a moment, in seconds since the epoch, in one unit."""
    if not moment:
        return NONE
    passed = max(0.0, (now or time.time()) - moment)
    for unit, span in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= span:
            return f"{passed // span:.0f} {unit} ago"
    return "just now"


def date(moment: float) -> str:
    """A moment, in this machine's time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else NONE


def distinct(said: Mapping[str, str], least: int = 4) -> dict[str, str]:
    """Texts of which no two are alike: those that were have the beginning of their key behind them, `least` letters or
    more. For fields, which know their options by what they read."""
    often = Counter(said.values())
    for length in (0, least, 8, 32):
        told = {k: text if often[text] == 1 else f"{text} {k[:length]}".strip() for k, text in said.items()}
        if len(set(told.values())) == len(told):
            return told
    return {k: f"{text} {k}" for k, text in said.items()}


def place(path: str) -> str:
    """A path as it is typed: relative to the studio where it lies inside it."""
    inside = Path(path)
    return str(inside.relative_to(paths.home())) if inside.is_relative_to(paths.home()) else path


def value(anything: object) -> str:
    """A knob's value as it is typed; a dash where it is empty."""
    return word(anything) or NONE


def engine(name: str) -> str:
    """What computes a run, for the eye."""
    return term("computed_by", name) if name else NONE


def mending(values: Mapping[str, Any]) -> str:
    """What a button does that sets knobs: Set Bf16 False, or Empty Probe."""
    emptied = ", ".join(label(name) for name, wanted in values.items() if wanted is None)
    given = ", ".join(f"{label(n)} {value(wanted)}" for n, wanted in values.items() if wanted is not None)
    return ", ".join(filter(None, (emptied and f"Empty {emptied}", given and f"Set {given}")))


def listed(names: Iterable[str], most: int = 3) -> str:
    """A few names and how many more there are: a, b, c and 4 more."""
    every = list(names)
    text = ", ".join(every[:most])
    return f"{text} and {len(every) - most} more" if len(every) > most else text or NONE


STAGES = {name: kind.label for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Look:
    """How a state is shown: a word, a colour and an icon, so that colour is never alone."""

    word: str
    colour: Colour
    icon: str


STATES: dict[str, Look] = {
    "queued": Look("Queued", "gray", ":material/schedule:"),
    "preparing": Look("Preparing", "blue", ":material/hourglass_top:"),
    "running": Look("Running", "primary", ":material/play_circle:"),
    "stopping": Look("Stopping", "orange", ":material/pause_circle:"),
    "finished": Look("Finished", "green", ":material/check_circle:"),
    "failed": Look("Failed", "red", ":material/error:"),
    "stopped": Look("Stopped", "gray", ":material/stop_circle:"),
    "interrupted": Look("Interrupted", "orange", ":material/power_off:"),
}


def look(state: str) -> Look:
    return STATES.get(state, Look(state.capitalize() or "Unknown", "gray", ":material/help:"))


def sentence(status: Status, place: int | None = None) -> str:
    """Where a run stands, in one sentence. `place` is its place in the queue, from 1."""
    state = status.state
    if state == "queued":
        return "Waiting for its turn." if not place else f"Waiting in the queue, number {place}."
    if state == "preparing":
        return (
            f"Preparing: {term('phase', status.phase)}."
            if status.phase
            else "Preparing: the worker is starting."
        )
    if state == "running":
        return _at_work(status)
    if state == "stopping":
        return "Stopping: it saves a checkpoint first, so nothing is lost."
    took = duration(status.elapsed) if status.elapsed else ""
    if state == "finished":
        return f"Finished after {took}." if took else "Finished."
    said = status.reason or f"{look(state).word}; the log's last lines say why."
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _at_work(status: Status) -> str:
    at = f", step {count(status.step)} of {count(status.total_steps)}" if status.total_steps else ""
    if status.phase == ASKING:
        told = answered(status)[1]
        return (
            f"Answering held-out questions{f', {told}' if told else ''}{at.replace(', step', ', at step')}."
        )
    return f"{term('phase', status.phase or 'training').capitalize()}{at}."


_ACRONYMS = {
    "lr": "LR",
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    **{name: name.upper() for name in KINDS},
    "simpo": "SimPO",
    "num": "number of",
    "optim": "optimizer",
    "ftx": "FTX",
    "pref": "preference",
    "ddp": "DDP",
    "hub": "hub",
    "hf": "HF",
    "len": "length",
    "grad": "gradient",
    "max": "max",
    "val": "validation",
    "dir": "folder",
    "attn": "attention",
    "eval": "evaluation",
    "dataset": "data set",
}
_LABELS = {
    "model_name_or_path": "Model",
    "adapter_name_or_path": "Adapters to start from",
    "finetuning_type": "Method",
    "num_train_epochs": "Epochs",
    "per_device_train_batch_size": "Batch size per device",
    "val_size": "Validation size",
    "dataset": "Data sets",
    "dataset_dir": "Catalog folder",
    "bf16": "bf16",
    "fp16": "fp16",
    "do_train": "Train",
    "do_eval": "Evaluate",
    "do_predict": "Predict",
    "trust_remote_code": "Trust remote code",
    "use_rslora": "rsLoRA",
    "use_dora": "DoRA",
    "num_gpus": "Number of GPUs",
    "nproc_per_node": "Number of processes",
    "eval_on_each_dataset": "Evaluate on each data set",
    "eval_dataset": "Data sets to evaluate on",
    "reward_funcs": "Rewards",
    "num_generations": "Answers to a prompt",
    "beta": "KL weight (beta)",
    "json_schema": "JSON schema",
}


def label(name: str) -> str:
    """A knob's name for the eye: `lora_rank` is LoRA rank. The flag itself stands in the tooltip."""
    if name in _LABELS:
        return _LABELS[name]
    parts = [_ACRONYMS.get(part, part) for part in name.split("_")]
    text = " ".join(parts)
    return text[:1].upper() + text[1:]


_MARKS = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~:$&])")


# Markdown makes links of bare addresses even where every sign is escaped; an invisible joiner within keeps them text.
_ADDRESS = re.compile(r"(?i)(https?:)(?=//)|(www)(?=\.)|(@)(?=[-\w])")
JOINER = "\u2060"


def safe(text: object) -> str:
    """Text of unknown origin inside Markdown: shown as it is, never as a heading, a link or a picture."""
    unlinked = _ADDRESS.sub(lambda found: found.group(0) + JOINER, str(text))
    return _MARKS.sub(r"\\\1", unlinked).replace("\n", " ")


def safe_lines(text: object) -> str:
    """The same, its line breaks kept."""
    return "  \n".join(safe(line) for line in str(text).split("\n"))
