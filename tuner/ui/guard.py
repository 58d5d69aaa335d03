"""The last net under a page: what went wrong is said in a sentence, the whole story goes to the terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable

import streamlit as st

from tuner.redact import redact
from tuner.text.lookup import tr
from tuner.ui import theme
from tuner.ui.words import safe

_log = logging.getLogger("tuner.ui")


def run(draw: Callable[[], None]) -> None:
    """Draw a page. Runs are other processes: whatever happens here does not touch them."""
    try:
        draw()
    except Exception as error:
        _log.exception("A page could not be drawn.")
        with theme.card("stumbled"):
            st.markdown(
                tr(
                    ":red[:material/error: **This page could not be drawn:** {redact}]",
                    redact=safe(redact(str(error))) or type(error).__name__,
                )
            )
            st.caption(
                tr("Your runs go on. Reload the page. Details are in the terminal that runs the studio.")
            )
