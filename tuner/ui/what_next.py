"""What to do with a run that has finished: what it gained, and the ways on from it."""

from __future__ import annotations

import streamlit as st

from tuner.config.kinds import trains
from tuner.runs.points import tail
from tuner.runs.run import Run
from tuner.text.lookup import tr
from tuner.tracking.rows import PARENT
from tuner.ui import chart_table, history, theme, ways
from tuner.ui.words import place, share


def strip(run: Run) -> None:
    """The ways on, where a training run has left an adapter."""
    status, values = run.status(), run.values()
    stage = str(values.get("stage"))
    if status.state != "finished" or not trains(stage) or not status.adapter:
        return
    version = f"{status.adapter}/{status.adapter_version}" if status.adapter_version else status.adapter
    with theme.card("what-next", gap="small", horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{tr('What next')}**", width="content")
        if said := gained(tail(run).last()):
            st.badge(said, icon=":material/trending_up:", color="green")
        st.space("stretch")
        if base := values.get("model_name_or_path"):
            ways.ask(place(str(base)), version, stage, f"next-chat-{run.id}")
        _way("compare_arrows", tr("Compare"), f"next-compare-{run.id}", run)
        ways.evaluate(version, stage)
        st.page_link(
            "pages/adapters.py",
            label=tr("Alias, code, export"),
            icon=":material/layers:",
            query_params={"adapter": version},
        )


def _way(icon: str, name: str, key: str, run: Run) -> None:
    parent = run.status().tags.get(PARENT, "")
    st.button(
        name,
        icon=f":material/{icon}:",
        key=key,
        help=history.beside(parent),
        on_click=history.compare,
        args=([run.id], parent),
    )


def gained(last: dict[str, float]) -> str:
    """The score before and after in a few words; empty where none was asked for, or it is exact match."""
    before, after = last.get("score/before"), last.get("score/after")
    if before is None or after is None or not chart_table.is_scored(last):
        return ""
    return tr("Score {before} → {after}", before=share(before), after=share(after))
