"""What the browser is told beside the page: accessible names, and what to say once the dashboard is gone."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from tuner.text.lookup import tr

_browser = st.components.v2.component(
    "tuner-browser",
    js=Path(__file__).with_name("browser.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def tell() -> None:
    """Hand the browser what it needs on every page. Draws nothing."""
    with st.container(key="browser"):
        _browser(
            key="browser-words",
            data={
                "lost": tr("The dashboard was closed"),
                "again": tr(
                    "Your runs go on without it. Start it again in a shell:\n\ntuner webui\n\n"
                    "This page then comes back by itself."
                ),
            },
        )
