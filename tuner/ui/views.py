"""Which columns of the history a person wants to see, and lists of runs kept under a name: filters, order and columns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

import streamlit as st

from tuner.text.lookup import tr
from tuner.ui import login, state, writes
from tuner.ui.picking import Column
from tuner.ui.words import safe

FILTERS = ("q", "state", "stage", "model", "dataset", "tag", "sort", "deleted")
"""What the address says of a list of runs."""
_COLUMNS = "history-columns"


def chosen(columns: Sequence[Column], usual: Sequence[str]) -> list[Column]:
    """The columns to show: the first always, the others as this person has chosen; `usual` are those for who has not."""
    kept = _kept().get("columns")
    wanted = set(kept) if isinstance(kept, list) else set(usual)
    return [c for place, c in enumerate(columns) if place == 0 or c.name in wanted]


def controls(columns: Sequence[Column], usual: Sequence[str]) -> None:
    """Two popovers: which columns there are, and the lists that were kept."""
    names = [c.name for c in columns[1:]]
    with st.popover(tr("Columns"), icon=":material/view_column:", type="tertiary"):
        st.multiselect(
            tr("Columns"),
            names,
            default=[c.name for c in chosen(columns, usual)[1:]],
            format_func=tr,
            key=_COLUMNS,
            on_change=_choose,
            label_visibility="collapsed",
            width=420,
        )
    with st.popover(tr("Views"), icon=":material/bookmark:", type="tertiary"):
        views = _views()
        if not views:
            st.caption(tr("A view keeps the filters, the order and the columns under a name."))
        for name, query in views.items():
            with st.container(
                horizontal=True, vertical_alignment="center", gap="small", key=f"icon-view-{name}"
            ):
                st.page_link(
                    "pages/history.py",
                    label=safe(name),
                    icon=":material/bookmark:",
                    query_params=parse_qs(query),
                    width="stretch",
                )
                st.button(
                    tr("Remove {name}", name=safe(name)),
                    icon=":material/close:",
                    type="tertiary",
                    key=f"icon-forget-{name}",
                    on_click=_forget,
                    args=(name,),
                    **writes.locked(),
                )
        st.text_input(tr("Name"), key="view-name", placeholder=tr("failed this week"))
        st.button(tr("Save this view"), icon=":material/add:", on_click=_save, **writes.locked())


def _choose() -> None:
    _keep({**_kept(), "columns": list(st.session_state[_COLUMNS])})


def _save() -> None:
    if name := str(st.session_state.get("view-name") or "").strip()[:60]:
        _keep({**_kept(), "views": {**_views(), name: query()}})
        st.session_state["view-name"] = ""


def _forget(name: str) -> None:
    _keep({**_kept(), "views": {n: q for n, q in _views().items() if n != name}})


def query() -> str:
    """The filters and the order of the list, as the address has them."""
    return urlencode({n: v for n in FILTERS if (v := st.query_params.get_all(n))}, doseq=True)


def _views() -> Mapping[str, str]:
    views = _kept().get("views")
    return {str(n): str(q) for n, q in views.items()} if isinstance(views, dict) else {}


def _kept() -> dict[str, Any]:
    return state.load_draft(_file())


def _keep(what: dict[str, Any]) -> None:
    writes.keep_draft(_file(), what)


def _file() -> str:
    name = login.person().name
    return f"history-{hashlib.sha256(name.encode()).hexdigest()[:16] if name else 'all'}"
