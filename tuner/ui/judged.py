"""What a draft comes to: its config, and everything that would stop it. Worked out once where several pieces of a page ask."""

from __future__ import annotations

import time

import streamlit as st

from tuner.config.config import Config, check
from tuner.config.knobs import Problem
from tuner.plan import preflight
from tuner.rewards.registry import refused_by_pages
from tuner.ui import draft as drafts
from tuner.ui.draft import Draft

Judged = tuple[Config | None, list[Problem]]
AS_NEW = 1.5
"""Seconds for which it holds: one touch of the form. Files may change at any time."""
_KEY = "judged"


def judge(draft: Draft) -> Judged:
    """The config that the draft makes, if it makes one, and everything that would stop it."""
    config, problems = check({n: v for n, v in draft.values.items() if v != "" and v is not None})
    if config is not None:
        known = {p.knob for p in problems}
        problems = problems + [p for p in preflight.problems(config) if p.knob not in known or not p.knob]
    return config, [*problems, *refused_by_pages(draft.values)]


def current() -> Judged:
    """The same of the draft being worked on."""
    draft, now = drafts.current(), time.monotonic()
    if _KEY in st.session_state:
        told, till, found = st.session_state[_KEY]
        if told is draft and now < till:
            return found  # type: ignore[no-any-return]
    found = judge(draft)
    st.session_state[_KEY] = (draft, now + AS_NEW, found)
    return found
