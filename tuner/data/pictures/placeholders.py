"""Which file stands for which `<image>` of a row: as many of one as of the other, or the row is not used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tuner.data.turns import PLACEHOLDER, Message, UnfitError, is_nothing
from tuner.text.lookup import mark, tr

MISMATCH = mark("pictures and <image> do not match")
ANSWERED = mark("picture in an answer")


def sources(
    messages: Sequence[Message], answers: Sequence[Message], cell: Any, named: bool
) -> list[Any] | None:
    """What stands for each `<image>` of a row's messages, in order: a path, bytes or an object. None for a row of a set
    without pictures, in which `<image>` is a text like any other.

    `cell` is what the row has in its column of pictures, which its catalog may have `named`. Raises UnfitError.
    """
    parts = any("pictures" in said for said in messages)
    own = [given for said in messages for given in _asked(said)]
    if not named and not parts:
        return None
    files = _listed(cell)
    places = sum(given is None for given in own)
    if places != len(files):
        said = tr(
            "{places} <image> and {files} pictures", places=len(own), files=len(own) - places + len(files)
        )
        raise UnfitError(tr(MISMATCH), said)
    if own and any(
        PLACEHOLDER in said["content"] for said in (*messages, *answers) if said["role"] == "assistant"
    ):
        raise UnfitError(tr(ANSWERED), tr("put it into the question"))
    rest = iter(files)
    return [next(rest) if given is None else given for given in own]


def _asked(said: Message) -> Iterator[Any]:
    """What a message's own parts give for each of its placeholders, None where the row's column has it."""
    given = said.pop("pictures", None)
    yield from [None] * said["content"].count(PLACEHOLDER) if given is None else given


def _listed(cell: Any) -> list[Any]:
    """The pictures of a row's column: one, a list, or a list as a table of text keeps it."""
    if is_nothing(cell):
        return []
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError:
            return [cell]
    return [one for one in cell if not is_nothing(one)] if isinstance(cell, list | tuple) else [cell]
