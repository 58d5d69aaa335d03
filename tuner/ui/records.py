"""A record with typed questions as people read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import streamlit as st

from tuner.data.decisions import Question, questions_of
from tuner.text.lookup import tr
from tuner.ui.words import safe, share

LONGEST = 2000
"""Characters of a state that are shown."""


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
        st.caption(safe(" · ".join(_options(question, row["gold"][question.name]))))


def _options(question: Question, gold: list[float]) -> list[str]:
    words = {"true": tr("Yes"), "false": tr("No")} if question.type == "noul" else {}
    options = question.options if question.type != "score" else map(_said, question.descriptions)
    return [
        f"{words.get(option, option)} {share(p)}" if p else words.get(option, option)
        for option, p in zip(options, gold, strict=True)
    ]


def _said(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
