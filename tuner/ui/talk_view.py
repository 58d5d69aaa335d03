"""A talk as people read it: what was asked, each column's answer beside the others, thoughts folded, and what can be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from tuner import paths
from tuner.chats import talk as talks
from tuner.chats.talk import OPEN, Answer, Talk, Turn
from tuner.config.config import KNOBS
from tuner.config.knobs import ConfigError
from tuner.data import additions
from tuner.data.catalog import read_catalog
from tuner.text.lookup import mark, tr
from tuner.text.message import render
from tuner.tracking.adapters import AdapterRow
from tuner.ui import chat, draft, pictures, serving, writes
from tuner.ui.words import count, duration, safe

Places = dict[Any, Callable[[Answer], None]]
"""Where answers on their way are drawn, by the key of each."""
WHOLE = 1_000_000
FIRST_SET = "my_chats"
NARROW = 300
"""Pixels that a column has at least."""
_COMING = {
    "waiting": mark(":material/hourglass_top: Waiting for the model …"),
    "writing": mark(":material/edit: Writing …"),
}
_ENDED = {
    "done": ":orange[:material/content_cut:]",
    "stopped": ":orange[:material/stop_circle:]",
    "failed": mark(":red[:material/error: No whole answer.]"),
}


_BRANCH = {"earlier": mark("Earlier branch"), "later": mark("Later branch")}
_ANSWER = {"earlier": mark("Earlier answer"), "later": mark("Later answer")}


@dataclass(frozen=True)
class Acts:
    """What a person can set off, and whether this one may now."""

    change: Callable[[Talk, Callable[[Talk], Talk]], None]
    again: Callable[[Talk, str, Sequence[str]], None]
    edited: Callable[[Talk, str], None]
    stop: Callable[[Talk], None]
    add: Callable[[Talk, str, str], None]
    may: bool


def turns(talk: Talk, known: Mapping[str, AdapterRow], acts: Acts) -> Places:
    """Every turn of the open branch; where the answers are drawn that are not whole yet."""
    places: Places = {}
    for turn in talks.path(talk):
        with st.container(key=f"turn-{turn.id}", gap="xsmall"):
            _asked(talk, turn, acts)
            columns = [column for column in (*talk.columns, *turn.answers) if column in turn.answers]
            with st.grid(len(set(columns)) or 1, min_column_width=NARROW, gap="small") as grid:
                for column in dict.fromkeys(columns):
                    with grid.cell(), st.container(gap="xsmall"):
                        _column(talk, turn, column, known, acts, places)
            if turn.id == talk.leaf:
                _of_the_last(talk, turn, acts)
    return places


# --- what was asked ------------------------------------------------------------------------------------------------


def _asked(talk: Talk, turn: Turn, acts: Acts) -> None:
    with st.container(horizontal=True, vertical_alignment="top", gap="xsmall", key=f"asked-{turn.id}"):
        with st.container(gap="xsmall"):
            pictures.strip(turn.pictures, paths.shown(), f"asked-{turn.id}")
            chat.bubble(turn.role, turn.text, f"asked-{turn.id}", longest=WHOLE)
        with st.container(
            horizontal=True,
            vertical_alignment="center",
            gap="xsmall",
            width="content",
            key=f"quiet-asked-{turn.id}",
        ):
            _branches(talk, turn, acts)
            st.caption(_seed(turn), width="content")
            with st.popover(
                tr("Edit"),
                icon=":material/edit:",
                type="tertiary",
                help=tr("Ask in other words, as another branch."),
            ):
                st.text_area(tr("Message"), turn.text, key=f"edit-{turn.id}", width=420, height=120)
                st.button(
                    tr("Ask again"),
                    key=f"edited-{turn.id}",
                    type="primary",
                    on_click=acts.edited,
                    args=(talk, turn.id),
                    disabled=not acts.may,
                )


def _seed(turn: Turn) -> str:
    """The seed of the answers that are open; several where some were asked for again."""
    seeds = {answer.seed for answer in map(turn.answer, turn.answers) if answer is not None}
    return tr("seed {seed}", seed=seeds.pop()) if len(seeds) == 1 else tr("{number} seeds", number=len(seeds))


def _branches(talk: Talk, turn: Turn, acts: Acts) -> None:
    """Which of the branches that begin here is open."""
    beside = talks.siblings(talk, turn)
    if len(beside) < 2:
        return
    at = beside.index(turn.id)

    def open_branch(step: int) -> None:
        acts.change(talk, lambda now: talks.opened(now, beside[at + step]))

    _pager(f"branch-{turn.id}", at, len(beside), open_branch, _BRANCH, acts)


def _pager(
    key: str, at: int, of: int, go: Callable[[int], None], what: Mapping[str, str], acts: Acts
) -> None:
    for step, icon, name in ((-1, "chevron_left", "earlier"), (1, "chevron_right", "later")):
        if step == 1:
            st.caption(tr("{at} of {of}", at=at + 1, of=of), width="content")
        st.button(
            tr(what[name]),
            icon=f":material/{icon}:",
            key=f"icon-{name}-{key}",
            type="tertiary",
            help=tr(what[name]),
            disabled=not acts.may or not 0 <= at + step < of,
            on_click=go,
            args=(step,),
        )


# --- what was answered ---------------------------------------------------------------------------------------------


def _column(
    talk: Talk, turn: Turn, column: str, known: Mapping[str, AdapterRow], acts: Acts, places: Places
) -> None:
    answer = turn.answer(column)
    if answer is None:
        return
    place = turn.place(column)
    key = f"{turn.id}-{column.replace('/', '-')}-{place}"
    name = serving.named(column, dict(known))
    with st.container(key=f"bubble-assistant-{key}", gap="xsmall"):
        slot = st.empty()

    def draw(one: Answer) -> None:
        with slot.container(gap="xsmall"):
            written(one, name)

    draw(answer)
    if answer.state in OPEN:
        places[talk.id, turn.id, column, place] = draw
        return
    _beneath(talk, turn, column, answer, key, acts)


def written(answer: Answer, name: str) -> None:
    """An answer as far as it is written: its thoughts folded above, tool calls and its end below."""
    sum = f" · {safe(answer.checksum)}" if answer.checksum else ""
    st.caption(f":material/smart_toy: {safe(name)}{sum}")
    words(answer, tr("Thoughts") if answer.said or answer.state not in OPEN else tr("Thinking"))
    _end(answer)


def words(answer: Answer, folded: str = "") -> None:
    """What an answer says, and nothing of who said it or what it took."""
    if answer.thought:
        with st.expander(folded or tr("Thoughts"), icon=":material/psychology:", type="compact"):
            st.text(answer.thought)
    if answer.said:
        st.text(answer.said)
    for called, arguments in answer.calls:
        st.caption(tr(":material/build: calls **{called}**", called=safe(called)))
        st.code(arguments, language="json", wrap_lines=True)
    if answer.empty and answer.state == "done":
        st.caption(tr("Empty answer."))


def _end(answer: Answer) -> None:
    """That an answer is still to come, or why it ended before its end."""
    if answer.state in OPEN:
        if answer.empty and not answer.thought:
            st.caption(tr(_COMING[answer.state]))
    elif why := safe(render(answer.why)):
        st.caption(f"{tr(_ENDED[answer.state])} {why}")


def _beneath(talk: Talk, turn: Turn, column: str, answer: Answer, key: str, acts: Acts) -> None:
    """What an answer took, and what can be done with it."""
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key=f"quiet-{key}"):
        took = [count(answer.tokens, "token")] if answer.tokens else []
        took += [duration(answer.seconds)] if answer.seconds else []
        if took:
            st.caption(" · ".join(took), width="content")
        given = turn.answers[column]
        if len(given) > 1:
            at = turn.place(column)
            _pager(
                f"answer-{key}",
                at,
                len(given),
                lambda step: acts.change(talk, lambda now: talks.showing(now, turn.id, column, at + step)),
                _ANSWER,
                acts,
            )
        if turn.id == talk.leaf and len(talk.columns) > 1:
            st.button(
                tr("Another answer"),
                icon=":material/refresh:",
                key=f"icon-again-{key}",
                type="tertiary",
                help=tr("Another answer of this one"),
                disabled=not acts.may,
                on_click=acts.again,
                args=(talk, turn.id, [column]),
            )
        if answer.state == "done" and answer.said:
            _to_a_set(talk, turn, column, acts)


def _to_a_set(talk: Talk, turn: Turn, column: str, acts: Acts) -> None:
    name = f"set-{turn.id}-{column}"
    with st.popover(
        tr("Add to a data set"),
        icon=":material/playlist_add:",
        type="tertiary",
        key=f"icon-{name.replace('/', '-')}",
        help=tr("Add this exchange to a data set"),
    ):
        st.caption(tr("The chat up to this answer becomes a row, in OpenAI's messages."))
        st.selectbox(
            tr("Data set"),
            _sets(),
            index=0,
            accept_new_options=True,
            key=name,
            help=tr("One that grows by such rows, or a new name."),
        )
        st.button(
            tr("Add"),
            key=f"add-{name}",
            type="primary",
            icon=":material/playlist_add:",
            on_click=acts.add,
            args=(talk, turn.id, column),
            **writes.locked(),
        )


def folder() -> str:
    """The catalog that rows go into: the form's."""
    return str(draft.current().values.get("dataset_dir") or KNOBS["dataset_dir"].default)


def _sets() -> list[str]:
    try:
        found = [entry.name for entry in read_catalog(folder()).values() if additions.takes(entry)]
    except ConfigError:
        found = []
    return found or [FIRST_SET]


# --- the last turn -------------------------------------------------------------------------------------------------


def _of_the_last(talk: Talk, turn: Turn, acts: Acts) -> None:
    on_its_way = any(answer.state in OPEN for given in turn.answers.values() for answer in given)
    with st.container(horizontal=True, gap="small", key=f"last-{turn.id}"):
        if on_its_way:
            st.button(
                tr("Stop"),
                icon=":material/stop_circle:",
                key=f"stop-{talk.id}",
                on_click=acts.stop,
                args=(talk,),
                shortcut="Escape",
                **writes.locked(help=tr("Ends the answers here; the model stops, too.")),
            )
            return
        st.button(
            tr("Regenerate"),
            icon=":material/refresh:",
            key=f"regenerate-{turn.id}",
            on_click=acts.again,
            args=(talk, turn.id, list(talk.columns)),
            **writes.locked(
                help=tr("Another answer, beside the one that there is."),
                disabled=not acts.may or not talk.columns,
            ),
        )
        if turn.parent:
            st.button(
                tr("Back one turn"),
                icon=":material/undo:",
                type="tertiary",
                key=f"back-{turn.id}",
                help=tr("The next message branches off before this one, which stays."),
                disabled=not acts.may,
                on_click=lambda: acts.change(talk, lambda now: talks.back_to(now, turn.parent)),
            )
