"""The history page's mechanism: what chosen runs can be put through, their notes and tags."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial

import streamlit as st

from tuner.jobs import room
from tuner.runs.status import STATES
from tuner.text.lookup import mark, tr
from tuner.tracking import runs, store
from tuner.tracking.adapter_rows import adapters_of
from tuner.tracking.rows import RunFilter, RunRow
from tuner.ui import evaluation, picking, state, theme, writes
from tuner.ui.words import STATES as LOOKS
from tuner.ui.words import count, look, safe, size

TABLE = "history"
"""The table's key."""
_UNDO = "history-undo"
SIZE = 20
"""Runs on a page of the history."""
MOST = 6
"""Runs that can be laid beside each other."""
SORTS = {
    mark("Newest first"): ("created", True),
    mark("Oldest first"): ("created", False),
    mark("Lowest loss"): ("metrics.loss", False),
    mark("Highest reward"): ("metrics.reward", True),
    mark("Longest"): ("duration", True),
    mark("Name"): ("name", False),
}

WORDS = {LOOKS[name].word: name for name in STATES}
"""States by the words under which addresses have them."""


def filters() -> RunFilter:
    """The filter bar; every field of it lives in the URL."""
    known = _choices(store.changes())
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="filters"):
        text = st.text_input(
            tr("Search"),
            type="search",
            icon=":material/search:",
            placeholder=tr("name, model, note"),
            key="q",
            live=True,
            bind="query-params",
            width=180,
        )
        state.reword("state", WORDS, WORDS.__getitem__, several=True)
        states = st.multiselect(
            tr("State"),
            STATES,
            format_func=lambda s: look(s).word,
            key="state",
            bind="query-params",
            placeholder=tr("any"),
            width=120,
        )
        stage = _one(mark("Stage"), known.stages, 85)
        model = _one(mark("Model"), known.models, 120)
        dataset = _one(mark("Data set"), known.datasets, 120)
        tag = _one(mark("Tag"), tuple(known.tags), 95)
        state.reword("sort", SORTS)
        sort = st.selectbox(
            tr("Sort by"), list(SORTS), format_func=tr, key="sort", bind="query-params", width=135
        )
        deleted = st.toggle(tr("Deleted"), key="deleted", bind="query-params")
    key, descending = SORTS[sort]
    return RunFilter(
        text=text or "",
        states=tuple(states),
        stage=stage,
        model=model,
        dataset=dataset,
        tags={tag: ""} if tag else {},
        sort=key,
        descending=descending,
        deleted=deleted,
    )


@st.cache_data(ttl=5, show_spinner=False, max_entries=2)
def _choices(changes: int) -> runs.Choices:
    """What there is to filter by; what was changed here is seen at once."""
    return runs.choices()


def _one(name: str, choices: tuple[str, ...], width: int) -> str:
    key = name.lower().replace(" ", "")
    return (
        st.selectbox(
            tr(name), choices, index=None, key=key, bind="query-params", placeholder=tr("any"), width=width
        )
        or ""
    )


def scored(ids: Collection[str]) -> dict[str, str]:
    """What evaluations found of the adapters that these runs left, in a few words; nothing while the tracker is away."""
    with suppress(store.TrackerError):
        newest = {row.run_id: row for row in reversed(adapters_of(ids))}
        return {id: evaluation.briefly(row.evaluations) for id, row in newest.items() if row.evaluations}
    return {}


def nothing(filter: RunFilter) -> None:
    """What stands where no run is listed, and what to do."""
    if filter == RunFilter(sort=filter.sort, descending=filter.descending):
        theme.empty(
            "history",
            tr("No runs yet"),
            tr("Every run is kept here with its metrics and config."),
        )
        with st.container(horizontal=True, horizontal_alignment="center"):
            st.page_link("pages/new_run.py", label=tr("New run"), icon=":material/add_circle:")
    elif filter.deleted:
        theme.empty(
            "delete",
            tr("No deleted runs"),
            tr("Deleted runs stay here until you delete them permanently."),
        )
    else:
        theme.empty("search_off", tr("No matching run"), tr("Remove a filter or change the search."))


def actions(chosen: Sequence[RunRow]) -> None:
    """What can be done with the chosen runs. Each button acts on the runs it was drawn for, as far as they are ticked
    still: whatever the list has become since, nothing else is touched."""
    ids = [row.id for row in chosen]
    one = len(chosen) == 1
    with st.container(horizontal=True, gap="small", key="history-actions"):
        if chosen[0].deleted:
            _each(chosen, mark("Restore"), ":material/restore_from_trash:", _restore)
            with st.popover(tr("Delete permanently"), icon=":material/delete_forever:"):
                st.markdown(tr("This also deletes the folder with its checkpoints. It cannot be undone."))
                freed = sum(room.of_run(row.run).total for row in chosen if row.local)
                st.caption(f"{safe(_called(chosen))} · {tr('frees {size}', size=size(freed))}")
                _each(chosen, mark("Yes, delete"), ":material/delete_forever:", _purge)
            return
        if one:
            st.button(
                tr("Open"),
                icon=":material/open_in_full:",
                type="primary",
                on_click=state.go,
                args=("runs",),
                kwargs={"run": ids[0]},
                key=f"open-{_mark(ids)}",
            )
        too_many = tr("Up to {most} runs.", most=MOST) if len(ids) > MOST else None
        st.button(
            tr("Compare"),
            icon=":material/compare_arrows:",
            type="secondary" if one else "primary",
            disabled=bool(too_many),
            help=beside(chosen[0].parent) if one else too_many,
            on_click=compare,
            args=(ids, chosen[0].parent),
            key=f"compare-{_mark(ids)}",
        )
        if one:
            st.button(
                tr("Clone"),
                icon=":material/content_copy:",
                help=tr("Open the form with these values."),
                on_click=state.go,
                args=("new_run",),
                kwargs={"clone": ids[0]},
                key=f"clone-{_mark(ids)}",
            )
        with st.popover(tr("Tag"), icon=":material/label:"):
            key = f"bulk-tag-{_mark(ids)}"
            st.text_input(
                tr("Tag"),
                key=key,
                placeholder=tr("word, or word: value"),
                on_change=_tag_all,
                args=(ids, key),
                **writes.locked(help=tr("Press Enter to tag {runs}.", runs=count(len(ids), "run"))),
            )
        _each(chosen, mark("Delete"), ":material/delete:", _delete)


def _tag_all(ids: Sequence[str], key: str) -> None:
    """Give a tag to all runs that are ticked still."""
    text = str(st.session_state.get(key) or "").strip()
    asked = picking.still(TABLE, ids) if text else []
    done = [run_id for run_id in asked if _said(partial(writes.set_tag, run_id, *_pair(text)))]
    if done:
        st.toast(tr("Tagged {runs}.", runs=count(len(done), "run")), icon=":material/label:")
    st.session_state[key] = ""


def _mark(ids: Sequence[str]) -> str:
    """Part of a button's key: a button for other runs is another button, which a late click cannot press."""
    return hashlib.sha256(" ".join(ids).encode()).hexdigest()[:12]


def _called(chosen: Sequence[RunRow]) -> str:
    names = [row.name for row in chosen]
    return ", ".join(names[:3]) + (tr(" and {number} more", number=len(names) - 3) if len(names) > 3 else "")


def beside(parent: str) -> str:
    """What Compare does with one run; `parent` is its sweep's, if it is of one."""
    return tr("Compare with the other runs of its sweep.") if parent else tr("Compare with other runs.")


def compare(ids: Sequence[str], parent: str = "") -> None:
    """Open Compare with these runs. For callbacks. One alone is joined by the others of its sweep."""
    others = of_sweep(parent) if parent and len(ids) == 1 else []
    state.go("compare", run=list(dict.fromkeys([*ids, *others]))[:MOST])


def of_sweep(parent: str) -> list[str]:
    """A sweep's runs in the order they were made; of more than can be compared those with the lowest loss."""
    lowest = RunFilter(parent=parent, sort="metrics.loss", descending=False)
    return [row.id for row in sorted(runs.first_runs(MOST, lowest), key=lambda row: row.created)]


def _each(chosen: Sequence[RunRow], name: str, icon: str, act: Callable[[list[str]], None]) -> None:
    ids = [row.id for row in chosen]
    key = f"{name}-{_mark(ids)}"
    st.button(
        tr(name), icon=icon, key=key, on_click=lambda: act(picking.still(TABLE, ids)), **writes.locked()
    )


def _delete(ids: Sequence[str]) -> None:
    if done := _done(ids, writes.delete_run):
        st.session_state[_UNDO] = done


def _restore(ids: Sequence[str]) -> None:
    if done := _done(ids, writes.restore_run):
        st.toast(tr("Restored {runs}.", runs=count(len(done), "run")), icon=":material/restore_from_trash:")


def _purge(ids: Sequence[str]) -> None:
    if done := _done(ids, writes.purge):
        st.toast(
            tr("Permanently deleted {runs}.", runs=count(len(done), "run")), icon=":material/delete_forever:"
        )


def _done(ids: Sequence[str], act: Callable[[str], None]) -> list[str]:
    """The runs with which it worked. What was chosen is dealt with then, and nothing is ticked any more."""
    done = []
    st.session_state.pop(_UNDO, None)
    for run_id in ids:
        try:
            act(run_id)
            done.append(run_id)
        except writes.FAILED as error:
            st.toast(safe(error), icon=":material/error:")
    if done:
        picking.untick(TABLE)
    return done


def undo() -> None:
    """What was deleted last on this page, with the way back. It stays until something else is done."""
    ids = st.session_state.get(_UNDO, [])
    with st.container(key="undo", horizontal=True, vertical_alignment="center", gap="small"):
        if not ids:
            return
        said = (
            tr("Deleted {name}.", name=safe(_name(ids[0])))
            if len(ids) == 1
            else tr("Deleted {runs}.", runs=count(len(ids), "run"))
        )
        st.markdown(f":material/delete: {said}", width="content")
        st.button(
            tr("Undo"),
            type="tertiary",
            key=f"undo-{_mark(ids)}",
            on_click=_restore,
            args=(ids,),
            **writes.locked(),
        )
        st.button(
            "", icon=":material/close:", type="tertiary", help=tr("Close"), key="undo-close", on_click=_forget
        )


def _name(run_id: str) -> str:
    row = runs.get_row(run_id)
    return row.name if row else run_id


def _forget() -> None:
    st.session_state.pop(_UNDO, None)


def words(row: RunRow) -> None:
    """A run's name, note and tags, to read and change."""
    with theme.card("words"):
        left, right = st.columns([1.6, 1], gap="medium")
        with left:
            st.text_input(
                tr("Name"),
                value=row.name,
                key=f"name-{row.id}",
                on_change=_rename,
                args=(row.id,),
                **writes.locked(),
            )
            st.text_area(
                tr("Note"),
                value=row.note,
                key=f"note-{row.id}",
                on_change=_note,
                args=(row.id,),
                placeholder=tr("What you tried, what you saw, what comes next."),
                height=120,
                **writes.locked(),
            )
        with right:
            tags = [f"{k}: {v}" if v else k for k, v in row.tags.items()]
            st.multiselect(
                tr("Tags"),
                tags,
                default=tags,
                accept_new_options=True,
                key=f"tags-{row.id}",
                on_change=_tag,
                args=(row.id, tuple(row.tags)),
                placeholder=tr("word, or word: value"),
                **writes.locked(
                    help=tr("Type a tag and press Enter; `purpose: baseline` is a tag with a value.")
                ),
            )
            if row.reason:
                st.caption(safe(row.reason))


def _said(act: Callable[[], None]) -> bool:
    """Whether it worked; why not is said."""
    try:
        act()
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return False
    return True


def _rename(run_id: str) -> None:
    _said(lambda: writes.rename_run(run_id, str(st.session_state[f"name-{run_id}"])))


def _note(run_id: str) -> None:
    _said(lambda: writes.set_note(run_id, str(st.session_state[f"note-{run_id}"])))


def _tag(run_id: str, before: tuple[str, ...]) -> None:
    wanted = dict(_pair(text) for text in st.session_state[f"tags-{run_id}"])
    for name in before:
        if name not in wanted:
            _said(lambda name=name: writes.delete_tag(run_id, name))  # type: ignore[misc]
    for name, value in wanted.items():
        _said(lambda name=name, value=value: writes.set_tag(run_id, name, value))  # type: ignore[misc]


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition(":")
    return name.strip(), value.strip()
