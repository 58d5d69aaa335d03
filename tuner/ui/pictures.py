"""Pictures of rows as people see them: small, in their places, and what is wrong with those that cannot be shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from tuner import paths
from tuner.data.entries import Entry
from tuner.data.pictures.drawing import folder_at
from tuner.data.pictures.opening import PictureError, size_of
from tuner.data.pictures.places import SHOWN, located
from tuner.data.pictures.thumbnails import thumbnail
from tuner.data.turns import PLACEHOLDER
from tuner.text.lookup import tr
from tuner.ui import draft
from tuner.ui.words import count, safe


def folder_of(entry: Entry) -> Path | None:
    """Where a set's pictures lie."""
    return folder_in(str(entry.dataset_dir) if entry.local else "ONLINE")


def folder_in(dataset_dir: str) -> Path | None:
    """Where pictures of a catalog's sets lie: in the form's media folder, or beside the catalog."""
    said = draft.current().values.get("media_dir")
    return folder_at(str(said) if said else None, dataset_dir)


def by_message(messages: Sequence[Mapping[str, Any]], sources: Sequence[Any]) -> Iterator[list[Any]]:
    """The pictures of each message, in order."""
    rest = iter(sources)
    for said in messages:
        yield [one for _, one in zip(range(str(said.get("content")).count(PLACEHOLDER)), rest, strict=False)]


def strip(sources: Sequence[Any], folder: Path | None, key: str) -> None:
    """Pictures side by side, each with its size."""
    if not sources:
        return
    with st.container(horizontal=True, gap="small", key=f"pictures-{key}"):
        for source in sources:
            _one(source, folder)


def of_run(values: Mapping[str, Any]) -> Path | None:
    """Where the pictures of a run's sets lie, by its own knobs."""
    media = values.get("media_dir")
    return folder_at(str(media) if media else None, str(values.get("dataset_dir") or "data"))


def _one(source: Any, folder: Path | None) -> None:
    kept = paths.pictures()  # of a row that brought bytes a run notes the file in which they are kept
    root = kept if isinstance(source, str) and Path(source).parent == kept else folder
    try:
        path = located(source, root)
        width, height = size_of(path)
        st.image(thumbnail(path), caption=f"{count(width)} × {count(height)}", alt=_name(source, path))
    except PictureError as error:
        said = safe(f"{tr(error.reason)}: {error.detail}")
        st.markdown(f":orange[:material/broken_image: {said}]", width=220)


def _name(source: Any, path: str) -> str:
    """What a picture is called: by its row, or where it brings bytes by the file in which these are kept."""
    named = source.get("path") if isinstance(source, Mapping) else source
    return (
        Path(named).name[:SHOWN]
        if isinstance(named, str) and not named.startswith("data:")
        else Path(path).name[:16]
    )
