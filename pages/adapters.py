"""Adapters: what runs have trained, version by version, with aliases, origin and a check of the files."""

import streamlit as st

from tuner.tracking.adapters import list_adapters
from tuner.tracking.store import TrackerError
from tuner.ui import adapters, theme
from tuner.ui.words import safe

theme.head("Adapters", "What your runs have trained: every version, what it fits, and what it came from.")

try:
    rows = list_adapters()
except TrackerError as error:
    st.warning(safe(error), icon=":material/cloud_off:")
    st.stop()

if not rows:
    theme.empty(
        "layers", "No adapters yet", "A run that finishes registers what it trained, as its last step."
    )
    with st.container(horizontal=True, horizontal_alignment="center"):
        st.page_link("pages/new_run.py", label="New run", icon=":material/add_circle:")
    st.stop()

wanted = adapters.search(rows)
if not wanted:
    theme.empty(
        "search_off",
        "No adapter fits",
        "Search for another word: a name, a base model, a data set, an alias.",
    )
for base, names in adapters.by_base(wanted).items():
    st.markdown(f":gray[:material/neurology: {safe(base)}]")
    for versions in names.values():
        adapters.card(versions)
