"""Bring your own: a file received or pointed at, its columns guessed and mended with a live preview, then in the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import streamlit as st

from tuner.config.knobs import ConfigError
from tuner.data import guess, upload
from tuner.data.catalog import catalog_folder
from tuner.data.entries import CATALOG, TAGS
from tuner.data.files import TYPES
from tuner.data.formats import Dropped
from tuner.text.lookup import mark, tr
from tuner.ui import chat, pictures, state, theme, writes
from tuner.ui.words import count, safe

LARGEST_MB = 500
"""What the browser may send: Streamlit holds it in memory. A larger file is named by its path."""
CHUNK = 1 << 20
_KINDS = {
    "chat": mark("Chat"),
    "pairs": mark("Pairs"),
    "labelled": mark("Ratings"),
    "text": mark("Plain text"),
    "decisions": mark("Decisions"),
}
_NEEDS = {
    ("chat", "alpaca"): ("prompt", "query", "response", "history", "system"),
    ("chat", "sharegpt"): ("messages", "system", "tools"),
    ("pairs", "alpaca"): ("prompt", "query", "chosen", "rejected", "history", "system"),
    ("pairs", "sharegpt"): ("messages", "chosen", "rejected", "system"),
    ("labelled", "alpaca"): ("prompt", "query", "response", "kto_tag", "system"),
    ("labelled", "sharegpt"): ("messages", "kto_tag", "system"),
    ("text", "alpaca"): ("prompt",),
}
_COLUMNS = {
    "prompt": mark("Prompt"),
    "query": mark("Extra input"),
    "response": mark("Answer"),
    "history": mark("Earlier turns"),
    "system": mark("System prompt"),
    "messages": mark("Turns"),
    "tools": mark("Tools"),
    "chosen": mark("Better answer"),
    "rejected": mark("Worse answer"),
    "kto_tag": mark("Rating (good or bad)"),
}
_TURNS = {
    "role_tag": mark("Role key"),
    "content_tag": mark("Content key"),
    "user_tag": mark("User role"),
    "assistant_tag": mark("Assistant role"),
    "system_tag": mark("System role"),
}


def panel(dataset_dir: str) -> None:
    """The way from a file to the catalog: choose it, see how it is read, mend that, save it."""
    path = _pending() if writes.may() else None
    _where(path, catalog_folder(dataset_dir))
    if path is None:
        _choose(dataset_dir)
        return
    try:
        found = guess.guess(path)
        attributes = _mapping(path, found)
        if attributes["columns"]:
            _preview(path, attributes, dataset_dir)
        else:
            attributes = {}
            st.caption(tr(":material/arrow_upward: Choose the columns to see a preview."))
    except ConfigError as error:
        st.error(safe(error), icon=":material/error:")
        attributes = {}
    _save(path, attributes, dataset_dir)


def _where(path: Path | None, folder: Path) -> None:
    """Where things go: a file into the folder of uploads, a name into the catalog."""
    listed = tr("is named in {folder}", folder=safe(folder / CATALOG))
    copied = tr("A file from this computer is copied into {folder}", folder=safe(folder / upload.UPLOADS))
    st.caption(
        tr("The set {listed}.", listed=listed)
        if path
        else tr("{copied}, and the set {listed}.", copied=copied, listed=listed)
    )


# --- the file ------------------------------------------------------------------------------------------------------


def _pending() -> Path | None:
    kept = state.load_draft("upload").get("path")
    path = Path(str(kept)) if kept else None
    return path if path and path.is_file() else None


def _choose(dataset_dir: str) -> None:
    left, right = st.columns(2, gap="medium")
    with left:
        file = st.file_uploader(
            tr("A file from this computer"),
            type=list(TYPES),
            max_upload_size=LARGEST_MB,
            key="upload-file",
            **writes.locked(),
        )
    with right:
        typed = st.text_input(
            tr("Or a path on the machine that runs the studio"),
            key="upload-path",
            placeholder="/data/answers.jsonl",
            **writes.locked(help=tr("The file is read in place and not copied.")),
        )
    try:
        if file is not None:
            path = writes.receive(_chunks(file), file.name, dataset_dir)
            writes.keep_draft("upload", {"path": str(path), "name": file.name})
            st.rerun()
        elif typed:
            writes.keep_draft("upload", {"path": str(writes.local_file(typed))})
            st.rerun()
    except writes.FAILED as error:
        st.error(safe(error), icon=":material/error:")


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


# --- the mapping ---------------------------------------------------------------------------------------------------


def _mapping(path: Path, found: guess.Guess) -> dict[str, Any]:
    """The attributes that the fields say; they begin with the guess."""
    st.markdown(f"**{safe(state.load_draft('upload').get('name') or path.name)}**")
    for reason in found.reasons:
        st.caption(f":material/lightbulb: {safe(reason)}")
    guessed = dict(found.attributes.get("columns") or {})
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        kind = st.segmented_control(
            tr("Row format"),
            list(_KINDS),
            default=_kind(found),
            format_func=lambda kind: tr(_KINDS[kind]),
            required=True,
            key="map-kind",
        )
        if kind == "decisions":
            return {"formatting": "decisions"}
        turned = found.attributes.get("formatting") in ("sharegpt", "openai")
        turns = kind != "text" and st.toggle(tr("Multi-turn chats"), value=turned, key="map-turns")
    formatting = str(found.attributes.get("formatting") or "sharegpt") if turns else "alpaca"
    formatting = "sharegpt" if turns and formatting == "alpaca" else formatting
    columns: dict[str, str] = {}
    with st.grid("auto", min_column_width=190, gap="small", key="map-columns") as grid:
        for name in _NEEDS[str(kind), "sharegpt" if turns else "alpaca"]:
            with grid.cell():
                first = guessed.get(name)
                chosen = st.selectbox(
                    tr(_COLUMNS[name]),
                    found.columns,
                    index=found.columns.index(first) if first in found.columns else None,
                    placeholder=tr("none"),
                    key=f"map-{name}",
                )
                if chosen:
                    columns[name] = chosen
    attributes: dict[str, Any] = {"columns": columns}
    if turns:
        attributes |= {"formatting": formatting, "tags": _tags(dict(found.attributes.get("tags") or {}))}
    if kind == "pairs":
        attributes["ranking"] = True
    return attributes


def _kind(found: guess.Guess) -> str:
    columns = found.attributes.get("columns") or {}
    if found.attributes.get("formatting") == "decisions":
        return "decisions"
    if found.attributes.get("ranking"):
        return "pairs"
    if columns.get("kto_tag"):
        return "labelled"
    return "text" if list(columns) == ["prompt"] else "chat"


def _tags(guessed: dict[str, str]) -> dict[str, str]:
    fold = st.expander(tr("Key names"), type="compact")
    with fold, st.grid("auto", min_column_width=170, gap="small") as grid:
        named = {
            tag: grid.text_input(tr(said), value=guessed.get(tag, TAGS[tag]), key=f"map-{tag}")
            for tag, said in _TURNS.items()
        }
    return {tag: name for tag, name in named.items() if name and name != TAGS[tag]}


def _preview(path: Path, attributes: dict[str, Any], dataset_dir: str) -> None:
    """The first rows as they would be read."""
    rows = guess.preview(path, attributes, rows=3)
    used = sum(not isinstance(row, Dropped) for _, row in rows)
    st.caption(
        tr(
            "Preview of {rows}; usable: {used}.",
            rows=count(len(rows), "row"),
            used=used,
        )
    )
    for place, (line, row) in enumerate(rows):
        with theme.card(f"map-row-{place}", gap="small"):
            if isinstance(row, Dropped):
                st.markdown(
                    tr(
                        ":orange[:material/block: **Line {line} is not used: {reason}**]",
                        line=line,
                        reason=safe(row.reason),
                    )
                )
                st.text(row.detail[: chat.LONGEST])
            else:
                chat.told(row, f"map-{place}", pictures.folder_in(dataset_dir))


# --- the catalog ---------------------------------------------------------------------------------------------------


def _save(path: Path, attributes: dict[str, Any], dataset_dir: str) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        name = st.text_input(
            tr("Name in the catalog"), value=path.name.split(".")[0], key="map-name", width=260
        )
        if st.button(
            tr("Add to the catalog"),
            type="primary",
            icon=":material/add:",
            **writes.locked(disabled=not attributes),
        ):
            try:
                made = writes.add_dataset(name, path, attributes, dataset_dir)
            except writes.FAILED as error:
                st.error(safe(error), icon=":material/error:")
                return
            writes.keep_draft("upload", {})
            st.session_state["added"] = made.name
            st.rerun()
        if st.button(tr("Another file"), type="tertiary", icon=":material/close:"):
            writes.keep_draft("upload", {})
            st.rerun()
