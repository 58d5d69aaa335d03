"""The arena page's mechanism: a battle is set up, fought behind sealed sides, voted on, and only then told who was who.

As long as a battle is sealed, nothing that is drawn differs between its sides but their texts: no name, no checksum, no
time, no order of arrival. The page's address has the battle's id only.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st
from streamlit.runtime import exists, get_instance
from streamlit.runtime.scriptrunner import get_script_run_ctx

from tuner.chats import battle as battles
from tuner.chats import writing
from tuner.chats.battle import Battle, Contestant
from tuner.chats.talk import OPEN, Decoding
from tuner.config.knobs import ConfigError
from tuner.data.catalog import read_catalog
from tuner.data.entries import Entry
from tuner.data.formats import Dropped, convert
from tuner.text.lookup import mark, tr
from tuner.text.message import message, render
from tuner.tracking.votes import BASE, Said
from tuner.ui import chat, datasets, decoding, login, serving, state, talk_view, theme, writes
from tuner.ui.offers import here
from tuner.ui.words import safe

TYPED = "typed"
TRIES = 30
"""Rows of a data set that are looked at for a prompt."""
PAUSE = 0.1
SIDES = (mark("Left"), mark("Right"))
VOTES: Mapping[Said, tuple[str, str, str]] = {
    "left": (mark("Left is better"), ":material/arrow_back:", "1"),
    "right": (mark("Right is better"), ":material/arrow_forward:", "2"),
    "tie": (mark("Tie"), ":material/drag_handle:", "3"),
    "bad": (mark("Both are bad"), ":material/thumb_down:", "4"),
}
_SAID: Mapping[Said, str] = {
    "left": mark("You chose the left one."),
    "right": mark("You chose the right one."),
    "tie": mark("You voted for a tie."),
    "bad": mark("You voted that both are bad, which counts as a tie."),
}
_looking: dict[str, set[str]] = {}
"""The sessions that look at a battle, by its id."""


def opened() -> Battle | None:
    """The battle in the page's address."""
    found = battles.load(state.asked("battle"))
    if found is not None:
        context = get_script_run_ctx()
        _looking.setdefault(found.id, set()).add(context.session_id if context else "")
    return found


def _watched(battle_id: str) -> bool:
    if not exists():
        return True
    return any(get_instance().is_active_session(session) for session in _looking.get(battle_id, ()))


# --- setting one up ------------------------------------------------------------------------------------------------


def setup() -> None:
    """Who may be drawn, and where the prompt comes from; then a battle. It begins as the one in the address was."""
    like = battles.load(state.asked("like"))
    bases = list(dict.fromkeys([*([like.base] if like else ()), *serving.bases()]))
    with theme.card("arena-setup", gap="small"):
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            base = st.selectbox(
                tr("Base model"), bases, index=0 if bases else None, key="arena-base", width=230
            )
            base = str(base or "")
            known = serving.versions(base)
            options = [BASE, *known]
            usual = [one for one in (like.pool if like and like.base == base else ()) if one in options]
            pool = st.multiselect(
                tr("Contestants"),
                options,
                default=usual or options[:3],
                format_func=lambda one: serving.named(one, known),
                key=f"arena-pool-{base}",
                help=tr("Two are drawn for each battle, pairs with the fewest battles first."),
            )
            chosen = _decoding(like)
        _prompt(base, pool, chosen, like)
        if base:
            serving.line(base, "", pool, "arena", busy=False)
    if base and len(options) < 2:
        st.caption(tr("This base model has no registered adapter yet. Every finished run registers one."))


def _decoding(like: Battle | None) -> Decoding:
    st.session_state.setdefault("arena-decoding-now", like.decoding if like else Decoding())
    now: Decoding = st.session_state["arena-decoding-now"]
    decoding.popover(now, "arena", lambda made: st.session_state.__setitem__("arena-decoding-now", made))
    return now


def _prompt(base: str, pool: Sequence[str], chosen: Decoding, like: Battle | None) -> None:
    sets = _sets()
    sources = [TYPED, *sets]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        source = st.selectbox(
            tr("Prompts"),
            sources,
            index=sources.index(like.source) if like and like.source in sources else 0,
            format_func=lambda one: tr("Typed here") if one == TYPED else tr("From {one}", one=one),
            key="arena-source",
            width=230,
            help=tr("A data set gives the prompt of a random row."),
        )
        tag = st.text_input(
            tr("Tag"),
            value=like.tag if like else "",
            key=f"arena-tag-{source}",
            placeholder="" if source == TYPED else str(source),
            max_chars=40,
            width=180,
            help=tr("The kind of prompt. The scoreboard can be filtered by tag."),
        )
        typed = ""
        if source == TYPED:
            typed = st.text_input(tr("Prompt"), key="arena-prompt", placeholder=tr("The prompt for both"))
        lacks = _lacking(base, pool, source == TYPED and not typed.strip())
        st.button(
            tr("Start a battle"),
            type="primary",
            icon=":material/swords:",
            key="arena-start",
            on_click=_begin,
            args=(base, tuple(pool), str(source), typed, str(tag or ""), chosen),
            **writes.locked(help=lacks or None, disabled=bool(lacks)),
        )


def _lacking(base: str, pool: Sequence[str], no_prompt: bool) -> str:
    if not base:
        return tr("Choose a base model first.")
    if len(pool) < 2:
        return tr("Choose at least two contestants.")
    return tr("Type a prompt first.") if no_prompt else ""


def _sets() -> dict[str, Entry]:
    """The data sets of the catalog that have prompts."""
    try:
        entries = read_catalog(talk_view.folder())
    except ConfigError:
        return {}
    return {
        name: one
        for name, one in entries.items()
        if one.local and here(one) and one.kind not in ("text", "decisions")
    }


def _begin(base: str, pool: Sequence[str], source: str, typed: str, tag: str, chosen: Decoding) -> None:
    """Draw a battle, see to a server, and ask both sides at once."""
    known = serving.versions(base)
    contestants = [Contestant(one, known[one].sha256 if one in known else "") for one in pool]
    try:
        messages = [{"role": "user", "content": typed.strip()}] if source == TYPED else drawn_prompt(source)
        run = serving.start(base, pool)
        if run is None:
            return
        made = writes.begin_battle(
            base,
            contestants,
            messages,
            tag=tag or ("" if source == TYPED else source),
            source="" if source == TYPED else source,
            decoding=chosen,
            by=login.person().name,
            run=run.id,
        )
        _looking[made.id] = set()
        writes.ask_both(made, serving.connect(run), partial(_watched, made.id))
    except writes.FAILED as error:
        said = error.problems[0].sentence if isinstance(error, ConfigError) else error
        st.toast(safe(said), icon=":material/error:")
        return
    state.go("arena", battle=made.id)


def drawn_prompt(source: str) -> list[dict[str, str]]:
    """The messages of a row of a data set up to its last question, the row taken at random.

    Raises ValueError where none of those looked at has one.
    """
    entry = read_catalog(talk_view.folder())[source]
    pages = datasets.pages_of(entry)
    for _ in range(TRIES):
        row = convert(pages.row(secrets.randbelow(max(1, pages.counted))).record, entry)
        if not isinstance(row, Dropped) and (asked := _asked(row)):
            return asked
    raise ValueError(tr("No prompt was found in {source}; choose another data set.", source=source))


def _asked(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row's turns up to the last question; none where tools or pictures have a part in it."""
    turns = list(row.get("messages") or ())
    while turns and turns[-1]["role"] != "user":
        turns.pop()
    if row.get("images") or any(one["role"] == "tool" or one.get("tool_calls") for one in turns):
        return []
    return [{"role": str(one["role"]), "content": str(one["content"])} for one in turns]


# --- a battle ------------------------------------------------------------------------------------------------------


def fight(battle: Battle) -> None:
    """The prompt, both answers once both are there, the vote, and after it who was who."""
    chat.turns(battle.messages, f"battle-{battle.id}")
    if battle.said is not None:
        _told(battle)
    elif not battle.ready:
        _wait(battle)
    elif battle.whole:
        _sides(battle)
        _vote(battle)
    else:
        _void(battle)


def _wait(battle: Battle) -> None:
    """Two sides alike until both answers are whole. Whatever the person does meanwhile ends the wait, and no answer."""
    alive = writing.of(battle.id)
    if not alive and not (now := battles.load(battle.id) or battle).ready:
        _void(now)
        return
    with st.container(key="sealed"):
        for place, name in zip(st.columns(2, gap="small"), SIDES, strict=True):
            with place, st.container(key=f"bubble-sealed-{name.lower()}", gap="xsmall"):
                st.caption(f":material/lock: {name}")
                st.caption(tr(":material/hourglass_top: Both answers appear when both are complete …"))
    standing = serving.line(battle.base, battle.run, (), "battle", busy=True)
    st.button(
        tr("Skip"), icon=":material/skip_next:", key="skip", on_click=_skip, args=(battle,), **writes.locked()
    )
    while any(one.alive for one in alive):
        standing()
        # Here Streamlit looks whether something else is to be done.
        st.session_state["arena-follows"] = battle.id
        time.sleep(PAUSE)
    st.rerun()


def _skip(battle: Battle) -> None:
    """Leave a battle; what is still being written for it ends."""
    try:
        writes.silence(battle.id)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return
    state.go("arena", like=battle.id)


def _sides(battle: Battle, names: Sequence[str] = SIDES, icon: str = "lock") -> None:
    for place, side, name, answer in zip(
        st.columns(2, gap="small"), ("left", "right"), names, battle.answers, strict=True
    ):
        chosen = "chosen" if battle.said == side else "sealed"
        with place, st.container(key=f"bubble-{chosen}-{side}", gap="xsmall"):
            st.caption(f":material/{icon}: {safe(name)}")
            talk_view.words(answer)


def _vote(battle: Battle) -> None:
    with st.container(horizontal=True, horizontal_alignment="center", gap="small", key="votes"):
        for said, (label, icon, key) in VOTES.items():
            st.button(
                label,
                icon=icon,
                key=f"vote-{said}",
                shortcut=key,
                on_click=_cast,
                args=(battle, said),
                **writes.locked(),
            )
    st.caption(tr("Keys 1 to 4 vote as well. The models are shown after the vote."), text_alignment="center")


def _cast(battle: Battle, said: Said) -> None:
    try:
        writes.vote(battle.id, said, login.person().name)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")


def _void(battle: Battle) -> None:
    """A battle that cannot be judged, and why; the reason may name a side, so it is told of both together."""
    lost = {render(message("answer.lost"))} if any(one.state in OPEN for one in battle.answers) else set()
    said = lost | {render(one.why) for one in battle.answers if one.state not in ("done", *OPEN) and one.why}
    st.markdown(
        tr(
            ":orange[:material/block: **This battle does not count.**] {sorted}",
            sorted=safe(" ".join(sorted(said))),
        )
    )
    _onwards(battle)


def _told(battle: Battle) -> None:
    known = serving.versions(battle.base)
    names = [serving.named(side.id, known) for side in (battle.left, battle.right)]
    sums = [answer.checksum for answer in battle.answers]
    _sides(battle, [" · ".join(filter(None, pair)) for pair in zip(names, sums, strict=True)], "lock_open")
    st.markdown(f":material/how_to_vote: {tr(_SAID[battle.said or 'tie'])}")
    _onwards(battle)


def _onwards(battle: Battle) -> None:
    with st.container(horizontal=True, gap="small", key="onwards"):
        if battle.source:
            st.button(
                tr("Next battle"),
                type="primary",
                icon=":material/swords:",
                key="next-battle",
                shortcut="n",
                on_click=_begin,
                args=(battle.base, battle.pool, battle.source, "", battle.tag, battle.decoding),
                **writes.locked(help=tr("The same contestants, another row.")),
            )
        st.button(
            tr("Another setup") if battle.source else tr("Another battle"),
            icon=":material/tune:" if battle.source else ":material/swords:",
            type="tertiary" if battle.source else "primary",
            key="another-setup",
            on_click=state.go,
            args=("arena",),
            kwargs={"like": battle.id},
        )
