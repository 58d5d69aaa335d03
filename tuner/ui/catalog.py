"""The catalog on the datasets page: which folder's, its sets in rows, and what to say where a set is not there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import streamlit as st

from tuner.config.config import KNOBS
from tuner.config.kinds import usual_for
from tuner.config.knobs import ConfigError, nearest
from tuner.data.catalog import catalog_folder, read_catalog
from tuner.data.entries import Entry
from tuner.text.lookup import mark, tr
from tuner.ui import datasets, draft, picking, state, theme
from tuner.ui.offers import here
from tuner.ui.picking import Column
from tuner.ui.words import NONE, count, safe, size

OWN = str(KNOBS["dataset_dir"].default)
"""The studio's own folder."""
_CHOSEN = "folder-chosen"

# --- the folder ----------------------------------------------------------------------------------------------------


def folder() -> str:
    """The catalog's folder: the one in the URL, else the one that was chosen here last, else the studio's own; and the
    field in which it is chosen. Where New run reads from is among the choices: nobody is taken there unasked."""
    now = state.asked("folder") or st.session_state.get(_CHOSEN, OWN)
    turn_to(now, state.asked("dataset"))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="catalog-folder"):
        key = f"folder:{now}"
        st.selectbox(
            tr("Dataset folder"),
            choices := _folders(now),
            index=choices.index(now),
            accept_new_options=True,
            key=key,
            on_change=lambda: turn_to(str(st.session_state[key] or OWN)),
            help=tr("The folder with dataset_info.json. Type a path to switch."),
            width=320,
        )
        if where(now) != now:
            st.caption(safe(where(now)), width="content")
    return now


def _folders(now: str) -> list[str]:
    seen = st.session_state.setdefault("folders", [])
    if now not in seen:
        seen.append(now)
    return list(dict.fromkeys([OWN, str(draft.current().value("dataset_dir") or OWN), *seen]))


def where(folder: str) -> str:
    """The folder in full; a catalog of the hub as it is named."""
    return folder if folder == "ONLINE" or folder.startswith("REMOTE:") else str(catalog_folder(folder))


def turn_to(folder: str, dataset: str = "") -> None:
    """Show another folder, or another set of it, and say so in the URL."""
    st.session_state[_CHOSEN] = folder
    state.tell(folder=folder if folder != OWN else None, dataset=dataset or None)


# --- the catalog ---------------------------------------------------------------------------------------------------

COLUMNS = (
    Column(mark("Name"), "link"),
    Column(mark("Kind")),
    Column(mark("Good for")),
    Column(mark("Size"), "figure"),
    Column(mark("File")),
)
SIZE = 10
"""Sets on a page of the catalog."""
UNTOLD = (mark("Chat or text"), mark("sft or pt"))
"""What a set is and is good for that the catalog does not tell: its rows are read once it is opened."""


def there(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The sets whose files are on this machine, by name."""
    return {name: entry for name, entry in entries.items() if here(entry)}


def table(entries: Mapping[str, Entry], chosen: str, folder: str) -> None:
    """The sets on this machine as a table, page by page, in which another one is chosen by its name."""
    found = _searched(entries) if len(entries) > SIZE else list(entries.values())
    if not found:
        theme.empty("search_off", tr("No matching data set"), tr("Change the search."))
        return
    pages = max(1, -(-len(found) // SIZE))
    number = state.page() if state.page() <= pages else 1
    rows = {e.name: _row(e, e.name == chosen) for e in found[(number - 1) * SIZE : number * SIZE]}
    query = {key: state.asked(key) for key in ("folder", "q", "page") if state.asked(key)}
    picking.one(
        "catalog",
        tr("Data sets"),
        COLUMNS,
        rows,
        chosen,
        "dataset",
        lambda name: turn_to(folder, name),
        query,
    )
    if len(entries) > SIZE:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(count(len(found), "set"), width="content")
            st.space("stretch")
            if pages > 1:
                st.pagination(pages, key="page", bind="query-params")


def _searched(entries: Mapping[str, Entry]) -> list[Entry]:
    text = st.text_input(
        tr("Search"),
        type="search",
        icon=":material/search:",
        placeholder=tr("name, kind, file"),
        key="q",
        live=True,
        bind="query-params",
        width=260,
        on_change=state.first_page,
    )
    words = (text or "").lower().split()
    return [e for e in entries.values() if all(w in _told(e) for w in words)]


def _told(entry: Entry) -> str:
    return " ".join((entry.name, entry.location, *_kind(entry))).lower()


def _kind(entry: Entry) -> tuple[str, str]:
    return (
        (tr(datasets.KINDS[entry.told_kind]), usual_for(entry.told_kind))
        if entry.told_kind
        else (tr(UNTOLD[0]), tr(UNTOLD[1]))
    )


def missing(entries: Mapping[str, Entry], name: str, folder: str) -> None:
    """What stands in a set's place where there is none of that name on this machine, and where there is one."""
    if name in entries:
        why = tr("is in the catalog, but its files are not on this machine.")
    else:
        like = nearest(name, entries)
        why = tr("is not in {where}.", where=where(folder)) + (
            tr(" Did you mean {like}?", like=like) if like else ""
        )
    st.warning(
        tr("The data set {name} {why} Choose one above.", name=safe(name), why=safe(why)),
        icon=":material/search_off:",
    )
    for other in _folders(folder):
        with suppress(ConfigError):
            if other != folder and name in read_catalog(other):
                label = tr("Show {name} of {other}", name=name, other=other)
                st.button(safe(label), icon=":material/folder:", on_click=turn_to, args=(other, name))


def _row(entry: Entry, opened: bool) -> dict[str, str]:
    kind, stage = (tr(datasets.KINDS[entry.kind]), usual_for(entry.kind)) if opened else _kind(entry)
    try:
        weight = size(sum(f.stat().st_size for f in entry.files()))
    except (ConfigError, OSError):
        weight = NONE
    return {
        "Name": entry.name,
        "Kind": kind,
        "Good for": stage,
        "Size": weight,
        "File": entry.location,
    }


def elsewhere(entries: Mapping[str, Entry], local: Mapping[str, Entry]) -> None:
    """The sets of the catalog that are not on this machine, behind a fold."""
    rest = [e for e in entries.values() if e.name not in local]
    if not rest:
        return
    with st.expander(
        tr("{sets} in the catalog, not on this machine", sets=count(len(rest), "more set")), type="compact"
    ):
        st.caption(
            tr("They are downloaded from their hub when online, or read once their file is in the folder.")
        )
        theme.frame(
            [{"Name": e.name, "Kind": tr(datasets.KINDS[e.kind]), "Comes from": e.source} for e in rest],
            hide_index=True,
        )
