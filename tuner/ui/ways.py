"""The ways from a trained version to the pages that ask it something and measure it: by what its stage teaches."""

from __future__ import annotations

import streamlit as st

from tuner.config.kinds import KINDS
from tuner.text.lookup import tr
from tuner.tracking.votes import BASE
from tuner.ui import state


def ask(base: str, version: str, stage: str, key: str, **look: str) -> None:
    """To its answers beside those of its base; `look` is how a button looks."""
    if _decides(stage):
        st.page_link(
            "pages/decide.py",
            label=tr("Decide"),
            icon=":material/rule_settings:",
            help=tr("Ask it questions beside its base model."),
            query_params={"base": base, "adapter": version},
        )
        return
    st.button(
        tr("Chat"),
        icon=":material/forum:",
        key=key,
        help=tr("Chat with it beside its base model."),
        on_click=state.go,
        args=("chat",),
        kwargs={"base": base, "column": [BASE, version]},
        **look,  # type: ignore[arg-type]
    )


def evaluate(version: str, stage: str) -> None:
    """To its evaluation; none for what answers with no text to measure."""
    if not _decides(stage):
        st.page_link(
            "pages/evaluate.py",
            label=tr("Evaluate"),
            icon=":material/rule:",
            query_params={"adapter": version},
        )


def _decides(stage: str) -> bool:
    return stage in KINDS and KINDS[stage].predicts == "decisions"
