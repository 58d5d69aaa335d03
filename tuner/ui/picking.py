"""Tables whose rows are ticked and opened, by id.

Streamlit's own table speaks of rows by their place. A list may change between the moment it was drawn and the click
that speaks of it, and a place is another row then. This one speaks of ids only. Its rows are HTML, so that a name is a
link: a click or Enter opens it, and a screen reader reads the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlencode

import streamlit as st

from tuner.text.lookup import tr
from tuner.ui import state

_table = st.components.v2.component(
    "tuner-table", js=Path(__file__).with_name("table.js").read_text(encoding="utf-8"), isolate_styles=False
)


@dataclass(frozen=True)
class Column:
    """How a column is drawn. `link` is the one that opens its row; a `spark` holds numbers, `tags` words; `width` is
    the least, in pixels."""

    name: str
    kind: Literal["link", "text", "figure", "spark", "tags"] = "text"
    width: int = 0


Row = Mapping[str, Any]
"""A row's values by its columns' names; the first column is its name."""


@dataclass(frozen=True)
class Place:
    """Where a row stands in a tree: under which heading, and whether it is a further one of what the row above is."""

    heading: str = ""
    further: bool = False


def many(
    key: str, label: str, columns: Sequence[Column], rows: Mapping[str, Row], page: str, query: str
) -> list[str]:
    """A table in which rows are ticked; the ids of those that are, in the table's order.

    `rows` goes by id. Pressing a name opens `page` with `?query=ID`. A row that is not listed is not chosen.
    """
    ids, turn = _said(key)
    chosen = [one for one in rows if one in ids]
    _draw(
        key,
        _data(label, columns, rows, f"{page}?{{}}", query) | {"many": True, "chosen": chosen, "turn": turn},
        lambda one: state.go(page, **{query: one}),
    )
    return chosen


def still(key: str, ids: Sequence[str]) -> list[str]:
    """Of the ids that a button was drawn for, those that are ticked at this moment. For callbacks."""
    now, _ = _said(key)
    return [one for one in ids if one in now]


def untick(key: str) -> None:
    """Take every tick away. For callbacks: what was chosen has been dealt with."""
    st.session_state[f"{key}-done"] = _turn(key)


def one(
    key: str,
    label: str,
    columns: Sequence[Column],
    rows: Mapping[str, Row],
    chosen: str,
    query: str,
    choose: Callable[[str], None],
    also: Mapping[str, str] = MappingProxyType({}),
    places: Mapping[str, Place] = MappingProxyType({}),
) -> None:
    """A table in which one row is open, the one with the id `chosen`; `choose` is called with the id of another.

    A row's link is this page with `?query=ID`, and with what `also` has. `places` makes a tree of the rows.
    """
    data = _data(label, columns, rows, f"?{urlencode(also)}{'&' if also else ''}{{}}", query)
    for row in data["rows"]:
        place = places.get(row["id"], Place())
        row |= {"heading": place.heading, "further": place.further}
    _draw(key, data | {"many": False, "chosen": [chosen], "turn": 0}, choose)


def _data(
    label: str, columns: Sequence[Column], rows: Mapping[str, Row], link: str, query: str
) -> dict[str, Any]:
    return {
        "label": label,
        "columns": [{"name": tr(c.name), "kind": c.kind, "width": c.width} for c in columns],
        "rows": [
            {"id": one, "href": link.format(urlencode({query: one})), "cells": [row[c.name] for c in columns]}
            for one, row in rows.items()
        ],
    }


def _draw(key: str, data: dict[str, Any], opened: Callable[[str], None]) -> None:
    def pressed() -> None:
        if told := st.session_state[key].get("opened"):
            opened(str(told))

    _table(key=key, data=data, on_opened_change=pressed, on_chosen_change=lambda: None)


# --- what the browser said: {"chosen": {"ids": [...], "turn": a number that goes up with every tick}} --------------


def _said(key: str) -> tuple[frozenset[str], int]:
    """The ticked ids and the turn at which that was so; none once they were dealt with."""
    turn = _turn(key)
    if turn <= st.session_state.get(f"{key}-done", 0):
        return frozenset(), turn
    return frozenset(map(str, st.session_state[key]["chosen"]["ids"])), turn


def _turn(key: str) -> int:
    told = st.session_state.get(key) or {}
    return int((told.get("chosen") or {}).get("turn", 0))
