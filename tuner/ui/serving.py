"""The server behind a page: which run answers for a base model, how far it is, why it ended, and a button to start it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from tuner.chats.completions import Unanswered
from tuner.chats.writing import Connect
from tuner.jobs import queue, serving
from tuner.jobs.serving import Endpoint
from tuner.runs.run import Run
from tuner.runs.status import ENDED
from tuner.text.lookup import tr
from tuner.text.message import term
from tuner.tracking.adapters import AdapterRow, find_adapters
from tuner.tracking.store import TrackerError
from tuner.tracking.votes import BASE
from tuner.ui import draft, writes
from tuner.ui.offers import offer
from tuner.ui.words import Colour, look, place, safe

Redraw = Callable[[], None]
LOADING_EVERY, LOADED_EVERY = 1.0, 4.0
"""Seconds between two looks at a server: one that answers may be unloaded while a page is open."""
OFFERED = 500
"""Versions that a field offers, the newest ones."""


# --- which models there are ----------------------------------------------------------------------------------------


@st.cache_data(ttl=3, show_spinner=False)
def _versions() -> list[AdapterRow]:
    with suppress(TrackerError):
        return list(find_adapters("", 1, OFFERED).items)
    return []


def versions(base: str) -> dict[str, AdapterRow]:
    """The registered versions of a base model by NAME/NUMBER, newest first."""
    return {f"{row.name}/{row.version}": row for row in _versions() if serving.same_base(row.base, base)}


def bases() -> list[str]:
    """The models that can be served: those that versions have, those found on this machine, the form's own; what is not
    on this machine comes after what is."""
    of_versions = [place(row.base) for row in _versions() if row.base]
    found = offer("model_name_or_path", {})
    here = found.choices if found else ()
    own = draft.current().values.get("model_name_or_path")
    every = [*of_versions, *here, *([str(own)] if own else ())]
    return sorted(dict.fromkeys(filter(None, every)), key=lambda base: base not in here)


def named(column: str, known: dict[str, AdapterRow]) -> str:
    """A contestant or column for the eye: the base, or a version with its aliases."""
    if column == BASE:
        return tr("Base model")
    row = known.get(column)
    name, _, number = column.rpartition("/")
    aliases = " ".join(f"@{alias}" for alias in row.aliases) if row else ""
    return f"{name} v{number} {aliases}".strip()


# --- how far the server is -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """Where the server of a base stands, for the eye; `at` only while it answers."""

    word: str
    colour: Colour
    icon: str
    said: str = ""
    run: Run | None = None
    at: Endpoint | None = None

    @property
    def ended(self) -> bool:
        """Whether somebody has to start it: there is none, or it is over."""
        return self.run is None or self.run.status().state in ENDED


def standing(base: str, last: str = "") -> Standing:
    """Where the server of a base is; `last` is the run that answered last, which may tell why there is none."""
    living = next((run for run in serving.living() if serves(run, base)), None)
    if living is not None:
        return _living(living)
    if last and (ended := _run(last)) is not None and serves(ended, base):
        status = ended.status()
        seen = look(status.state)
        return Standing(
            tr("Server {word}", word=seen.word.lower()), seen.colour, seen.icon, str(status.reason), ended
        )
    return Standing(
        tr("Not loaded"), "gray", ":material/power_settings_new:", tr("It loads with the first message.")
    )


def serves(run: Run, base: str) -> bool:
    """Whether a run answers, or answered, for a base model."""
    return serving.same_base(str(run.values().get("model_name_or_path")), base)


def _living(run: Run) -> Standing:
    if (at := serving.endpoint(run)) is not None:
        return Standing(tr("Ready"), "green", ":material/bolt:", "", run, at)
    status = run.status()
    if status.state == "queued":
        ahead = next((row.position for row in queue.queue() if row.id == run.id), 0)
        said = (
            tr("Waiting for a slot, number {ahead} in the queue.", ahead=ahead)
            if ahead
            else tr("Waiting for its turn.")
        )
        return Standing(tr("Queued"), "gray", ":material/schedule:", said, run)
    if status.state == "stopping":
        return Standing(tr("Stopping"), "orange", ":material/pause_circle:", "", run)
    doing = term("phase", status.phase).capitalize() if status.phase else tr("The worker is starting")
    return Standing(tr("Loading"), "blue", ":material/hourglass_top:", tr("{doing}.", doing=doing), run)


def _run(run_id: str) -> Run | None:
    with suppress(ValueError):
        found = Run(run_id)
        return found if found.exists else None
    return None


def connect(run: Run) -> Connect:
    """Where this run answers, for who waits for it in a thread of his own."""

    def where() -> Endpoint | None:
        if (at := serving.endpoint(run)) is not None:
            return at
        status = run.status()
        if status.state in ENDED:
            raise Unanswered(
                tr("The server has ended. {reason}", reason=status.reason or tr("Its log says why."))
            )
        return None

    return where


# --- on the page ---------------------------------------------------------------------------------------------------


def line(base: str, last: str, columns: Sequence[str], key: str, busy: bool, unloaded: str = "") -> Redraw:
    """The line that says where the server stands, with a button where somebody has to start it; `unloaded` is said
    instead of what is true of a chat, where the first message starts it.

    While answers are on their way the page draws it anew by what this returns; else it does so itself.
    """
    with st.container(key="serving-line"):
        if busy:
            slot = st.empty()
            return partial(_redrawn, slot, base, last, [])
        seen = standing(base, last)
        every = None if seen.ended else LOADED_EVERY if seen.at else LOADING_EVERY
        st.fragment(_watched, run_every=every)(base, last, columns, key, seen.word, unloaded)
    return lambda: None


def _redrawn(slot: DeltaGenerator, base: str, last: str, before: list[Standing]) -> None:
    seen = standing(base, last)
    if before != [seen]:
        before[:] = [seen]
        with slot.container():
            _told(seen)


def _watched(base: str, last: str, columns: Sequence[str], key: str, before: str, unloaded: str) -> None:
    seen = standing(base, last)
    if seen.word != before:
        st.rerun()  # the whole page: what can be asked now is another thing
    if unloaded and seen.run is None:
        seen = replace(seen, said=unloaded)
    _told(seen, partial(_starting, seen, base, columns, key) if seen.ended else None)


def _starting(seen: Standing, base: str, columns: Sequence[str], key: str) -> None:
    st.button(
        tr("Start it again") if seen.run else tr("Load it now"),
        icon=":material/power_settings_new:",
        type="tertiary",
        key=f"start-server-{key}",
        on_click=_start,
        args=(base, tuple(columns)),
        **writes.locked(),
    )


def _told(seen: Standing, then: Callable[[], None] | None = None) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.badge(seen.word, icon=seen.icon, color=seen.colour)
        if seen.said:
            st.caption(safe(seen.said), width="content")
        if seen.run is not None:
            st.page_link(
                "pages/runs.py",
                label=tr("Open run"),
                icon=":material/monitoring:",
                query_params={"run": seen.run.id},
                width="content",
            )
        if then is not None:
            then()


def _start(base: str, columns: tuple[str, ...]) -> None:
    start(base, columns)


def start(base: str, columns: Sequence[str]) -> Run | None:
    """The run that answers for a base, begun if there is none; None, with a word to the person, where that fails."""
    try:
        return writes.serve(base, [column for column in columns if column != BASE])
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return None
