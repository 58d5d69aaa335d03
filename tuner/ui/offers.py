"""What the form can offer for a knob on this machine: models found, data sets that fit, templates known.

Offers never change and are shared as they are; copying them for every field that asks took longer than finding them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from tuner.config import models
from tuner.config.config import KNOBS
from tuner.config.kinds import usual_for
from tuner.config.knobs import ConfigError
from tuner.data import templates
from tuner.data.catalog import read_catalog
from tuner.data.entries import Entry
from tuner.text.lookup import language, tr
from tuner.ui.words import place


@dataclass(frozen=True)
class Offer:
    """Choices with what is written beside each; `free` lets a person type something else."""

    choices: tuple[str, ...]
    notes: Mapping[str, str]
    free: bool = True
    missing: str = ""

    def shown(self, choice: str) -> str:
        note = self.notes.get(choice)
        return f"{choice}  ·  {note}" if note else choice


def offer(name: str, values: Mapping[str, Any]) -> Offer | None:
    """The offer for a knob next to the other values; None where there is nothing to choose from."""
    if name == "model_name_or_path":
        return _models(language())
    if name in ("dataset", "eval_dataset", "probe"):
        folder = str(values.get("dataset_dir") or KNOBS["dataset_dir"].default)
        stage = str(values.get("stage") or KNOBS["stage"].default)
        return _datasets(folder, usual_for("chat") if name == "probe" else stage, language())
    if name == "template":
        return _templates()
    return None


@st.cache_resource(ttl=20, show_spinner=False)
def _models(spoken: str) -> Offer:
    folders = models.local_models(models.model_roots())
    own = {place(str(folder)): tr("on this machine") for folder in folders}
    cached = dict.fromkeys(models.hub_cache_models(), tr("in the hub cache"))
    notes = own | cached
    missing = (
        tr("No model was found on this machine: type a folder's path or a hub name.") if not notes else ""
    )
    return Offer(tuple(notes), notes, missing=missing)


@st.cache_resource(ttl=5, show_spinner=False)
def _datasets(folder: str, stage: str, spoken: str) -> Offer:
    try:
        entries = read_catalog(folder)
    except ConfigError as error:
        return Offer((), {}, missing=str(error))
    fitting = [e for e in entries.values() if not e.fits(stage) and here(e)]
    missing = (
        ""
        if fitting
        else tr("No data set in {folder} fits the stage {stage}; see Datasets.", folder=folder, stage=stage)
    )
    return Offer(tuple(e.name for e in fitting), {}, missing=missing)


def here(entry: Entry) -> bool:
    """Whether a data set's files are on this machine."""
    try:
        return bool(entry.files())
    except ConfigError:
        return False


@st.cache_resource(show_spinner=False)
def _templates() -> Offer:
    return Offer(tuple(templates.names()), {})
