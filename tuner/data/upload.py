"""Bring your own: files received or pointed at, checked, and written into the catalog. Nothing is ever half-written."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tuner import private
from tuner.config.knobs import ConfigError, Problem
from tuner.data.catalog import catalog_folder, entry, read_catalog
from tuner.data.entries import CATALOG, Entry
from tuner.data.files import TYPES, Broken, layout, records
from tuner.runs import locks
from tuner.runs.files import replacing
from tuner.text.lookup import tr

UPLOADS = "uploads"
LARGEST = 2 << 30
"""The largest upload, in bytes; a larger file is given by its path."""
LARGEST_GROUP = 2 << 30
"""The largest row group of a parquet file, in bytes once unpacked."""
LOOK = 200


def safe_name(name: str) -> str:
    """A data set's name as it may stand in the catalog and in a file name. Raises ConfigError."""
    fine = 0 < len(name) <= 80 and all(c.isalnum() or c in "-_." for c in name)
    if not fine or name.startswith(".") or ".." in name:
        raise _refused(
            tr("{name!r} is no name for a data set; use letters, digits, - and _.", name=name[:80])
        )
    return name


def receive(chunks: Iterable[bytes], file_name: str, dataset_dir: str | Path, largest: int = LARGEST) -> Path:
    """Write an uploaded file into the data folder's uploads and check it; returns where it lies, named by its content.

    Memory stays at one chunk. Raises ConfigError, and then nothing is left behind.
    """
    suffix = Path(file_name).suffix.lower().lstrip(".")
    if suffix not in TYPES:
        raise _refused(
            tr("{name!r} is not one of {types}.", name=Path(file_name).name[:80], types=", ".join(TYPES))
        )
    stem = safe_name(
        "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(file_name).stem)[:60].strip("-") or "set"
    )
    folder = catalog_folder(dataset_dir) / UPLOADS
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, prefix=".incoming-", suffix=f".{suffix}")
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _copy(chunks, file, largest, binary=suffix in ("parquet", "arrow"))
            file.flush()
            os.fsync(file.fileno())
        check(Path(partial))
        target = folder / f"{stem}.{digest[:12]}.{suffix}"
        private.share(Path(partial))  # it lies in the person's own folder
        Path(partial).rename(target)
    finally:
        Path(partial).unlink(missing_ok=True)
    return target


def _copy(chunks: Iterable[bytes], file: Any, largest: int, binary: bool) -> str:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        size += len(chunk)
        if size > largest:
            raise _refused(
                tr(
                    "The file is larger than {largest:,} MB; put it on this machine and give its path.",
                    largest=largest >> 20,
                )
            )
        if not binary and b"\0" in chunk and not (size == len(chunk) and b"\0" in chunk[:4]):
            raise _refused(tr("The file holds NUL bytes, so it is no text; save it as UTF-8 text."))
        digest.update(chunk)
        file.write(chunk)
    if not size:
        raise _refused(tr("The file is empty; give one that holds rows."))
    return digest.hexdigest()


def local_file(path: str | Path) -> Path:
    """A file of this machine that is to be used where it lies. Raises ConfigError for links and what is no file."""
    given = Path(path).expanduser()
    if given.is_symlink():
        raise _refused(tr("{given} is a link; give the file itself.", given=given))
    if not given.is_file():
        raise _refused(tr("There is no file {given}.", given=given))
    check(given)
    return given.resolve()


def check(path: Path) -> None:
    """Raise ConfigError when a file holds nothing that could be learnt from; reads its first rows only."""
    kind = layout(path)
    if kind == "parquet":
        _check_groups(path)
    first: Broken | None = None
    seen = 0
    for _, record in islice(records(path), LOOK):
        seen += 1
        if isinstance(record, dict) and record:
            return
        first = first or (record if isinstance(record, Broken) else None)
    if not seen:
        raise _refused(tr("{name} holds no rows.", name=path.name))
    why = f"{first.reason}: {first.excerpt[:80]}" if first else tr("its rows are empty")
    raise _refused(tr("No row of {name} can be read; {why}.", name=path.name, why=why))


def _check_groups(path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        about = parquet.ParquetFile(path).metadata
    except pa.ArrowException as error:
        raise _refused(
            tr(
                "{name} is not readable as parquet: {splitlines}.",
                name=path.name,
                splitlines=str(error).splitlines()[0],
            )
        ) from error
    largest = max((about.row_group(i).total_byte_size for i in range(about.num_row_groups)), default=0)
    if largest > LARGEST_GROUP:
        raise _refused(
            tr(
                "{name} unpacks to {largest:,} MB at once; write it with smaller row groups.",
                name=path.name,
                largest=largest >> 20,
            )
        )


def save(
    name: str, path: Path, attributes: Mapping[str, Any], dataset_dir: str | Path, replace: bool = False
) -> Entry:
    """Write a data set into the catalog, creating dataset_info.json where there is none; the rest of it stays as it is.

    Raises ConfigError when the name is taken, or the attributes are wrong.
    """
    folder = catalog_folder(dataset_dir)
    folder.mkdir(parents=True, exist_ok=True)
    place = path.resolve()
    inside = place.is_relative_to(folder.resolve())
    file_name = place.relative_to(folder.resolve()).as_posix() if inside else str(place)
    whole = {"file_name": file_name, **{k: v for k, v in attributes.items() if k not in ("file_name",)}}
    made = entry(safe_name(name), whole, folder)
    with locks.locking(folder, wait=math.inf, how=os.O_RDONLY):
        known = _raw(folder)
        if name in known and not replace:
            raise _taken(name)
        _write(folder, {**known, name: whole})
    return made


def must_be_free(name: str, dataset_dir: str | Path) -> None:
    """Say so before a file is written for it. Raises ConfigError where the name is taken or may not be one."""
    if safe_name(name) in _raw(catalog_folder(dataset_dir)):
        raise _taken(name)


def remove(name: str, dataset_dir: str | Path) -> None:
    """Take a data set out of the catalog; its file stays. Raises ConfigError when there is none of that name."""
    folder = catalog_folder(dataset_dir)
    with locks.locking(folder, wait=math.inf, how=os.O_RDONLY):
        known = _raw(folder)
        if name not in known:
            raise _refused(tr("There is no data set {name}.", name=name))
        _write(folder, {k: v for k, v in known.items() if k != name})


def attributes_of(name: str, dataset_dir: str | Path) -> dict[str, Any]:
    """What the catalog says of a set but its file: columns, tags, formatting."""
    known = _raw(catalog_folder(dataset_dir)).get(name, {})
    return {key: value for key, value in known.items() if key != "file_name"}


def _raw(folder: Path) -> dict[str, Any]:
    path = folder / CATALOG
    if not path.exists():
        return {}
    read_catalog(folder)  # says what is wrong with it, if anything
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
    return raw


def _write(folder: Path, catalog: Mapping[str, Any]) -> None:
    with replacing(folder / CATALOG) as partial:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(catalog, file, ensure_ascii=False, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        private.share(partial)  # it lies in the person's own folder


def _taken(name: str) -> ConfigError:
    return _refused(tr("There is a data set {name} already; choose another name.", name=name))


def _refused(sentence: str) -> ConfigError:
    return ConfigError([Problem("dataset", sentence)])
