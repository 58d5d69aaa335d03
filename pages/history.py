"""History: every run there is, to find, note, tag, compare, clone, delete and restore."""

import streamlit as st

from tuner.text.lookup import tr
from tuner.tracking.runs import list_runs
from tuner.ui import disk, history, picking, tables, theme, views
from tuner.ui.words import count, safe

theme.head(tr("History"), tr("All runs: search, tag, compare, clone or delete them."))
history.undo()
with st.expander(
    tr("Disk"), icon=":material/hard_drive:", key="disk", on_change="rerun", bind="query-params"
) as fold:
    if fold.open:
        disk.panel()

found = history.filters()
page = list_runs(found, st.session_state.get("history-page", 1), history.SIZE)
if page.notice:
    st.warning(safe(page.notice), icon=":material/cloud_off:")
if not page.total:
    history.nothing(found)
    st.stop()

rows = {row.id: row for row in page.items}
scored = history.scored(tuple(rows))
usual = tables.history_columns(page.items, scored)
every = tables.every_column(usual)
names = [column.name for column in usual]
columns, cells = views.chosen(every, names), tables.history(page.items, scored)
ids = picking.many(history.TABLE, tr("Runs"), columns, cells, "runs", "run")
chosen = [rows[run_id] for run_id in ids]
with st.container(horizontal=True, vertical_alignment="center", gap="small", key="history-bar"):
    st.caption(
        f"{count(page.total, 'run')}" + (tr(", {number} selected", number=len(chosen)) if chosen else ""),
        width="content",
    )
    st.space("stretch")
    views.controls(every, names)
    if page.pages > 1:
        st.pagination(page.pages, key="history-page")
if not chosen:
    st.caption(
        tr(":material/touch_app: Click a name to open a run. Tick rows to compare, clone or delete them.")
    )
    st.stop()

history.actions(chosen)
if len(chosen) == 1:
    history.words(chosen[0])
