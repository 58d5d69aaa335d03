"""Where a version comes from and what came of it, drawn: base, data and run, its sisters, its evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import streamlit as st

from tuner.text.lookup import tr
from tuner.tracking.adapter_rows import AdapterRow
from tuner.ui import theme
from tuner.ui.words import place

SHOWN = 8
"""Versions and evaluations beside it that are drawn; the rest is counted."""


def draw(row: AdapterRow, sisters: Sequence[AdapterRow]) -> None:
    """The picture; `sisters` are all versions of its name."""
    st.graphviz_chart(dot(row, sisters))


def dot(row: AdapterRow, sisters: Sequence[AdapterRow]) -> str:
    """The graph in Graphviz's language. Every text in it is quoted: it comes from data."""
    look = theme.palette()
    lines = [
        "digraph { rankdir=LR; bgcolor=transparent; nodesep=0.2;",
        f'node [shape=box, style=rounded, fontname="sans-serif", fontsize=11, color={_quoted(look.grid)}, '
        f"fontcolor={_quoted(look.ink)}];",
        f"edge [color={_quoted(look.quiet)}, arrowsize=0.6];",
        _node("base", place(row.base) or tr("unknown base")),
        _node("adapter", row.name),
        "base -> adapter;",
    ]
    lines += _sources(row)
    lines += _versions(row, sisters, look.good)
    lines += _measured(row)
    return "\n".join([*lines, "}"])


def _sources(row: AdapterRow) -> Iterable[str]:
    for place_, name in enumerate(row.datasets[:SHOWN]):
        yield _node(f"data{place_}", name)
        yield f"data{place_} -> adapter;"


def _versions(row: AdapterRow, sisters: Sequence[AdapterRow], colour: str) -> Iterable[str]:
    near = sorted(sisters, key=lambda one: abs(one.version - row.version))[:SHOWN]
    for one in sorted(near, key=lambda one: one.version):
        said = " ".join([tr("version {version}", version=one.version), *one.aliases])
        mark = f", color={_quoted(colour)}, penwidth=2" if one.version == row.version else ""
        yield f"v{one.version} [label={_quoted(said)}{mark}];"
        yield f"adapter -> v{one.version};"
    if len(sisters) > len(near):
        yield _node("more", tr("{number} more versions", number=len(sisters) - len(near)))
        yield "adapter -> more;"


def _measured(row: AdapterRow) -> Iterable[str]:
    for number, one in enumerate(row.evaluations[:SHOWN]):
        yield _node(f"e{number}", tr("evaluated on {dataset}", dataset=one.dataset))
        yield f"v{row.version} -> e{number};"


def _node(name: str, label: str) -> str:
    return f"{name} [label={_quoted(Path(label).name if label.startswith('/') else label)}];"


def _quoted(text: str) -> str:
    """A text in quotes, its own quotes and backslashes escaped, on one line."""
    return json.dumps(" ".join(text.split())[:80], ensure_ascii=False)
