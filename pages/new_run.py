"""New run: a config drawn from the knobs, beside a card that says what it amounts to."""

import streamlit as st

from tuner.config.config import Config
from tuner.text.lookup import tr
from tuner.ui import draft as drafts
from tuner.ui import drawn, form, judged, run_card, state, theme, trying, writes
from tuner.ui.words import count, safe


def take(draft: drafts.Draft, problem: str) -> None:
    """Put another starting point in the form, or say why it cannot be read."""
    if problem:
        st.session_state["new-run-word"] = problem
    else:
        drafts.start_over(draft)


def start_from_choice() -> None:
    take(*drafts.from_start(st.session_state["start-from"]))


def start_from_upload() -> None:
    if file := st.session_state.get("start-file"):
        take(*drafts.from_text(file.getvalue(), file.name))


def launch(config: Config, name: str) -> None:
    """Queue the run and open its page."""
    try:
        run = writes.submit(config, name)
    except writes.FAILED as error:
        st.session_state["new-run-word"] = str(error)
        return
    drafts.launched(drafts.current())
    state.go("runs", run=run.id)


def undo() -> None:
    """The way back from all changes, where there are any."""
    draft = drafts.current()
    if draft.changes and st.button(
        tr("Undo {changes}", changes=count(len(draft.changes), "change")),
        icon=":material/restart_alt:",
        type="tertiary",
    ):
        drafts.start_over(drafts.Draft(start=draft.start, base=draft.base))
        st.rerun()


if run_id := state.asked("clone"):
    state.tell(clone=None)
    take(*drafts.from_run(run_id))
elif recipe := state.asked("start"):
    state.tell(start=None)
    drafts.open_with(recipe)
drafts.address()

theme.head(
    tr("New run"),
    tr("Choose a model, data and a method. Every parameter has an explanation and its usual values."),
)
if word := st.session_state.pop("new-run-word", ""):
    st.warning(safe(word), icon=":material/warning:")

draft = drafts.current()
starts = drafts.starts()
with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="new-run-bar"):
    st.selectbox(
        tr("Start from"),
        list(starts),
        index=None,
        format_func=lambda k: starts.get(k, k),
        placeholder=drafts.called(draft.start),
        key="start-from",
        on_change=start_from_choice,
        width=240,
    )
    with st.popover(tr("This preset"), icon=":material/info:"):
        run_card.changes(dict(draft.base))
    with st.popover(tr("Load"), icon=":material/upload_file:"):
        st.file_uploader(
            tr("A YAML file of tuner or LLaMA-Factory"),
            type=["yaml", "yml", "json"],
            key="start-file",
            max_upload_size=1,
            on_change=start_from_upload,
        )
    st.fragment(undo, key=drawn.UNDO)()
with st.container(key="new-run-split"):
    fields, side = st.columns([2.1, 1], gap="medium")
with fields:
    below = {"Rewards": lambda: trying.panel(*judged.current())}
    st.fragment(form.show, key=drawn.FORM)(below)
with side, st.container(key="new-run-side"):
    st.fragment(run_card.show, key=drawn.CARD)(launch)
