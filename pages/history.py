"""History: every run there is, to find, note, tag, compare, clone, delete and restore."""

import streamlit as st

from tuner.tracking.runs import list_runs
from tuner.ui import history, tables, theme
from tuner.ui.words import count, safe

theme.head("History", "Every run, with what it was made of and how it ended. Choose some to compare them.")

found = history.filters()
page = list_runs(found, st.session_state.get("history-page", 1), history.SIZE)
if page.notice:
    st.warning(safe(page.notice), icon=":material/cloud_off:")
if not page.total:
    history.nothing(found)
    st.stop()

rows = list(page.items)
event = st.dataframe(
    tables.history(rows),
    hide_index=True,
    column_config=tables.history_columns(),
    on_select="rerun",
    selection_mode="multi-row",
    key=f"history-{history.mark(found, page.number)}",
    height="content",
)
chosen = [rows[i] for i in event.selection.rows if i < len(rows)]
with st.container(horizontal=True, vertical_alignment="center", gap="small", key="history-bar"):
    st.caption(f"{count(page.total, 'run')}" + (f", {len(chosen)} chosen" if chosen else ""), width="content")
    st.space("stretch")
    if page.pages > 1:
        st.pagination(page.pages, key="history-page")
if not chosen:
    st.caption(":material/touch_app: Choose a row for what can be done with it.")
    st.stop()

history.actions(chosen)
if len(chosen) == 1:
    history.words(chosen[0])
