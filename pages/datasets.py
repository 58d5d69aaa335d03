"""Datasets: the catalog, and of each set its rows, what a model would see of them, and a report before launch."""

import streamlit as st

from tuner.config.kinds import usual_for
from tuner.config.knobs import ConfigError
from tuner.data.catalog import read_catalog
from tuner.text.lookup import mark, tr
from tuner.ui import catalog, datasets, deriving, draft, state, theme, upload
from tuner.ui.words import safe

theme.head(
    tr("Datasets"), tr("Data sets of the catalog: their rows, what the model reads of them, and a report.")
)

folder = catalog.folder()
with st.expander(tr("Add a data set"), icon=":material/upload_file:", key="bring"):
    upload.panel(folder)
try:
    entries = read_catalog(folder)
except ConfigError as error:
    theme.empty("database", tr("No catalog"), safe(error))
    st.stop()
local = catalog.there(entries)
if not local:
    theme.empty(
        "database",
        tr("No data sets on this machine"),
        tr(
            "Add a data set above, or put a file into {folder} and list it in dataset_info.json.",
            folder=safe(folder),
        ),
    )
    catalog.elsewhere(entries, local)
    st.stop()

added = st.session_state.pop("added", "")
if added:
    st.toast(tr("Added {added} to the catalog.", added=safe(added)), icon=":material/check:")
name = added or state.asked("dataset") or next(iter(local))
state.tell(dataset=name)
catalog.table(local, name, folder)
catalog.elsewhere(entries, local)
if name not in local:
    catalog.missing(entries, name, folder)
    st.stop()
entry = entries[name]

with st.container(horizontal=True, vertical_alignment="center", gap="small"):
    st.subheader(safe(name), anchor=False, width="content")
    st.badge(tr(datasets.KINDS[entry.kind]), color="primary")
    datasets.used(entry)
    st.space("stretch")
    deriving.button(entry, folder)
    st.button(
        tr("Use in a new run"),
        icon=":material/add_circle:",
        on_click=draft.use_dataset,
        args=(name, usual_for(entry.kind), folder),
        key=f"use-{name}-of-{folder}",
    )

views = (mark("Preview"), mark("What the model sees"), mark("Report"))
state.reword("view", views, tr)
preview, sees, report = st.tabs(list(map(tr, views)), key="view", bind="query-params")
if preview.open:
    with preview:
        datasets.preview(entry)
if sees.open:
    with sees:
        if config := datasets.settings(entry):
            datasets.sees(entry, config)
if report.open:
    with report:
        if config := datasets.settings(entry):
            datasets.reported(entry, config)
