"""Adapters: what runs have trained, version by version, with aliases, origin and a check of the files."""

import streamlit as st

from tuner.text.lookup import tr
from tuner.tracking.adapters import are_there_any
from tuner.tracking.store import TrackerError
from tuner.ui import adapters, theme
from tuner.ui.words import safe

with st.container(horizontal=True, vertical_alignment="center", key="adapters-head"):
    theme.head(
        tr("Adapters"), tr("Trained adapters by base model: versions, origin, aliases and code to use them.")
    )
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
        "layers",
        tr("No adapters yet"),
        tr("Every finished run registers its adapter here."),
    )
    with st.container(horizontal=True, horizontal_alignment="center"):
        st.page_link("pages/new_run.py", label=tr("New run"), icon=":material/add_circle:")
    st.stop()
if not page.items:
    theme.empty(
        "search_off",
        tr("No matching adapter"),
        tr("Search by name, base model, data set or alias."),
    )
    st.stop()

chosen, row = adapters.opened(page)
adapters.table(page, chosen)
if row is None:
    st.warning(
        tr("There is no adapter {chosen}; choose one above.", chosen=safe(chosen)),
        icon=":material/search_off:",
    )
else:
    adapters.card(row)
