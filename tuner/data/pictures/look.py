"""A look at the pictures of a set's first rows, soon enough for a form: what is wrong with some, and how long rows are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tuner.config.config import Config
from tuner.config.knobs import ConfigError
from tuner.data.entries import Entry
from tuner.data.files import records
from tuner.data.formats import Dropped, convert
from tuner.data.pictures.drawing import TOO_MANY, media_folder
from tuner.data.pictures.opening import PictureError, size_of
from tuner.data.pictures.placeholders import ANSWERED, MISMATCH
from tuner.data.pictures.places import located
from tuner.data.pictures.sizes import PictureTokens, picture_tokens
from tuner.data.report import Finding, Place, contents
from tuner.text.lookup import tr

MOST, PATIENCE = 300, 0.5
"""Rows that are looked at, and seconds that it takes at most."""
KEPT = 20
"""Seconds for which a look is good: a form asks at every change."""
LOOKS = 64
"""Looks that are remembered."""
CHARACTERS = 4
"""Of a token of text, about."""


@dataclass
class Look:
    """What was seen: how many rows, those that will not be used by their reason, and the tokens of the others."""

    rows: int = 0
    unfit: dict[str, Finding] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """How many rows will not be used."""
        return sum(found.count for found in self.unfit.values())


def look(entry: Entry, config: Config, model: Path) -> Look | None:
    """A look at a set for a config, whose model is in a folder; None for a set or a model without pictures."""
    with suppress(ConfigError, OSError):
        tokens = picture_tokens(model, config.image_do_pan_and_scan)
        if tokens is None or not entry.local or not entry.pictures:
            return None
        changed = tuple((str(f), f.stat().st_mtime_ns) for f in entry.files())
        bounds = config.cutoff_len, config.image_max_pixels, config.image_min_pixels
        asked = _Asked(entry, tokens, media_folder(config), *bounds)
        return _remembered(asked, (repr(asked), changed, int(time.monotonic() // KEPT)))
    return None


def _remembered(asked: _Asked, key: tuple[Any, ...]) -> Look:
    if key not in _SEEN:
        if len(_SEEN) >= LOOKS:
            _SEEN.clear()
        _SEEN[key] = _looked(asked)
    return _SEEN[key]


@dataclass(frozen=True)
class _Asked:
    entry: Entry
    tokens: PictureTokens
    folder: Path | None
    cutoff: int
    max_pixels: int
    min_pixels: int


_SEEN: dict[tuple[Any, ...], Look] = {}
"""The last looks by what was asked, the files' times and when."""


def _looked(asked: _Asked) -> Look:
    found = Look()
    until = time.monotonic() + PATIENCE
    for place, record in islice(_records(asked.entry), MOST):
        found.rows += 1
        _see(found, asked, place, record)
        if time.monotonic() > until:
            break
    return found


def _records(entry: Entry) -> Iterator[tuple[Place, Any]]:
    for path in entry.files():
        yield from ((Place(entry.name, path.name, line), record) for line, record in records(path))


def _see(found: Look, asked: _Asked, place: Place, record: Any) -> None:
    row = convert(record, asked.entry)
    if isinstance(row, Dropped):
        if row.reason in (tr(MISMATCH), tr(ANSWERED)):
            found.unfit.setdefault(row.reason, Finding()).add(place, row.detail)
        return
    try:
        shown = _shown(row, asked)
    except PictureError as error:
        found.unfit.setdefault(error.reason, Finding()).add(place, error.detail)
        return
    found.tokens.append(shown + sum(map(len, contents(row))) // CHARACTERS)


def _shown(row: Mapping[str, Any], asked: _Asked) -> int:
    """Tokens of a row's pictures. Raises PictureError, also where they alone are too many."""
    sizes = [
        size_of(located(source, asked.folder), asked.max_pixels, asked.min_pixels)
        for source in row.get("images", ())
    ]
    tokens = sum(asked.tokens.count(*size) for size in sizes)
    if tokens >= asked.cutoff:
        said = tr(
            "{pictures} tokens of pictures; cutoff_len is {cutoff}", pictures=tokens, cutoff=asked.cutoff
        )
        raise PictureError(TOO_MANY, said)
    return tokens
