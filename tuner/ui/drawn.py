"""What of the form is drawn, and what of the page a change draws anew: the sections that it touches, and the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import streamlit as st
from streamlit.errors import StreamlitAPIException

from tuner.config.config import KNOBS, Config
from tuner.config.knobs import Knob, Problem, Section, sections_of
from tuner.ui import draft as drafts
from tuner.ui import judged, state
from tuner.ui.draft import Draft
from tuner.ui.words import label, value

ELSEWHERE = frozenset({"run_name"})
"""Knobs with a place of their own on the page: the name stands on the run's card."""
FORM, CARD, UNDO = "form", "card", "undo"
"""Pieces of the page, each drawn alone where a change touches it; so is each section, by its class's name."""
FAR = frozenset({"stage", "dataset_dir", "reward_funcs"})
"""Knobs that change what other sections offer."""
FOLLOWING = frozenset({"Rewards"})
"""Sections that show at their foot what all of the draft comes to."""
OPEN = "open"
"""What the address calls the sections whose advanced parameters are drawn."""
_DRAWN = "form-drawn"
Found = Mapping[type[Section], Sequence[Knob]]


class Drawn(NamedTuple):
    """How the form was asked for, the knobs found for it, and what was told of them."""

    advanced: bool
    search: str
    found: Found
    problems: Sequence[Problem]


def visible(draft: Draft, *, advanced: bool, search: str = "") -> dict[type[Section], list[Knob]]:
    """The knobs that there are, by section: those that apply to the other values, and the advanced ones if asked for,
    set by the starting point, changed, or found by their name or help. A search among the advanced ones finds those too
    that are too rare to be listed."""
    found: dict[type[Section], list[Knob]] = {}
    for section in sections_of(Config):
        knobs = [KNOBS[n] for n in section.model_fields if n not in ELSEWHERE]
        known = [k for k in knobs if k.shown or k.name in draft.changes or (search and advanced)]
        kept = [k for k in known if _wanted(k, draft, advanced, search) and k.applies(draft.every)]
        if kept:
            found[section] = kept
    return found


def _wanted(knob: Knob, draft: Draft, advanced: bool, search: str) -> bool:
    if search:
        text = f"{knob.name} {label(knob.name)} {knob.tooltip}".lower()
        return all(part in text for part in search.lower().split())
    return advanced or not knob.advanced or _set_already(knob, draft)


def _set_already(knob: Knob, draft: Draft) -> bool:
    return knob.name in draft.changes or value(draft.origin(knob.name)) != value(knob.default)


def fields(section: type[Section], draft: Draft, problems: Sequence[Problem]) -> tuple[list[Knob], int]:
    """The knobs of a section whose fields are drawn, and how many more there are: advanced ones that nobody has set and
    nothing is wrong with, until the section is opened or something is searched for."""
    drawn: Drawn = st.session_state[_DRAWN]
    knobs = list(drawn.found.get(section, ()))
    if drawn.search or section.__name__ in state.asked_all(OPEN):
        return knobs, 0
    wrong = {p.knob for p in problems}
    first = [k for k in knobs if k.name in wrong or _wanted(k, draft, False, "")]
    return first, len(knobs) - len(first)


def can_be_closed(section: type[Section]) -> bool:
    """Whether a section was opened and can be closed again."""
    drawn: Drawn = st.session_state[_DRAWN]
    return drawn.advanced and not drawn.search and section.__name__ in state.asked_all(OPEN)


def open_or_close(section: str) -> None:
    """Draw a section's advanced parameters, or no longer. For the callback of its button."""
    opened = state.asked_all(OPEN)
    state.tell(
        **{OPEN: [name for name in opened if name != section] if section in opened else [*opened, section]}
    )


def note(drawn: Drawn) -> None:
    """Keep how the form is drawn, for what `touched` draws anew."""
    st.session_state[_DRAWN] = drawn


def rows(found: Found) -> list[list[type[Section]]]:
    """The sections by rows: one of several knobs takes a row of its own, those of a single knob share one in pairs."""
    placed: list[list[type[Section]]] = []
    for section, knobs in found.items():
        lone = len(knobs) == 1
        if lone and placed and len(placed[-1]) == 1 and len(found[placed[-1][0]]) == 1:
            placed[-1].append(section)
        else:
            placed.append([section])
    return placed


def touched(*changed: str) -> None:
    """Draw anew what a change of knobs touches: their sections and the card, or the form where sections come or go. The
    last thing that a callback does: Streamlit ends it here."""
    if _DRAWN not in st.session_state:
        return
    before: Drawn = st.session_state[_DRAWN]
    found = visible(drafts.current(), advanced=before.advanced, search=before.search)
    if FAR & set(changed) or rows(found) != rows(before.found):
        _draw(FORM)
    now = judged.current()[1]
    note(before._replace(found=found, problems=list(now)))
    told = [p for p in [*before.problems, *now] if p not in before.problems or p not in now]
    knobs = {*changed, *(p.knob for p in told)}
    other = {s.__name__ for s, ks in found.items() if ks != before.found[s] or knobs & {k.name for k in ks}}
    _draw(*(s.__name__ for s in found if s.__name__ in other | FOLLOWING))


def _draw(*pieces: str) -> None:
    with suppress(StreamlitAPIException):  # a draw that was cut short has left one of them out
        st.rerun([*pieces, CARD, UNDO])
    st.rerun()
