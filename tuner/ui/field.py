"""One knob's field in the form: its widget, what is beside and under it, and what a touch of it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from tuner.config.config import KNOBS
from tuner.config.knobs import Knob, Problem
from tuner.config.spelling import word
from tuner.text.lookup import tr
from tuner.ui import draft as drafts
from tuner.ui import rewarding, widgets
from tuner.ui.draft import Draft
from tuner.ui.drawn import touched
from tuner.ui.offers import offer
from tuner.ui.words import english_label, in_form, label, number, safe, value


def show(knob: Knob, draft: Draft, problems: Sequence[Problem], explained: bool) -> None:
    """One knob: its widget, the way back if it was changed, its explanation, and what is wrong with it."""
    with st.container(key=f"field-{knob.name}", gap="xsmall"):
        _widget(
            knob, draft
        )  # in its place whatever is beside it: one that moves is drawn twice while it has the focus
        if beside := [_empty] * _can_be_emptied(knob, draft) + [_reset] * (knob.name in draft.changes):
            with st.container(horizontal=True, width="content", gap="xxsmall", key=f"acts-{knob.name}"):
                for act in beside:
                    act(knob, draft)
        wrong = _wrong(knob, problems)
        if explained and not wrong:
            st.caption(_explanation(knob))


def wide(knob: Knob, draft: Draft, problems: Sequence[Problem], explained: bool) -> None:
    """A knob whose field takes all of its section's width."""
    with st.container(key=f"field-{knob.name}", gap="small"):
        if explained:
            st.caption(_explanation(knob))
        rewarding.field(draft, explained)
        _wrong(knob, problems)


def _wrong(knob: Knob, problems: Sequence[Problem]) -> bool:
    """What is wrong with a knob, under its field; whether anything is."""
    wrong = [p for p in problems if p.knob == knob.name]
    for problem in wrong:
        st.markdown(f":small[:red[:material/error: {safe(in_form(problem.sentence))}]]")
    return bool(wrong)


def _explanation(knob: Knob) -> str:
    usual = tr("\n\n**Usual:** {usual}", usual=safe(tr(knob.usual))) if knob.usual else ""
    return f"{safe(tr(knob.help))}{usual}"


def _reset(knob: Knob, draft: Draft) -> None:
    st.button(
        tr("Undo {name}", name=label(knob.name)),
        key=f"reset:{knob.name}",
        icon=":material/undo:",
        type="tertiary",
        help=tr("Back to {origin}", origin=value(draft.origin(knob.name))),
        on_click=_put_back,
        args=(knob.name,),
    )


def _can_be_emptied(knob: Knob, draft: Draft) -> bool:
    """Whether it is chosen from a list that has no choice for nothing: Streamlit lets one be taken back only where the
    field began empty."""
    listed = knob.kind == "choice" or (knob.kind != "list" and offer(knob.name, draft.values) is not None)
    return listed and knob.optional and knob.default is None and draft.value(knob.name) not in (None, "")


def _empty(knob: Knob, draft: Draft) -> None:
    st.button(
        tr("Empty {name}", name=label(knob.name)),
        key=f"clear:{knob.name}",
        icon=":material/close:",
        type="tertiary",
        help=tr("Empty {name}", name=label(knob.name)),
        on_click=mend,
        args=({knob.name: None},),
    )


def tooltip(knob: Knob) -> str:
    """The knob's tooltip with its flag, its bounds and a line for each direction."""
    lines = [f"`--{knob.name}`", safe(tr(knob.help))]
    if knob.raised:
        lines.append(tr(":material/arrow_upward: **Higher:** {raised}", raised=safe(tr(knob.raised))))
    if knob.lowered:
        lines.append(tr(":material/arrow_downward: **Lower:** {lowered}", lowered=safe(tr(knob.lowered))))
    if knob.usual:
        lines.append(tr("**Usual:** {usual}", usual=safe(tr(knob.usual))))
    bounds = [number(b) for b in (knob.lower, knob.upper) if b is not None]
    if len(bounds) == 2:
        lines.append(tr("**Allowed:** {least} to {most}", least=bounds[0], most=bounds[1]))
    return "\n\n".join(lines)


def heading(knob: Knob, draft: Draft) -> str:
    """The label over a knob's field: a mark where it was changed, and its unit where the name does not say it."""
    mark = ":primary[●] " if knob.name in draft.changes else ""
    named = label(knob.name)
    said = knob.unit and knob.unit.removesuffix("s") in english_label(knob.name).lower()
    unit = f" :gray[:small[{safe(tr(knob.unit))}]]" if knob.unit and not said else ""
    return f"{mark}{safe(named)}{unit}"


def _widget(knob: Knob, draft: Draft) -> None:
    key = drafts.widget(knob.name)
    common: dict[str, Any] = {
        "key": key,
        "help": tooltip(knob),
        "on_change": _changed,
        "args": (knob.name, key, word(draft.value(knob.name))),
    }
    widgets.draw(knob, draft, heading(knob, draft), common)


# --- what a touch does ---------------------------------------------------------------------------------------------


def _changed(name: str, key: str, before: str) -> None:
    """Take what a person set. `before` is what the field showed: a browser that is a step behind may still speak for
    a field that has been replaced, and only what was typed there counts."""
    if key not in st.session_state:
        return
    knob, raw = KNOBS[name], st.session_state[key]
    taken = raw.lower() == "true" if knob.kind == "bool" and isinstance(raw, str) else drafts.typed(knob, raw)
    replaced = key != drafts.widget(name)
    if replaced and word(taken) == before:
        return
    if replaced or (isinstance(raw, str) and raw != word(taken)):
        drafts.replace_widget(name)  # shown again as the studio writes it: 5e-5 becomes 5e-05
    drafts.keep(drafts.current().with_value(name, taken))
    touched(name)


def _put_back(name: str) -> None:
    drafts.replace_widget(name)
    drafts.keep(drafts.current().without(name))
    touched(name)


def mend(changes: dict[str, Any]) -> None:
    """Set knobs as a remedy says."""
    draft = drafts.current()
    for name, remedy in changes.items():
        drafts.replace_widget(name)
        draft = draft.with_value(name, remedy)
    drafts.keep(draft)
    touched(*changes)
