"""A copy of a data set without the rows that cannot be used and those that say the same as one before."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner import private
from tuner.data.additions import unused
from tuner.data.catalog import catalog_folder
from tuner.data.entries import Entry
from tuner.data.files import Broken
from tuner.data.formats import Dropped, convert
from tuner.data.pages import Pages
from tuner.data.pictures.opening import PictureError, size_of
from tuner.data.pictures.places import located
from tuner.data.tables import Binary
from tuner.data.upload import UPLOADS, attributes_of, must_be_free, save
from tuner.runs.files import replacing


@dataclass(frozen=True)
class Mended:
    """The copy, and how many rows are in it and were left out of it."""

    entry: Entry
    kept: int
    unusable: int
    duplicates: int


def mended(entry: Entry, name: str, dataset_dir: str | Path, media: Path | None = None) -> Mended:
    """Write the copy beside uploads and put it into the catalog with the columns of the set. The set stays as it is.
    Pictures are looked for in the folder `media`.

    Raises ConfigError where the name is taken or the rows cannot be read, OSError where nothing can be written.
    """
    folder = catalog_folder(dataset_dir)
    must_be_free(name, folder)
    file = unused(folder / UPLOADS / f"{name}.jsonl")
    with private.as_the_person():
        file.parent.mkdir(parents=True, exist_ok=True)
    known = Pages(entry.files())
    seen: set[bytes] = set()
    kept = unusable = duplicates = 0
    with replacing(file) as partial, partial.open("w", encoding="utf-8") as out:
        for number in range(known.count()):
            record = known.row(number).record
            if isinstance(record, Broken) or not _usable(record, entry, media):
                unusable += 1
            elif (mark := _print(record)) in seen:
                duplicates += 1
            else:
                seen.add(mark)
                out.write(json.dumps(record, ensure_ascii=False, default=_written) + "\n")
                kept += 1
    private.share(file)  # it lies in the person's own folder
    return Mended(save(name, file, attributes_of(entry.name, folder), folder), kept, unusable, duplicates)


def _usable(record: dict[str, Any], entry: Entry, media: Path | None) -> bool:
    row = convert(record, entry)
    if isinstance(row, Dropped):
        return False
    try:
        for source in row.get("images", ()):
            size_of(located(source, media))
    except PictureError:
        return False
    return True


def _written(value: Any) -> str:
    """What JSON has no form for: the bytes of a picture as a `data:` URL, anything else as its text."""
    if not isinstance(value, Binary):
        return str(value)
    return f"data:image/unknown;base64,{base64.b64encode(value.value).decode()}"


def _print(record: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).digest()
