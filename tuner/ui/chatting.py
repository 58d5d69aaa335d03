"""The chat page's mechanism: which talk is open, whom it is with, what is sent, and answers that appear as they are written.

A talk lives on disk under the id in the page's address; session state holds none of it. Answers are written by threads
that belong to no session, so that a reload, or a second browser, finds them as they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import streamlit as st
from streamlit.runtime import exists, get_instance
from streamlit.runtime.scriptrunner import get_script_run_ctx

from tuner import paths
from tuner.chats import kept, writing
from tuner.chats import talk as talks
from tuner.chats.talk import MOST_COLUMNS, OPEN, Answer, Decoding, Talk
from tuner.config.config import Config
from tuner.config.knobs import ConfigError
from tuner.config.vision import takes_pictures
from tuner.data import templates
from tuner.data.pictures.opening import ENDINGS, PictureError
from tuner.data.pictures.places import Keep
from tuner.data.pictures.places import kept as kept_picture
from tuner.jobs.serving import same_base
from tuner.plan.facts import model_of
from tuner.text.lookup import tr
from tuner.text.message import message
from tuner.tracking.votes import BASE
from tuner.ui import decoding, login, serving, state, talk_view, theme, writes
from tuner.ui.words import safe

PAUSE = 0.08
"""Seconds between two looks at answers that are being written."""
_looking: dict[str, set[str]] = {}
"""The sessions that look at a talk, by its id."""


# --- which talk ----------------------------------------------------------------------------------------------------


def current() -> Talk:
    """The talk in the page's address; a new one, which is not on disk yet, where it names none."""
    found = kept.load(state.asked("chat"))
    if found is None:
        found = _fresh()
    state.tell(chat=found.id, base=None, column=None)
    _looking.setdefault(found.id, set()).add(_session())
    return _without_lost(found)


def _fresh() -> Talk:
    """A talk to begin with: what the address asks for, else with the base that there is most of."""
    asked = state.asked("chat")
    begun = st.session_state.get("chat-begun")
    if isinstance(begun, Talk) and begun.id == asked:
        return begun
    known = serving.bases()
    base = state.asked("base") or (known[0] if known else "")
    columns = [
        column for column in state.asked_all("column") if column == BASE or column in serving.versions(base)
    ]
    made = Talk(
        asked if kept.is_id(asked) else talks.fresh_id(),
        base,
        tuple(columns[:MOST_COLUMNS]) or _first(base),
        by=login.person().name,
    )
    st.session_state["chat-begun"] = made
    return made


def _first(base: str) -> tuple[str, ...]:
    """What answers if nobody chose: the version with an alias, else the newest, beside the base."""
    known = serving.versions(base)
    best = next((name for name, row in known.items() if row.aliases), next(iter(known), None))
    return (BASE, best) if best else (BASE,)


def _without_lost(talk: Talk) -> Talk:
    """The talk with answers whose dashboard ended while they were written told as such."""
    alive = {one.key[1:] for one in writing.of(talk.id)}
    for turn_id, column, place in talks.unwritten(talk):
        if (turn_id, column, place) not in alive:
            talk = _settled(talk, turn_id, column, place)
    return talk


def _settled(talk: Talk, turn_id: str, column: str, place: int) -> Talk:
    newest = kept.load(talk.id) or talk  # it may have ended since the talk was read
    answer = newest.turns[turn_id].answers[column][place]
    if answer.state in OPEN:
        answer = replace(answer, state="failed", why=message("answer.lost"))
    return talks.answered(talk, turn_id, column, place, answer)


def _session() -> str:
    context = get_script_run_ctx()
    return context.session_id if context else ""


def _watched(talk_id: str) -> bool:
    """Whether a browser is still connected that opened this talk."""
    if not exists():
        return True
    server = get_instance()
    return any(server.is_active_session(session) for session in _looking.get(talk_id, ()))


def change(talk: Talk, new: Callable[[Talk], Talk]) -> Talk | None:
    """Write down what becomes of the talk; None, with a word to the person, where that cannot be."""
    try:
        return writes.change_talk(talk, new)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return None


def turned(talk: Talk, new: Callable[[Talk], Talk]) -> None:
    """Open another branch or answer, which stays so."""
    change(talk, new)


# --- whom with, and how --------------------------------------------------------------------------------------------


def head(talk: Talk) -> None:
    """The page's title, with what can be done with talks as a whole."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="chat-head"):
        theme.head(tr("Chat"), tr("Chat with a base model and its adapters, side by side."))
        st.space("stretch")
        _earlier(talk)
        if talk.turns:
            st.download_button(
                tr("Export"),
                lambda: json.dumps(talks.exported(talk), ensure_ascii=False, indent=2),
                f"chat-{talk.id[:8]}.json",
                "application/json",
                icon=":material/download:",
                on_click="ignore",
                help=tr("The open branch as messages, and the whole tree of turns, as JSON."),
            )
        st.button(tr("New chat"), icon=":material/add_comment:", on_click=_anew, args=(talk,), key="new-chat")


def _anew(talk: Talk) -> None:
    """Another talk, with the same models and settings."""
    made = replace(talk, id=talks.fresh_id(), turns={}, leaf="", by=login.person().name)
    st.session_state["chat-begun"] = made
    state.go("chat", chat=made.id)


def _earlier(talk: Talk) -> None:
    with st.popover(tr("Chats"), icon=":material/history:", key="chats"):
        found = talks.titles(kept.newest(login.person().name))
        if not found:
            st.caption(tr("No chats yet. Each chat is saved on this machine under its own address."))
        for id, title in found.items():
            st.button(
                safe(title[:60]) or "…",
                key=f"open-chat-{id}",
                type="tertiary",
                icon=":material/chat_bubble:" if id != talk.id else ":material/chat:",
                on_click=state.go,
                args=("chat",),
                kwargs={"chat": id},
            )
        if talk.turns:
            st.button(
                tr("Delete this chat"),
                icon=":material/delete:",
                type="tertiary",
                key=f"delete-{talk.id}",
                on_click=_delete,
                args=(talk,),
                **writes.locked(),
            )


def _delete(talk: Talk) -> None:
    try:
        writes.silence(talk.id)
        writes.forget_talk(talk.id)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return
    _anew(talk)


def settings(talk: Talk) -> None:
    """Base, columns, system prompt, tools and decoding, each written down as it is changed."""
    bases = list(dict.fromkeys([*filter(None, [talk.base]), *serving.bases()]))
    known = serving.versions(talk.base)
    options = list(dict.fromkeys([BASE, *known, *talk.columns]))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="chat-settings"):
        st.selectbox(
            tr("Base model"),
            bases,
            index=bases.index(talk.base) if talk.base in bases else None,
            accept_new_options=True,
            placeholder=tr("A folder or a hub name"),
            key=f"base-{talk.id}",
            on_change=_take_base,
            args=(talk,),
            width=230,
            **writes.locked(help=tr("The model that is loaded.")),
        )
        st.multiselect(
            tr("Who answers"),
            options,
            default=list(talk.columns),
            format_func=lambda column: serving.named(column, known),
            max_selections=MOST_COLUMNS,
            key=f"columns-{talk.id}-{talk.base}",
            on_change=_take_columns,
            args=(talk,),
            placeholder=tr("Choose one to four"),
            **writes.locked(help=tr("Each answers on its own, with the same seed.")),
        )
        decoding.popover(talk.decoding, f"chat-{talk.id}", partial(_take_decoding, talk))
        _system(talk)


def _system(talk: Talk) -> None:
    icon = ":material/check:" if talk.system or talk.tools or talk.template else ":material/settings:"
    with st.popover(tr("System prompt"), icon=icon, key=f"system-of-{talk.id}"):
        for name, label, help in (
            ("system", tr("System prompt"), tr("What every model reads before the first message.")),
            (
                "tools",
                tr("Tools"),
                tr("A JSON list of functions that models may call, as OpenAI's API takes it."),
            ),
        ):
            st.text_area(
                label,
                value=getattr(talk, name),
                key=f"{name}-{talk.id}",
                height=120,
                width=420,
                on_change=_take_text,
                args=(talk, name),
                **writes.locked(help=help),
            )
        names = ["", *templates.names()]
        st.selectbox(
            tr("Chat template"),
            names,
            index=names.index(talk.template) if talk.template in names else 0,
            format_func=lambda name: name or tr("Each model's own"),
            key=f"template-{talk.id}",
            width=420,
            on_change=_take_template,
            args=(talk,),
            **writes.locked(
                help=tr(
                    "How a chat is formatted for the model. Use the template that the model was trained with."
                )
            ),
        )
        try:
            talks.read_tools(talk.tools)
        except ValueError as error:
            st.caption(f":orange[:material/warning: {safe(error)}]")


def _take_base(talk: Talk) -> None:
    base = str(st.session_state.get(f"base-{talk.id}") or "")
    same = same_base(base, talk.base)
    _take(talk, lambda now: replace(now, base=base, columns=now.columns if same else _first(base)))


def _take_columns(talk: Talk) -> None:
    chosen = tuple(st.session_state.get(f"columns-{talk.id}-{talk.base}") or ())
    _take(talk, lambda now: replace(now, columns=chosen))


def _take_decoding(talk: Talk, made: Decoding) -> None:
    _take(talk, lambda now: replace(now, decoding=made))


def _take_text(talk: Talk, name: str) -> None:
    text = str(st.session_state.get(f"{name}-{talk.id}") or "")
    _take(talk, lambda now: replace(now, system=text) if name == "system" else replace(now, tools=text))


def _take_template(talk: Talk) -> None:
    name = str(st.session_state.get(f"template-{talk.id}") or "")
    _take(talk, lambda now: replace(now, template=name))


def _take(talk: Talk, new: Callable[[Talk], Talk]) -> None:
    """A setting. It is written down before anything is said, too: a reload is to find what was typed."""
    if writes.may():
        change(talk, new)
    else:
        st.session_state["chat-begun"] = new(talk)


# --- what is sent --------------------------------------------------------------------------------------------------


def busy(talk: Talk) -> bool:
    """Whether an answer is on its way."""
    return bool(writing.of(talk.id))


def compose(talk: Talk) -> None:
    """The field for the next message, which waits while answers are written."""
    why = "" if talk.columns and talk.base else tr("Choose a base model and who answers above.")
    last = talks.path(talk)[-1:]
    called = any(
        answer is not None and answer.calls for turn in last for answer in map(turn.answer, talk.columns)
    )
    if called and not busy(talk):
        st.segmented_control(
            tr("Your next message is"),
            ["user", "tool"],
            default="user",
            format_func={"user": tr("from you"), "tool": tr("the tool's result")}.__getitem__,
            required=True,
            key=f"speaks-{talk.id}",
        )
    sees = bool(talk.base) and takes_pictures(model_of(Config(model_name_or_path=talk.base)).config)
    st.chat_input(
        why or (tr("Write a message, or add a picture") if sees else tr("Write a message")),
        key=f"say-{talk.id}",
        disabled=bool(why) or busy(talk) or not writes.may(),
        on_submit=_say,
        args=(talk,),
        accept_file="multiple" if sees else False,
        file_type=sorted(set(ENDINGS.values())) if sees else None,
        max_upload_size=LARGEST_UPLOAD if sees else None,
    )


LARGEST_UPLOAD = 16  # MB


def _say(talk: Talk) -> None:
    said = st.session_state.get(f"say-{talk.id}")
    text = str(getattr(said, "text", said) or "")
    try:
        keep = Keep(paths.shown())
        pictures = [kept_picture(file.getvalue(), keep).name for file in getattr(said, "files", None) or ()]
    except (PictureError, OSError) as error:
        st.toast(safe(error), icon=":material/error:")
        return
    role: Literal["user", "tool"] = "tool" if st.session_state.get(f"speaks-{talk.id}") == "tool" else "user"
    if text.strip() or pictures:
        ask(talk, lambda now: talks.asked(now, text, role=role, pictures=pictures)[0])


def ask(talk: Talk, new: Callable[[Talk], Talk]) -> None:
    """Write down what is asked, see to a server, and ask it for every answer that is to come."""
    run = serving.start(talk.base, talk.columns)
    if run is None:
        return
    made = change(talk, lambda now: replace(new(now), run=run.id))
    if made is None:
        return
    try:
        for waiting in [one for one in talks.unwritten(made) if one not in talks.unwritten(talk)]:
            writes.ask(made, *waiting, serving.connect(run), partial(_watched, made.id))
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")


def again(talk: Talk, turn_id: str, columns: Sequence[str]) -> None:
    ask(talk, lambda now: talks.again(now, turn_id, columns))


def edited(talk: Talk, turn_id: str) -> None:
    """Ask the message in another wording: a branch of its own, beside the one that there is."""
    text = str(st.session_state.get(f"edit-{turn_id}") or "")
    turn = talk.turns[turn_id]
    if text.strip():
        shown = turn.pictures
        ask(talk, lambda now: talks.asked(now, text, turn.parent, turn.role, shown)[0])


def stop(talk: Talk) -> None:
    """End every answer of the talk, and with it the server's work."""
    try:
        writes.silence(talk.id)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")


def add(talk: Talk, turn_id: str, column: str) -> None:
    """Keep the talk up to this answer as a row of a data set."""
    name = str(st.session_state.get(f"set-{turn_id}-{column}") or "").strip()
    try:
        made = writes.add_row(name, talks.exchange(talk, turn_id, column), talk_view.folder())
    except writes.FAILED as error:
        said = error.problems[0].sentence if isinstance(error, ConfigError) else error
        st.toast(safe(said), icon=":material/error:")
        return
    st.toast(tr("Added to {name}; Datasets shows it.", name=safe(made.name)), icon=":material/check:")


# --- what is shown -------------------------------------------------------------------------------------------------


def standing(talk: Talk) -> serving.Redraw:
    """Where the talk's server stands; how to draw that anew while answers are on their way."""
    if not talk.base:
        return lambda: None
    return serving.line(talk.base, talk.run, talk.columns, f"chat-{talk.id}", busy(talk))


def shown(talk: Talk, standing: serving.Redraw) -> None:
    """The open branch, turn by turn; answers that are on their way grow until they are whole."""
    may = writes.may() and not busy(talk)
    acts = talk_view.Acts(turned, again, edited, stop, add, may)
    places = talk_view.turns(talk, serving.versions(talk.base), acts)
    _follow(talk, places, standing)


def _follow(talk: Talk, places: talk_view.Places, standing: serving.Redraw) -> None:
    """Show answers as they are written, until all are. Whatever the person does meanwhile ends this, and no answer."""
    if not talks.unwritten(talk):
        return
    alive = {one.key: one for one in writing.of(talk.id)}  # none, if they ended while the page was drawn
    seen: dict[object, Answer] = {}
    while any(one.alive for one in alive.values()):
        if any(one.answer.state == "waiting" for one in alive.values()) or not seen:
            standing()
        for key, one in alive.items():
            if key in places and seen.get(key) is not one.answer:
                seen[key] = one.answer
                places[key](one.answer)
        # Here Streamlit looks whether something else is to be done.
        st.session_state["chat-follows"] = talk.id
        time.sleep(PAUSE)
    st.rerun()
