"""Pictures small enough to be looked at: made anew from what was unpacked, so that nothing of a file itself is ever served."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from pathlib import Path

from tuner.data.pictures.opening import load, size_of

SIDE = 160
"""Pixels of a thumbnail's longer side."""


def thumbnail(path: str, side: int = SIDE) -> bytes:
    """A picture as WebP, no longer and no higher than `side` pixels. Raises PictureError."""
    size_of(path)
    return _made(path, Path(path).stat().st_mtime_ns, side)


@lru_cache(maxsize=512)
def _made(path: str, changed: int, side: int) -> bytes:
    picture = load(path)
    picture.thumbnail((side, side))
    into = BytesIO()
    picture.save(into, "WEBP", quality=80)
    return into.getvalue()
