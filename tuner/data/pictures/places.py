"""Where a row's picture lies: a file under the media folder, or bytes that the row brings, kept once as a file.

Nothing is fetched, and no path leads out of the folder, by a link neither.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.data.pictures.opening import LARGE, LARGEST_FILE, MISSING, NONE, PictureError, kind_of, size_of
from tuner.data.tables import Binary
from tuner.redact import redact
from tuner.runs.files import replacing
from tuner.text.lookup import mark, tr

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|(https?|ftps?|file|data|blob|s3|gs|hdfs):", re.IGNORECASE)
_DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
SHOWN = 120
"""Characters of a path that a report shows."""


@dataclass(frozen=True)
class Keep:
    """Where bytes of pictures are kept as files, and how many bytes at most: then the oldest go. None for no end."""

    folder: Path
    most: int | None = None


def located(source: Any, folder: Path | None, keep: Keep | None = None) -> str:
    """The absolute path of a row's picture: a path under `folder`, a `data:` URL, bytes, or an object with one of those.

    Bytes go to `keep`, or where those of rows are kept. Raises PictureError.
    """
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("url") or source.get("path")
    if isinstance(source, Binary | bytes):
        return str(kept(source.value if isinstance(source, Binary) else source, keep))
    if not isinstance(source, str) or not source.strip():
        raise PictureError(
            NONE, tr("a picture is a path or bytes, this is {kind}", kind=type(source).__name__)
        )
    if found := _DATA.match(source):
        return str(kept(_decoded(source[found.end() :]), keep))
    if _URL.match(source):
        raise PictureError(FETCHED, redact(source[:SHOWN]))
    return _inside(source, folder)


def _decoded(text: str) -> bytes:
    if len(text) > 2 * LARGEST_FILE:
        raise PictureError(LARGE, tr("a data: URL of {size} MB", size=len(text) >> 20))
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError(NONE, tr("a data: URL that is not base64")) from error


def _inside(source: str, folder: Path | None) -> str:
    if folder is None:
        raise PictureError(MISSING, tr("{path}, and there is no --media_dir to look in", path=source[:SHOWN]))
    root = folder.resolve()
    try:
        real = (root / source).resolve()
        there = real.is_relative_to(root) and real.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL in it, links in a circle
        raise PictureError(MISSING, source[:SHOWN]) from error
    if not real.is_relative_to(root):
        raise PictureError(OUTSIDE, tr("{path} leads out of {folder}", path=source[:SHOWN], folder=folder))
    if not there:
        raise PictureError(MISSING, tr("{path} in {folder}", path=source[:SHOWN], folder=folder))
    return str(real)


def kept(data: bytes, keep: Keep | None = None) -> Path:
    """The file in which these bytes of a picture are kept, named by their sha256. Raises PictureError."""
    if len(data) > LARGEST_FILE:
        raise PictureError(LARGE, tr("{size} MB of bytes", size=len(data) >> 20))
    keep = keep or Keep(paths.pictures())
    path = keep.folder / f"{hashlib.sha256(data).hexdigest()}.{kind_of(data)}"
    if not path.is_file():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as fresh:
            fresh.write_bytes(data)
        if keep.most is not None:
            _forget(keep.folder, keep.most)
    return path


def _forget(folder: Path, most: int) -> None:
    """Remove the oldest files until the others have `most` bytes; the newest stays."""
    found = sorted(((file.stat(), file) for file in folder.iterdir()), key=lambda one: -one[0].st_mtime_ns)
    total = 0
    for place, (known, file) in enumerate(found):
        total += known.st_size
        if place and total > most:
            file.unlink(missing_ok=True)


def as_url(file: Path) -> str:
    """A kept picture as a data: URL; an empty one where it is no longer kept."""
    try:
        data = file.read_bytes()
    except OSError:
        data = b""
    return _url(data, file.suffix.removeprefix(".") or "png")


def shown_url(file: Path) -> str:
    """A person's own picture as a data: URL. Raises PictureError."""
    size_of(file)
    data = file.read_bytes()
    return _url(data, kind_of(data))


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


OUTSIDE = mark("picture outside the media folder")
FETCHED = mark("picture on the network, which is not fetched")
