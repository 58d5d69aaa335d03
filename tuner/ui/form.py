"""The form: every knob drawn from its declaration. Its kind picks the widget, its needs hide it, its help explains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import streamlit as st

from tuner.config.knobs import Knob, Problem, Section
from tuner.text.lookup import language, mark, speaking, tr
from tuner.ui import draft as drafts
from tuner.ui import drawn, field, judged, rewarding, state, theme
from tuner.ui.draft import Draft
from tuner.ui.words import safe

Below = Mapping[str, Callable[[], None]]
"""What draws more at the foot of a section, by its class's name."""

LEVELS = (mark("Basic"), mark("Advanced"))


def show(below: Below) -> None:
    """Draw the form, a card a section, and above it what of it is shown. A piece of the page that is drawn alone."""
    with speaking(language()):  # or every text would ask for it
        advanced, search, explained = _options()
        draft, (_, problems) = drafts.current(), judged.current()
        found = drawn.visible(draft, advanced=advanced, search=search)
        drawn.note(drawn.Drawn(advanced, search, found, list(problems)))
        if not found:
            _none(search)
        for group in drawn.rows(found):
            _row(group, explained, below)


def _options() -> tuple[bool, str, bool]:
    """What of the form is shown: advanced parameters too, only those a search finds, explanations under the fields."""
    state.reword("level", LEVELS)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="form-options"):
        level = st.segmented_control(
            tr("Parameters"),
            list(LEVELS),
            format_func=tr,
            required=True,
            default="Basic",
            key="level",
            bind="query-params",
            label_visibility="collapsed",
        )
        search = st.text_input(
            tr("Find a parameter"),
            type="search",
            key="find",
            icon=":material/search:",
            placeholder=tr("Find: rank, memory, speed"),
            live=True,
            label_visibility="collapsed",
            width=230,
        )
        st.space("stretch")
        explained = st.toggle(tr("Explain"), value=True, key="explain", bind="query-params")
    state.tell()  # the way back to this page has them too
    return level == "Advanced", search or "", explained


def _none(search: str) -> None:
    theme.empty(
        "search_off",
        tr("No matching parameter"),
        tr(
            "No name or explanation matches “{search}”. Advanced searches all parameters.",
            search=safe(search),
        ),
    )


def _row(group: Sequence[type[Section]], explained: bool, below: Below) -> None:
    several = len(group) > 1
    with st.grid(len(group), min_column_width=300, gap="small") if several else nullcontext():
        for section in group:
            name = section.__name__
            st.fragment(_section, key=name)(section, explained, below.get(name))


def _section(section: type[Section], explained: bool, below: Callable[[], None] | None) -> None:
    """A section as a piece of its own, of the draft as it is now."""
    draft, (_, problems) = drafts.current(), judged.current()
    knobs, more = drawn.fields(section, draft, problems)
    with speaking(language()), theme.card(f"section-{section.__name__}", height="stretch"):
        _head(section, sum(k.name in draft.changes for k in knobs), more)
        for knob in (k for k in knobs if k.name == rewarding.KNOB):
            field.wide(knob, draft, problems, explained)
        _grid([k for k in knobs if k.name != rewarding.KNOB], draft, problems, explained)
        if below:
            below()


def _head(section: type[Section], changed: int, more: int) -> None:
    title, button = f"{section.icon} {tr(section.title)}", more or drawn.can_be_closed(section)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.subheader(title, anchor=False)
        if changed:
            st.badge(tr("{changed} changed", changed=changed), color="primary")
        if button:
            st.space("stretch")
            st.button(
                tr("{number} more", number=more) if more else tr("Fewer"),
                key=f"open:{section.__name__}",
                icon=":material/expand_more:" if more else ":material/expand_less:",
                type="tertiary",
                help=tr("Advanced parameters: {section}", section=tr(section.title)),
                on_click=drawn.open_or_close,
                args=(section.__name__,),
            )


def _grid(knobs: Sequence[Knob], draft: Draft, problems: Sequence[Problem], explained: bool) -> None:
    if knobs:
        with st.grid("auto", min_column_width=280, gap=(26, 28)):
            for knob in knobs:
                field.show(knob, draft, problems, explained)
