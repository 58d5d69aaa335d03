"""The field of the form in which rewards are chosen: a list that one adds to and takes from, each with its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from tuner.config.knobs import Knob
from tuner.config.spelling import word
from tuner.rewards import registry
from tuner.rewards.own import is_own
from tuner.rewards.registry import TABLE, WEIGHT
from tuner.text.lookup import mark, tr
from tuner.ui import draft as drafts
from tuner.ui.draft import Draft
from tuner.ui.drawn import touched
from tuner.ui.words import label, safe

KNOB = "reward_funcs"
"""The knob that this field is of."""
OWN = mark("Custom function")
LONGEST = 18
"""Letters of choices that lie side by side; more go into a list."""


def field(draft: Draft, explained: bool) -> None:
    """The rewards of the draft, each in a card of its own, and what adds one."""
    key = drafts.widget(KNOB)
    for place, said in enumerate(chosen(draft)):
        with st.container(border=True, key=f"card-row-reward-{place}", gap="small"):
            _one(place, said, key, explained)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.selectbox(
            tr("Add a reward"),
            list(TABLE),
            index=None,
            format_func=lambda name: f"{tr(TABLE[name].title)}  ·  {name}",
            placeholder=tr("Choose at least one reward."),
            key=f"{key}:add",
            on_change=_add,
            args=(f"{key}:add",),
            width=360,
        )


def chosen(draft: Draft) -> list[Any]:
    """The draft's rewards, as the config has them."""
    return registry.chosen(draft.value(KNOB))


def _one(place: int, said: Any, key: str, explained: bool) -> None:
    name, given = _read(said)
    named = TABLE.get(name)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(
            f"**{safe(tr(named.title if named else OWN if is_own(name) else 'Unknown'))}** :gray[:small[{safe(name)}]]",
            width="content",
        )
        st.space("stretch")
        st.button(
            tr("Remove"),
            icon=":material/close:",
            type="tertiary",
            key=f"{key}:{place}:out",
            on_click=_take_out,
            args=(place, f"{key}:{place}:out"),
        )
    if named is None:
        st.caption(_unknown(name))
        return
    if explained:
        st.caption(safe(tr(named.about)))
    with st.grid("auto", min_column_width=230, gap="small") as grid:
        for parameter in [*named.parameters.values(), _WEIGHT]:
            with grid.cell(), st.container(gap="xsmall"):
                _parameter(place, parameter, given, f"{key}:{place}:{name}:{parameter.name}", explained)


_WEIGHT = Knob(
    WEIGHT, "", "float", 1.0, mark("Weight of this reward in the sum. Negative values penalise.")
)  # fmt: skip


def _unknown(name: str) -> str:
    if is_own(name):
        return tr("Custom functions run from the shell only: `tuner train FILE`.")
    return tr("There is no reward of this name.")


def _read(said: Any) -> tuple[str, dict[str, Any]]:
    """A reward's name and what it is given, its weight among it; of whatever a file says, as far as it can be read."""
    try:
        asked = registry.spec(said)
    except ValueError:
        return (
            (str(said)[:80], {})
            if not isinstance(said, Mapping)
            else (str(next(iter(said), "")), _inner(said))
        )
    return asked.name, {**asked.given, WEIGHT: asked.weight}


def _inner(said: Mapping[str, Any]) -> dict[str, Any]:
    inner = next(iter(said.values()), None)
    return dict(inner) if isinstance(inner, Mapping) else {}


def _parameter(place: int, knob: Knob, given: Mapping[str, Any], key: str, explained: bool) -> None:
    now = given.get(knob.name, knob.default)
    common: dict[str, Any] = {
        "key": key,
        "help": safe(knob.tooltip),
        "on_change": _took,
        "args": (place, knob, key),
    }
    title = safe(label(knob.name))
    if knob.kind == "bool":
        st.toggle(title, value=str(now).lower() == "true", **common)
    elif knob.kind == "choice":
        choices = list(dict.fromkeys([*knob.choices, *filter(None, [word(now)])]))
        if sum(map(len, choices)) > LONGEST:
            st.selectbox(title, choices, index=choices.index(word(now)), **common)
        else:
            st.segmented_control(title, choices, default=word(now), required=True, **common)
    elif knob.kind == "int" and (now is None or (isinstance(now, int) and now >= (knob.lower or 0))):
        st.number_input(
            title, value=now, min_value=int(knob.lower or 0), step=1, placeholder=tr("empty"), **common
        )
    elif knob.kind == "json":
        st.text_area(title, value=word(now), placeholder='{"type": "object"}', height=120, **common)
    else:
        st.text_input(title, value=word(now), placeholder=tr(knob.usual or "empty"), **common)
    if explained:
        st.caption(safe(tr(knob.help)))


# --- what a touch does ---------------------------------------------------------------------------------------------


def _current(key: str) -> bool:
    """Whether a field is one that stands there now: a browser that is a step behind may speak for one that does not."""
    return key.startswith(drafts.widget(KNOB)) and key in st.session_state


def _keep(rewards: Sequence[Any]) -> None:
    drafts.keep(drafts.current().with_value(KNOB, list(rewards)))
    touched(KNOB)


def _add(key: str) -> None:
    if _current(key) and (name := st.session_state[key]):
        drafts.replace_widget(KNOB)
        _keep([*chosen(drafts.current()), name])


def _take_out(place: int, key: str) -> None:
    rewards = chosen(drafts.current())
    if key.startswith(drafts.widget(KNOB)) and place < len(rewards):
        drafts.replace_widget(KNOB)
        _keep(rewards[:place] + rewards[place + 1 :])


def _typed(knob: Knob, raw: Any) -> Any:
    """What a person typed. A text is kept as it is: a blank at its end is part of what is looked for."""
    if knob.kind == "text" and isinstance(raw, str):
        return raw or knob.default
    return drafts.typed(knob, raw)


def _took(place: int, knob: Knob, key: str) -> None:
    """Take what a person set: only what differs from the default is written down."""
    rewards = chosen(drafts.current())
    if not _current(key) or place >= len(rewards):
        return
    name, given = _read(rewards[place])
    given[knob.name] = _typed(knob, st.session_state[key])
    known = {**TABLE[name].parameters, WEIGHT: _WEIGHT}
    kept = {n: v for n, v in given.items() if n not in known or word(v) != word(known[n].default)}
    rewards[place] = {name: kept} if kept else name
    _keep(rewards)
