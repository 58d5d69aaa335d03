"""What the browser is told beside the page: accessible names, and what to say once the dashboard is gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from tuner.text.lookup import tr


class Notice(NamedTuple):
    """What happened while the window may have been behind others; `id` is told once."""

    id: str
    title: str
    body: str
    url: str


_browser = st.components.v2.component(
    "tuner-browser",
    js=Path(__file__).with_name("browser.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def tell(notices: Sequence[Notice] = ()) -> None:
    """Hand the browser what it needs on every page, and what to notify of where somebody allowed it. Draws nothing."""
    with st.container(key="browser"):
        _browser(
            key="browser-words",
            data={
                "notices": [notice._asdict() for notice in notices],
                "lost": tr("The dashboard was closed"),
                "again": tr(
                    "Your runs go on without it. Start it again in a shell:\n\ntuner webui\n\n"
                    "This page then comes back by itself."
                ),
            },
        )


_allow = st.components.v2.component(
    "tuner-notify",
    js=Path(__file__).with_name("notify.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def allow() -> None:
    """The button with which a person lets the browser notify: only a click may ask for that."""
    _allow(
        key="notify",
        data={
            "ask": tr("Notify me in this browser"),
            "granted": tr("This browser notifies you when a run ends."),
            "denied": tr("This browser blocks notifications of this page; allow them beside its address."),
        },
    )
