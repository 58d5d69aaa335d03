"""Rows of data as people read them: turns as bubbles, a better and a worse answer side by side, the raw record on demand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from tuner.data.entries import Entry
from tuner.data.formats import Dropped, convert
from tuner.data.pages import Row
from tuner.text.lookup import mark, tr
from tuner.ui import pictures, records
from tuner.ui.words import count, safe

LONGEST = 2000
"""Characters of a turn that are shown; the raw record has the rest."""
RAW_LONGEST = 100_000
_ROLES = {
    "system": (mark("System"), ":material/settings:"),
    "user": (mark("User"), ":material/person:"),
    "assistant": (mark("Assistant"), ":material/smart_toy:"),
    "tool": (mark("Tool"), ":material/build:"),
}


def row(found: Row, entry: Entry) -> None:
    """One row of a data set, or why it cannot be used."""
    with st.container(border=True, key=f"card-row-{found.number}", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(tr("**Row {number}**", number=count(found.number)), width="content")
            st.caption(
                tr("line {line} of {file}", line=count(found.line), file=safe(found.file)), width="content"
            )
            st.space("stretch")
            with st.popover(tr("Raw"), icon=":material/data_object:", type="tertiary"):
                st.code(_raw(found.record), language="json", wrap_lines=True)
        normal = convert(found.record, entry)
        if isinstance(normal, Dropped):
            st.markdown(tr(":orange[:material/block: **Not used: {reason}**]", reason=safe(normal.reason)))
            st.text(normal.detail[:LONGEST])
            return
        told(normal, str(found.number), pictures.folder_of(entry) if "images" in normal else None)


def _raw(record: Any) -> str:
    if not isinstance(record, Mapping):
        return str(getattr(record, "excerpt", record))
    text = json.dumps(record, ensure_ascii=False, indent=2, default=str)
    return (
        text
        if len(text) <= RAW_LONGEST
        else tr("{text}\n… {number:,} characters in all", text=text[:RAW_LONGEST], number=len(text))
    )


def told(row: Mapping[str, Any], key: str, folder: Path | None = None) -> None:
    """A row in its normal form: a talk, a pair of answers, an answer with its thumb, or plain text. Its pictures lie in
    `folder`."""
    if "text" in row:
        bubble("assistant", {"content": row["text"]}, f"{key}-text", name=tr("Text"))
        return
    if "questions" in row:
        records.told(row, key)
        return
    if row.get("tools"):
        with st.popover(tr("Tools"), icon=":material/build:", type="tertiary"):
            st.code(_tools(row["tools"]), language="json", wrap_lines=True)
    turns(row["messages"], key, row.get("images", ()), folder)
    if "chosen" in row:
        left, right = st.columns(2, gap="small")
        with left:
            bubble(
                "chosen",
                row["chosen"],
                f"{key}-chosen",
                name=tr("Chosen, the better answer"),
                icon="thumb_up",
            )
        with right:
            bubble(
                "rejected",
                row["rejected"],
                f"{key}-rejected",
                name=tr("Rejected, the worse answer"),
                icon="thumb_down",
            )
    if "completion" in row:
        good = bool(row.get("label"))
        name, icon = (tr("Thumbs up"), "thumb_up") if good else (tr("Thumbs down"), "thumb_down")
        bubble("chosen" if good else "rejected", row["completion"], f"{key}-answer", name=name, icon=icon)


def turns(
    messages: Sequence[Mapping[str, Any]], key: str, images: Sequence[Any] = (), folder: Path | None = None
) -> None:
    """A talk, turn by turn, each with its pictures."""
    shown = pictures.by_message(messages, images)
    for place, (message, seen) in enumerate(zip(messages, shown, strict=True)):
        bubble(str(message.get("role")), message, f"{key}-{place}", seen=seen, folder=folder)


def bubble(
    role: str,
    said: str | Mapping[str, Any],
    key: str,
    *,
    name: str = "",
    icon: str = "",
    longest: int = LONGEST,
    seen: Sequence[Any] = (),
    folder: Path | None = None,
) -> None:
    """A text, or a turn, in its bubble, with pictures below it. `role` gives the colour, `name` and `icon` what is said above
    it."""
    message = {"content": said} if isinstance(said, str) else said
    known, mark = _ROLES.get(role, (role.capitalize(), ":material/chat:"))
    with st.container(key=f"bubble-{role}-{key}", gap="xsmall"):
        st.caption(f":material/{icon}: {name or tr(known)}" if icon else f"{mark} {name or tr(known)}")
        text = str(message.get("content") or "")
        st.text(
            text
            if len(text) <= longest
            else tr("{text} … {number:,} more characters", text=text[:longest], number=len(text) - longest)
        )
        pictures.strip(seen, folder, key)
        if calls := message.get("tool_calls"):
            st.code(_tools(calls), language="json", wrap_lines=True)


def _tools(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, indent=2, default=str)
