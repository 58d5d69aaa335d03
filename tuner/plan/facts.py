"""What a plan is made from beside the config: the machine, the data's rows and lengths, the model's own description."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from tuner import hardware, paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError
from tuner.config.vision import language_config
from tuner.data.catalog import pick
from tuner.data.entries import Entry
from tuner.data.mix import kept_aside
from tuner.data.pages import Pages
from tuner.data.pictures.look import look
from tuner.plan.shape import Lengths, ModelShape

BYTES_PER_TOKEN = 5
"""Of a row in a file, its keys and quotes included: 5.3 on chats in English, 4.9 on alpaca's instructions."""


@dataclass(frozen=True)
class Machine:
    """The device that a run gets: whether it is a GPU, and its free bytes."""

    on_gpu: bool
    free: int


@dataclass(frozen=True)
class Data:
    """The rows that are learnt from, before any is dropped, and how long they are; None where nobody knows yet."""

    rows: int | None = None
    lengths: Lengths | None = None


@dataclass(frozen=True)
class Model:
    """A model's config.json and, for an adapter that is gone on with, its adapter_config.json; empty where unknown."""

    config: Mapping[str, Any]
    adapter: Mapping[str, Any]

    @property
    def shape(self) -> ModelShape | None:
        """The numbers that sizes depend on; None for a decoder that has other names for them."""
        with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
            return ModelShape.from_config(self.config)
        return None

    @property
    def layers(self) -> int:
        """How many layers it has, 0 where that is not known."""
        count = language_config(self.config).get("num_hidden_layers")
        return count if isinstance(count, int) else 0

    def rank(self, config: Config) -> int:
        """The rank of its adapter."""
        rank = self.adapter.get("r")
        return rank if isinstance(rank, int) else config.lora_rank


def machine(use_cpu: bool = False, gpus: Sequence[int] = (), devices: int = 1) -> Machine:
    """What each process of a run gets here: a GPU of those that were chosen, else of those with most room, of several
    the one with least; else a share of the CPU's memory."""
    present = () if use_cpu else hardware.gpus()
    if cards := [g for g in present if g.index in gpus] or present:
        free = sorted((g.memory_total - g.memory_used for g in cards), reverse=True)
        return Machine(True, free[min(devices, len(free)) - 1])
    return Machine(False, int(psutil.virtual_memory().available) // devices)


def place(text: str) -> Path:
    """A folder as a knob names it, from the studio's own."""
    path = Path(text).expanduser()
    return path if path.is_absolute() else paths.home() / path


def model_of(config: Config, base: Path | None = None) -> Model:
    """A config's model as its files tell of it, on this machine or in the hub's cache. `base` is where they are, if that
    is known."""
    found = base if base and base.is_dir() else model_folder(config)
    return Model(_json(found / "config.json"), _adapter(config))


def model_folder(config: Config) -> Path:
    """Where a config's model is on this machine, in the hub's cache too; a folder that is not there where it is not."""
    name = str(config.model_name_or_path)
    found = place(name)
    if not found.is_dir():
        from huggingface_hub import try_to_load_from_cache

        with suppress(ValueError, OSError):
            found = Path(str(try_to_load_from_cache(name, "config.json"))).parent
    return found


def _adapter(config: Config) -> Mapping[str, Any]:
    if not config.adapter_name_or_path or config.create_new_adapter:
        return {}
    return _json(
        place(config.adapter_name_or_path[-1]) / (config.adapter_folder or "") / "adapter_config.json"
    )


def _json(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError):
        read = json.loads(path.read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else {}
    return {}


def data_of(config: Config) -> Data:
    """A config's data as far as its files are counted."""
    return Data(learnt_rows(config), _lengths(config))


def _lengths(config: Config) -> Lengths | None:
    try:
        found = [tokens for entry in pick(config) if len(tokens := _entry_tokens(entry, config))]
    except (ConfigError, OSError):
        return None
    if not found:
        return None
    tokens = np.concatenate(found)
    return Lengths(float(tokens.mean()), float(tokens.std()), int(tokens.max()))


def _entry_tokens(entry: Entry, config: Config) -> NDArray[np.float64]:
    """About how many tokens each row of a set has: by its bytes, with pictures by a look at the first."""
    sizes = [_counted(str(f), f.stat().st_mtime_ns).sizes() for f in entry.files()]
    whole = np.concatenate([np.asarray(s, dtype=np.float64) for s in sizes]) if sizes else np.zeros(0)
    seen = look(entry, config, model_folder(config)) if entry.pictures else None
    if seen is not None and seen.tokens:
        return np.resize(np.asarray(seen.tokens, dtype=np.float64), max(len(whole), len(seen.tokens)))
    return whole / BYTES_PER_TOKEN


def learnt_rows(config: Config) -> int | None:
    """The rows that are learnt from."""
    total = all_rows(config)
    try:
        return total - kept_aside(total, config.val_size) if total is not None else None
    except ConfigError:
        return None


def all_rows(config: Config) -> int | None:
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
