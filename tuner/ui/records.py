"""A record with typed questions as people read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import streamlit as st

from tuner.data.decisions import NOUL, SCORE, Question, questions_of
from tuner.text.lookup import tr
from tuner.ui.words import safe, share

LONGEST = 2000
"""Characters of a state that are shown."""
SHORT = 160
"""Those of an option's description."""


def told(row: Mapping[str, Any], key: str) -> None:
    """The state, and each question with the share that is expected of each option."""
    state = row["state"]
    text = state if isinstance(state, str) else json.dumps(state, ensure_ascii=False, indent=2)
    with st.container(key=f"bubble-user-{key}-state", gap="xsmall"):
        st.caption(f":material/article: {tr('State')}")
        st.text(
            text
            if len(text) <= LONGEST
            else tr("{text} … {number:,} more characters", text=text[:LONGEST], number=len(text) - LONGEST)
        )
    for question in questions_of(row["questions"]):
        st.markdown(f"**{safe(question.name)}** {safe(_said(question.instructions))}")
        with st.container(gap=None):
            for option in _options(question, row["gold"][question.name]):
                st.caption(safe(option))


def _options(question: Question, gold: list[float]) -> list[str]:
    words = {"true": tr("Yes"), "false": tr("No")} if question.type == NOUL else {}
    told = []
    for option, description, part in zip(question.options, question.descriptions, gold, strict=True):
        name = words.get(option, option)
        said = _said(description)[:SHORT]
        name = said if question.type == SCORE else f"{name}: {said}" if said else name
        told.append(f"{name} {share(part)}" if part else name)
    return told


def _said(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
