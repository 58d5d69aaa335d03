"""The button that makes typed questions of a data set."""

from __future__ import annotations

import streamlit as st

from tuner.data import derived
from tuner.data.entries import Entry
from tuner.text.lookup import tr
from tuner.ui import writes
from tuner.ui.words import safe


def button(entry: Entry, folder: str) -> None:
    """Shown where a set has something to decide."""
    if not derived.derivable(entry):
        return
    what = tr("which answer is better") if entry.kind == "pairs" else tr("which tool is to be called")
    st.button(
        tr("Make decisions of it"),
        icon=":material/rule:",
        on_click=_derive,
        args=(entry, folder),
        key=f"derive-{entry.name}",
        **writes.locked(
            help=tr("A new set of questions, {what}, to teach a model decisions with.", what=what)
        ),
    )


def _derive(entry: Entry, folder: str) -> None:
    try:
        st.session_state["added"] = writes.derive(entry, folder).name
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
