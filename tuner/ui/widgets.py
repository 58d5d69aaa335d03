"""The widget of a knob: its kind picks one, and what this machine has to choose from."""

from __future__ import annotations

from typing import Any

import streamlit as st

from tuner.config.knobs import Knob
from tuner.config.spelling import word
from tuner.text.lookup import tr
from tuner.ui.draft import Draft
from tuner.ui.offers import Offer, offer
from tuner.ui.words import safe, staged

FEW = 5
"""Up to this many short choices lie side by side; more go into a list."""


def draw(knob: Knob, draft: Draft, title: str, common: dict[str, Any]) -> None:
    """Draw it with the draft's value. `common` is what every widget takes: its key, its help and what a change calls."""
    now = draft.value(knob.name)
    given = offer(knob.name, draft.values)
    if given is not None and knob.kind == "list":
        _several(title, given, now, common)
    elif given is not None:
        _one_of(title, given, now, common)
    elif knob.kind == "bool" and not knob.optional:
        st.toggle(title, value=now if isinstance(now, bool) else str(now).lower() == "true", **common)
    elif knob.kind in ("choice", "bool"):
        _choice(title, knob, now, common)
    elif knob.kind == "int" and _fits(knob, now):
        st.number_input(title, value=now, **_bounds(knob), step=1, placeholder=tr("empty"), **common)
    else:
        common["type"] = "password" if knob.secret else "default"
        st.text_input(title, value=word(now), placeholder=tr("empty"), **common)


def _choice(title: str, knob: Knob, now: Any, common: dict[str, Any]) -> None:
    choices = list(knob.choices) or ["True", "False"]
    current = word(now) or None
    if current is not None and current not in choices:
        choices.append(current)  # a value from a file that is none of them: shown, and told as a problem
    shown = staged if knob.name == "stage" else str
    short = len(choices) <= FEW and sum(map(len, choices)) <= 28
    if short and not knob.optional:
        st.segmented_control(title, choices, default=current, required=True, **common)
    else:
        index = None if current is None else choices.index(current)
        st.selectbox(title, choices, index=index, format_func=shown, placeholder=tr("empty"), **common)


def _one_of(title: str, given: Offer, now: Any, common: dict[str, Any]) -> None:
    choices = list(given.choices)
    if now and str(now) not in choices:
        choices.insert(0, str(now))
    st.selectbox(
        title,
        choices,
        index=choices.index(str(now)) if now else None,
        format_func=given.shown,
        accept_new_options=given.free,
        placeholder=tr("Choose or type"),
        **common,
    )
    if given.missing:
        st.caption(safe(given.missing))


def _several(title: str, given: Offer, now: Any, common: dict[str, Any]) -> None:
    chosen = (
        [str(v) for v in now]
        if isinstance(now, list | tuple)
        else [v for v in str(now or "").split(",") if v]
    )
    choices = [*given.choices, *(c for c in chosen if c not in given.choices)]
    st.multiselect(
        title,
        choices,
        default=chosen,
        format_func=given.shown,
        accept_new_options=given.free,
        placeholder=tr("Choose"),
        **common,
    )
    if given.missing:
        st.caption(safe(given.missing))


def _fits(knob: Knob, now: Any) -> bool:
    """Whether a number field can show the value: a whole number within the bounds, or nothing."""
    if now is None:
        return knob.optional
    whole = isinstance(now, int) and not isinstance(now, bool)
    low, high = knob.lower, knob.upper
    return whole and (low is None or now >= low) and (high is None or now <= high)


def _bounds(knob: Knob) -> dict[str, Any]:
    bounds = {"min_value": knob.lower, "max_value": knob.upper}
    return {side: int(bound) for side, bound in bounds.items() if bound is not None}
