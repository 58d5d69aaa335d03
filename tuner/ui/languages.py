"""The language of a page: what this session chose, else what this person chose before, else the browser's."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from tuner import paths
from tuner.runs.files import replace_text
from tuner.text import lookup
from tuner.text.lookup import ENGLISH, LANGUAGES, offered, speak, tr
from tuner.ui import login

FIELD = "language"
"""The key of the field in the sidebar, and the name in a person's file."""
_SPOKEN = "spoken"


def begin() -> None:
    """Speak the language of this session. The first thing a script run does; pieces that redraw themselves ask `_of_session`."""
    lookup.speak_everywhere(ENGLISH, _of_session)
    if st.session_state.get(_SPOKEN) not in LANGUAGES:
        st.session_state[_SPOKEN] = _kept() or offered([st.context.locale or ""])
    speak(st.session_state[_SPOKEN])


def switch() -> None:
    """The field that changes the language; nothing where there is but one."""
    if len(LANGUAGES) > 1:
        st.session_state[FIELD] = st.session_state[_SPOKEN]
        st.selectbox(
            tr("Language"),
            list(LANGUAGES),
            format_func=lambda name: LANGUAGES[name],
            key=FIELD,
            on_change=_switched,
            label_visibility="collapsed",
        )


def _of_session() -> str | None:
    """The language of the session that this thread draws for; None in any other thread."""
    if get_script_run_ctx(suppress_warning=True) is None:
        return None
    spoken = st.session_state.get(_SPOKEN)
    return str(spoken) if spoken in LANGUAGES else None


def _switched() -> None:
    wanted = st.session_state[FIELD]
    # A field's value comes from the browser as the word that was shown. Set again, it goes back in the new language.
    for key, value in st.session_state.items():
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            st.session_state[key] = value
    st.session_state[_SPOKEN] = wanted
    speak(wanted)
    _keep(wanted)


# --- what a person chose before


def _file() -> Path:
    """Where a person's choices lie; one file for all where nobody logs in."""
    name = login.person().name
    return (
        paths.mlruns()
        / "people"
        / f"{hashlib.sha256(name.encode()).hexdigest()[:16] if name else 'all'}.json"
    )


def _kept() -> str:
    with suppress(OSError, ValueError, AttributeError):
        kept = json.loads(_file().read_text(encoding="utf-8")).get(FIELD)
        return kept if kept in LANGUAGES else ""
    return ""


def _keep(wanted: str) -> None:
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        replace_text(_file(), json.dumps({FIELD: wanted}))
