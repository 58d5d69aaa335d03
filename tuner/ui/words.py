"""Numbers, times and states as the studio says them: one format everywhere, always with a unit."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tuner import paths
from tuner.config.config import KNOBS
from tuner.config.kinds import KINDS, trains
from tuner.config.spelling import word
from tuner.runs.status import Status
from tuner.text.lookup import ended, mark, tr, trn
from tuner.text.message import term
from tuner.tracking.duration_estimate import ASKING, answered

NONE = "–"
Colour = Literal["red", "orange", "yellow", "blue", "green", "violet", "gray", "primary"]


def number(value: float | None) -> str:
    """Four figures, as typed in a shell: 0.6931, 5e-05, 12,345."""
    if value is None:
        return NONE
    if math.isnan(value) or math.isinf(value):
        return tr("not a number") if math.isnan(value) else "infinite"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def count(value: int | None, noun: str = "", plural: str = "") -> str:
    """A whole number with what it counts: 1 row, 12,345 rows, 3 queries."""
    if value is None:
        return trn(f"{{count}} {noun}", f"{{count}} {plural or noun + 's'}", 1, count=NONE) if noun else NONE
    if not noun:
        return f"{value:,}"
    return trn(f"{{count}} {noun}", f"{{count}} {plural or noun + 's'}", value, count=f"{value:,}")


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
        return tr("{seconds:.1f} s", seconds=max(0.0, seconds))
    whole = round(seconds)
    if whole < 60:
        return tr("{whole} s", whole=whole)
    if whole < 3600:
        return tr("{minutes} min {seconds:02d} s", minutes=whole // 60, seconds=whole % 60)
    if whole < 86400:
        return tr("{hours} h {minutes:02d} min", hours=whole // 3600, minutes=whole % 3600 // 60)
    return tr("{days} d {hours} h", days=whole // 86400, hours=whole % 86400 // 3600)


def ago(moment: float, now: float | None = None) -> str:
    """How long since a moment, in seconds since the epoch, in one unit."""
    if not moment:
        return NONE
    passed = max(0.0, (now or time.time()) - moment)
    if passed >= 86400:
        return tr("{days:.0f} d ago", days=passed // 86400)
    if passed >= 3600:
        return tr("{hours:.0f} h ago", hours=passed // 3600)
    return tr("{minutes:.0f} min ago", minutes=passed // 60) if passed >= 60 else tr("just now")


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
    return ", ".join(
        filter(
            None,
            (emptied and tr("Empty {emptied}", emptied=emptied), given and tr("Set {given}", given=given)),
        )
    )


def listed(names: Iterable[str], most: int = 3) -> str:
    """A few names and how many more there are: a, b, c and 4 more."""
    every = list(names)
    text = ", ".join(every[:most])
    return (
        tr("{text} and {number} more", text=text, number=len(every) - most)
        if len(every) > most
        else text or NONE
    )


def stage(name: str) -> str:
    """What a kind of run is called; the name itself of one that another studio knows."""
    return tr(KINDS[name].label) if name in KINDS else name


@dataclass(frozen=True)
class Look:
    """How a state is shown: a word, a colour and an icon, so that colour is never alone."""

    word: str
    colour: Colour
    icon: str


STATES: dict[str, Look] = {
    "queued": Look(mark("Queued"), "gray", ":material/schedule:"),
    "preparing": Look(mark("Preparing"), "blue", ":material/hourglass_top:"),
    "running": Look(mark("Running"), "primary", ":material/play_circle:"),
    "stopping": Look(mark("Stopping"), "orange", ":material/pause_circle:"),
    "finished": Look(mark("Finished"), "green", ":material/check_circle:"),
    "failed": Look(mark("Failed"), "red", ":material/error:"),
    "stopped": Look(mark("Stopped"), "gray", ":material/stop_circle:"),
    "interrupted": Look(mark("Interrupted"), "orange", ":material/power_off:"),
}


def look(state: str) -> Look:
    seen = STATES.get(state, Look(state.capitalize() or mark("Unknown"), "gray", ":material/help:"))
    return replace(seen, word=tr(seen.word))


def sentence(status: Status, place: int | None = None) -> str:
    """Where a run stands, in one sentence. `place` is its place in the queue, from 1."""
    state = status.state
    if state == "queued":
        return (
            tr("Waiting for its turn.")
            if not place
            else tr("Waiting in the queue, number {place}.", place=place)
        )
    if state == "preparing":
        return (
            tr("Preparing: {phase}.", phase=term("phase", status.phase))
            if status.phase
            else tr("Preparing: the worker is starting.")
        )
    if state == "running":
        return _at_work(status)
    if state == "stopping":
        return tr("Stopping: it saves a checkpoint first, so nothing is lost.")
    took = duration(status.elapsed) if status.elapsed else ""
    if state == "finished":
        return tr("Finished after {took}.", took=took) if took else tr("Finished.")
    said = status.reason or tr("{word}. See the end of the log.", word=look(state).word)
    return ended(said)


def _at_work(status: Status) -> str:
    steps = {"step": count(status.step), "total_steps": count(status.total_steps)}
    asking = status.phase == ASKING
    told = answered(status)[1] if asking else ""
    if asking:
        doing = (
            tr("Answering held-out questions, {told}", told=told)
            if told
            else tr("Answering held-out questions")
        )
    else:
        doing = term("phase", status.phase or "training").capitalize()
    if not status.total_steps:
        return tr("{doing}.", doing=doing)
    if asking:
        return tr("{doing}, at step {step} of {total_steps}.", doing=doing, **steps)
    return tr("{doing}, step {step} of {total_steps}.", doing=doing, **steps)


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
    "pissa": "PiSSA",
    "oft": "OFT",
    "dft": "DFT",
    "asft": "ASFT",
    "eaft": "EAFT",
    "galore": "GaLore",
    "apollo": "APOLLO",
    "badam": "BAdam",
    "muon": "Muon",
    "liger": "Liger",
    "neftune": "NEFTune",
    "loraplus": "LoRA+",
    "bco": "BCO",
    "tf32": "TF32",
    "fsdp": "FSDP",
    "cpu": "CPU",
    "kv": "KV",
    "moe": "MoE",
    "rope": "RoPE",
    "nan": "NaN",
    "jit": "JIT",
    "url": "URL",
}
_LABELS = {
    "model_name_or_path": mark("Model"),
    "adapter_name_or_path": "Adapters to start from",
    "finetuning_type": mark("Method"),
    "num_train_epochs": mark("Epochs"),
    "per_device_train_batch_size": "Batch size per device",
    "val_size": "Validation size",
    "dataset": "Data sets",
    "dataset_dir": "Dataset folder",
    "pref_ftx": "SFT loss weight (pref_ftx)",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": mark("8-bit products (fp8)"),
    "do_train": mark("Train"),
    "do_eval": mark("Evaluate"),
    "do_predict": mark("Predict"),
    "trust_remote_code": "Trust remote code",
    "use_rslora": "rsLoRA",
    "use_dora": "DoRA",
    "num_gpus": "Number of GPUs",
    "nproc_per_node": "Number of processes",
    "eval_on_each_dataset": "Evaluate on each data set",
    "eval_dataset": "Data sets to evaluate on",
    "reward_funcs": mark("Rewards"),
    "num_generations": "Answers to a prompt",
    "beta": "KL weight (beta)",
    "json_schema": "JSON schema",
}


def label(name: str) -> str:
    """A knob's name for the eye: `lora_rank` is LoRA rank. The flag itself stands in the tooltip."""
    return tr(english_label(name))


def english_label(name: str) -> str:
    """A knob's name as the catalogues know it."""
    if name in _LABELS:
        return _LABELS[name]
    parts = [_ACRONYMS.get(part, part) for part in name.split("_")]
    text = " ".join(parts)
    return text[:1].upper() + text[1:]


def staged(name: str) -> str:
    """A stage in words with its short name behind: Fine-tuning (sft)."""
    said = tr(KINDS[name].label) if name in KINDS else name
    return said if name in said.lower() or not trains(name) else tr("{said} ({name})", said=said, name=name)


_FLAG = re.compile(r"--([a-z][a-z0-9_]+)")


def in_form(said: str) -> str:
    """A sentence about flags for who looks at fields: Model is missing."""
    return _FLAG.sub(lambda found: label(found[1]) if found[1] in KNOBS else found[0], said)


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
