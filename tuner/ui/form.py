"""The form: every knob drawn from its declaration. Its kind picks the widget, its needs hide it, its help explains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from tuner.config.config import KNOBS, Config, word
from tuner.config.knobs import Knob, Problem, Section, sections_of
from tuner.text.lookup import mark, tr
from tuner.ui import draft as drafts
from tuner.ui import judged, rewarding, theme
from tuner.ui.draft import Draft
from tuner.ui.offers import Offer, offer
from tuner.ui.words import english_label, in_form, label, number, safe, staged, value

ELSEWHERE = frozenset({"run_name"})
"""Knobs with a place of their own on the page: the name stands on the run's card."""
CARD, UNDO = "card", "undo"
"""Pieces of the page beside the sections: each is drawn alone where a change touches it."""
FAR = frozenset({"stage", "dataset_dir"})
"""Knobs that change what other sections offer."""
_DRAWN = "form-drawn"
FEW = 5
"""Up to this many short choices lie side by side; more go into a list."""


def visible(draft: Draft, *, advanced: bool, search: str = "") -> dict[type[Section], list[Knob]]:
    """The knobs to draw, by section: those that apply to the other values, and the advanced ones if asked for, set by
    the starting point, changed, or found by their name or help. A search among the advanced ones finds those too that
    are too rare to be listed."""
    values = draft.every
    found: dict[type[Section], list[Knob]] = {}
    for section in sections_of(Config):
        knobs = [KNOBS[n] for n in section.model_fields]
        known = [k for k in knobs if k.shown or k.name in draft.changes or (search and advanced)]
        drawn = [k for k in known if k.name not in ELSEWHERE and k.applies(values)]
        kept = [k for k in drawn if _wanted(k, draft, advanced, search)]
        if kept:
            found[section] = kept
    return found


def _wanted(knob: Knob, draft: Draft, advanced: bool, search: str) -> bool:
    if search:
        text = f"{knob.name} {label(knob.name)} {knob.tooltip}".lower()
        return all(part in text for part in search.lower().split())
    set_already = knob.name in draft.changes or value(draft.origin(knob.name)) != value(knob.default)
    return advanced or not knob.advanced or set_already


def options() -> tuple[bool, str, bool]:
    """What of the form is shown: advanced parameters too, only those a search finds, explanations under the fields."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="form-options"):
        level = st.segmented_control(
            tr("Parameters"),
            [mark("Basic"), mark("Advanced")],
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
    return level == "Advanced", search or "", explained


def sections(
    draft: Draft,
    problems: Sequence[Problem],
    *,
    advanced: bool,
    search: str,
    explained: bool,
    below: Mapping[str, Callable[[], None]] | None = None,
) -> None:
    """Draw the form, a card a section. `below` draws more at the foot of a section, by its class's name."""
    found = visible(draft, advanced=advanced, search=search)
    if not found:
        theme.empty(
            "search_off",
            tr("No matching parameter"),
            tr(
                "No name or explanation matches “{search}”. Advanced searches all parameters.",
                search=safe(search),
            ),
        )
    for group in _rows(found):
        with st.grid(len(group), min_column_width=300, gap="small", key=f"sections-{group[0].__name__}"):
            for section in group:
                more = (below or {}).get(section.__name__)
                if more:
                    _section(section, found[section], draft, problems, explained, more)
                else:
                    st.fragment(_alone, key=section.__name__)(section, found[section], explained)
    whole = any(section.__name__ in (below or {}) for section in found)
    st.session_state[_DRAWN] = (advanced, search, whole, _names(found), list(problems))


def _alone(section: type[Section], knobs: list[Knob], explained: bool) -> None:
    """A section as a piece of its own, of the draft as it is now."""
    _section(section, knobs, drafts.current(), judged.current()[1], explained, None)


def _names(found: Mapping[type[Section], Sequence[Knob]]) -> dict[str, list[str]]:
    return {section.__name__: [k.name for k in knobs] for section, knobs in found.items()}


def touched(*changed: str) -> None:
    """Draw anew what a change of knobs touches: their sections and the card, or all where other fields come or go. The
    last thing that a callback does: Streamlit ends it here."""
    if _DRAWN not in st.session_state:
        return
    advanced, search, whole, before, problems = st.session_state[_DRAWN]
    after = _names(visible(drafts.current(), advanced=advanced, search=search))
    if whole or before != after or FAR & set(changed):
        st.rerun()
    now = judged.current()[1]
    st.session_state[_DRAWN] = (advanced, search, whole, before, list(now))
    told = [p for p in [*problems, *now] if p not in problems or p not in now]
    knobs = {*changed, *(p.knob for p in told)}
    st.rerun([*(name for name, names in after.items() if knobs & set(names)), CARD, UNDO])


def _rows(found: dict[type[Section], list[Knob]]) -> list[list[type[Section]]]:
    """The sections by rows: one of several knobs takes a row of its own, those of a single knob share one in pairs."""
    rows: list[list[type[Section]]] = []
    for section, knobs in found.items():
        lone = len(knobs) == 1
        if lone and rows and len(rows[-1]) == 1 and len(found[rows[-1][0]]) == 1:
            rows[-1].append(section)
        else:
            rows.append([section])
    return rows


def _section(
    section: type[Section],
    knobs: list[Knob],
    draft: Draft,
    problems: Sequence[Problem],
    explained: bool,
    below: Callable[[], None] | None,
) -> None:
    changed = sum(k.name in draft.changes for k in knobs)
    with theme.card(f"section-{section.__name__}", height="stretch"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.subheader(f"{section.icon} {tr(section.title)}", anchor=False)
            if changed:
                st.badge(tr("{changed} changed", changed=changed), color="primary")
        for knob in (k for k in knobs if k.name == rewarding.KNOB):
            _wide(knob, draft, problems, explained)
        with st.grid("auto", min_column_width=280, gap=(26, 28)) as grid:
            for knob in (k for k in knobs if k.name != rewarding.KNOB):
                with grid.cell():
                    field(knob, draft, problems, explained)
        if below:
            below()


def _wide(knob: Knob, draft: Draft, problems: Sequence[Problem], explained: bool) -> None:
    """A knob whose field takes all of its section's width."""
    with st.container(key=f"field-{knob.name}", gap="small"):
        if explained:
            st.caption(_explanation(knob))
        rewarding.field(draft, explained)
        _wrong(knob, problems)


def field(knob: Knob, draft: Draft, problems: Sequence[Problem], explained: bool) -> None:
    """One knob: its widget, the way back if it was changed, its explanation, and what is wrong with it."""
    with st.container(key=f"field-{knob.name}", gap="xsmall"):
        beside = [_empty] * _can_be_emptied(knob, draft) + [_reset] * (knob.name in draft.changes)
        if beside:
            with st.container(horizontal=True, vertical_alignment="bottom", gap="xsmall"):
                _widget(knob, draft)
                for act in beside:
                    act(knob, draft)
        else:
            _widget(knob, draft)
        wrong = _wrong(knob, problems)
        if explained and not wrong:
            st.caption(_explanation(knob))


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


# --- widgets -------------------------------------------------------------------------------------------------------


def _widget(knob: Knob, draft: Draft) -> None:
    name, now = knob.name, draft.value(knob.name)
    key = drafts.widget(name)
    common: dict[str, Any] = {
        "key": key,
        "help": tooltip(knob),
        "on_change": _changed,
        "args": (name, key, word(now)),
    }
    title = heading(knob, draft)
    given = offer(name, draft.values)
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
