"""A run that takes in an adapter which was trained elsewhere: copied, looked through, and registered like our own."""

from __future__ import annotations

import shutil

from tuner.config.importing import ImportConfig, base_of
from tuner.jobs.live import Live, Outcome
from tuner.plan.facts import place

LEFT = (
    "optimizer.*",
    "scheduler.*",
    "rng_state*",
    "*.bin",
    "*.pt",
    "*.pth",
    "checkpoint-*",
    "trainer_state.json",
    "*.pkl",
)
"""What of a folder is no part of an adapter, or may run code when it is opened."""


def take_in(config: ImportConfig, live: Live) -> Outcome:
    """Copy the folder into the run's own; what it says of its base is taken, unless the config says otherwise."""
    source = place(str(config.adapter_name_or_path))
    with live.phase("copying"):
        shutil.copytree(source, live.output, ignore=shutil.ignore_patterns(*LEFT), dirs_exist_ok=True)
    base = config.model_name_or_path or base_of(source)
    local = place(base)
    return Outcome(weights=live.output, adapter=True, base=str(local.resolve()) if local.is_dir() else base)
