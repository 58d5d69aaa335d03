"""How the studio looks: palette, stylesheet, page heads and cards. Colours that Streamlit itself paints with are in
.streamlit/config.toml; the ones here are for charts and must agree with it (a test holds them together)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import streamlit as st

from tuner.text.lookup import tr
from tuner.ui.words import safe

Mode = Literal["light", "dark"]
FONTS = (
    "Inter, system-ui, 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', 'Source Han Sans SC', sans-serif"
)
"""What text is drawn with, in charts too; the same as in .streamlit/config.toml."""
NONE: Mapping[str, Any] = MappingProxyType({})
SHEET = Path(__file__).with_name("style.css")
MARK = str(Path(__file__).with_name("mark.svg"))


@dataclass(frozen=True)
class Palette:
    """Colours of one mode. `series` differ in hue and lightness, so that they stay apart for every kind of sight."""

    ink: str
    quiet: str
    grid: str
    surface: str
    good: str
    bad: str
    series: tuple[str, ...]


PALETTES: dict[Mode, Palette] = {
    "light": Palette(
        ink="#1f2421",
        quiet="#6b6f69",
        grid="#eeebe3",
        surface="#ffffff",
        good="#0b7a6b",
        bad="#d98a1f",
        series=("#0b7a6b", "#d98a1f", "#34348f", "#d9389f", "#6f3f14", "#6490f5"),
    ),
    "dark": Palette(
        ink="#e9e7e1",
        quiet="#9a9f99",
        grid="#2a2e2b",
        surface="#1d201e",
        good="#3fbfab",
        bad="#ec9a48",
        series=("#3fbfab", "#ec9a48", "#6f74ea", "#d78cf0", "#c2603c", "#b5d4ff"),
    ),
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""A second mark beside colour wherever runs are compared."""


def mode() -> Mode:
    """The mode the browser shows now."""
    return "dark" if st.context.theme.type == "dark" else "light"


def palette() -> Palette:
    return PALETTES[mode()]


def dark() -> dict[str, str]:
    """Which colour of the dark mode stands where the light mode has which."""
    light, night = PALETTES["light"], PALETTES["dark"]
    named = {getattr(light, f.name): getattr(night, f.name) for f in fields(Palette) if f.name != "series"}
    return named | dict(zip(light.series, night.series, strict=True))


def apply() -> None:
    """Lay the stylesheet over the page. It is a constant file: no data ever goes into it."""
    st.html(SHEET)


def head(title: str, lead: str = "") -> None:
    """A page's title and the sentence under it."""
    with st.container(key="page-head", gap="xxsmall"):
        st.title(safe(title), anchor=False)
        if lead:
            st.caption(lead)


def card(key: str, **options: Any) -> AbstractContextManager[Any]:
    """A surface with air around it. `key` is unique on its page."""
    return st.container(border=True, key=f"card-{key}", **options)


def frame(rows: Sequence[Mapping[str, Any]], column_config: Mapping[str, Any] = NONE, **options: Any) -> None:
    """A table of rows by their columns' English names, under headings in the language of the moment."""
    named: Any = {
        name: {"label": tr(name), **column_config.get(name, {})} for name in (rows[0] if rows else ())
    }
    st.dataframe(rows, column_config=named, **options)


def empty(icon: str, title: str, sentence: str) -> None:
    """What stands where a table would be empty: what is missing and what to do."""
    with st.container(key=f"empty-{abs(hash(title)) % 10**8}", horizontal_alignment="center", gap="xsmall"):
        st.markdown(f":material/{icon}:", text_alignment="center")
        st.markdown(f"**{title}**", text_alignment="center")
        st.caption(sentence, text_alignment="center")
