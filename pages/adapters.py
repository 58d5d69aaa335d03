"""Adapters: what runs have trained, version by version, with aliases, origin and a check of the files."""

import streamlit as st

from tuner.tracking.adapters import are_there_any
from tuner.tracking.store import TrackerError
from tuner.ui import adapters, theme
from tuner.ui.words import safe

with st.container(horizontal=True, vertical_alignment="center", key="adapters-head"):
    theme.head("Adapters", "What your runs have trained: every version, what it fits, and what it came from.")
    st.space("stretch")
    adapters.bring()

try:
    there_are = are_there_any()
    page = adapters.listed_here() if there_are else None
except TrackerError as error:
    st.warning(safe(error), icon=":material/cloud_off:")
    st.stop()

if page is None:
    theme.empty(
        "layers", "No adapters yet", "A run that finishes registers what it trained, as its last step."
    )
    with st.container(horizontal=True, horizontal_alignment="center"):
        st.page_link("pages/new_run.py", label="New run", icon=":material/add_circle:")
    st.stop()
if not page.items:
    theme.empty(
        "search_off",
        "No adapter fits",
        "Search for another word: a name, a base model, a data set, an alias.",
    )
    st.stop()

chosen, row = adapters.opened(page)
adapters.table(page, chosen)
if row is None:
    st.warning(f"There is no adapter {safe(chosen)}; choose one above.", icon=":material/search_off:")
else:
    adapters.card(row)
