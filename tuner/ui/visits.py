"""When a person was here last, so that Home can say what happened since."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path

import streamlit as st

from tuner import paths
from tuner.ui import login

AGAIN = 30 * 60.0
"""Seconds after which somebody who comes back has been away."""
_KEY = "last-visit"


def before() -> float:
    """When this person's last visit ended, in seconds since the epoch; 0 for the first one. It holds for the session."""
    if _KEY not in st.session_state:
        st.session_state[_KEY] = _seen()
    _touch()
    return float(st.session_state[_KEY])


def _seen() -> float:
    with suppress(OSError):
        return _file().stat().st_mtime
    return 0.0


def _touch() -> None:
    """A visit goes on as long as pages are looked at; the file's time is all that is kept."""
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        _file().touch()


def _file() -> Path:
    name = login.person().name
    return (
        paths.mlruns()
        / "people"
        / f"{hashlib.sha256(name.encode()).hexdigest()[:16] if name else 'all'}.seen"
    )


def away(since: float, now: float | None = None) -> bool:
    """Whether a last visit lies so far back that what happened since is worth a word."""
    return bool(since) and (now or time.time()) - since > AGAIN
