"""Settings: the machine, its disk, MLflow, offline, notifications, and what to send along with a question."""

import streamlit as st

from tuner.text.lookup import tr
from tuner.ui import disk, settings, theme

theme.head(tr("Settings"), tr("This machine, its disk, MLflow, notifications and diagnostics."))

with st.grid(2, min_column_width=420, gap="medium") as grid:
    left, right = grid.cell(), grid.cell()
with left, theme.card("hardware"):
    settings.machine()
with right:
    with theme.card("mlflow"):
        settings.tracker()
    with theme.card("network"):
        settings.network()
    with theme.card("notifications"):
        settings.notifications()
with theme.card("disk"):
    st.subheader(tr("Disk"), anchor=False)
    disk.panel()
    settings.runs_by_size()
with theme.card("diagnostics"):
    settings.diagnostics()
