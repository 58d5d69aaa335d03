"""A comparison as one HTML file that needs nothing else: curves that can be hovered over, and the page's tables."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io

from tuner import __version__
from tuner.text.lookup import language, speaking, tr

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#1f2421}"
    "h1{font-size:1.6rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%;font-size:13px}"
    "td,th{border-bottom:1px solid #e6e2d9;padding:.35rem .6rem;text-align:left;vertical-align:top}th{color:#626560}"
)


def report(
    title: str,
    figures: Mapping[str, go.Figure],
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    spoken: str,
) -> str:
    """The file's text in the language `spoken`: a download is made in a thread that has none of the page's. `figures` and
    `sections` go by their headings; an empty table is left out."""
    with speaking(spoken):
        return _report(title, figures, sections)


def _report(
    title: str,
    figures: Mapping[str, go.Figure],
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for place, (heading, figure) in enumerate(figures.items()):
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        parts.append(plotly.io.to_html(figure, full_html=False, include_plotlyjs=place == 0))
    for heading, rows in sections.items():
        if rows:
            parts.append(f"<h2>{html.escape(heading)}</h2>{_table(rows)}")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    foot = f"<p><small>tuner {html.escape(__version__)}</small></p>"
    return f'<!doctype html><html lang="{language().partition("_")[0]}"><head>{head}</head><body>{"".join(parts)}{foot}</body></html>'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0])
    head = "".join(f"<th>{html.escape(tr(str(name)))}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(row.get(name, '')))}</td>" for name in columns) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
