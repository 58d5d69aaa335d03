"""Votes of blind battles, kept in MLflow at the versions that were voted on: one tag a vote, so that none overwrites another.

A vote between two versions stands at both, so that it outlives the deletion of one; it is read once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, TypeVar, get_args

from tuner.text.lookup import tr
from tuner.tracking.reader import Reader, reader
from tuner.tracking.rows import VOTE
from tuner.tracking.store import TrackerError, changing, open_store

T = TypeVar("T")
Said = Literal["left", "right", "tie", "bad"]
SCORES: Mapping[Said, float] = {"left": 1.0, "tie": 0.5, "bad": 0.5, "right": 0.0}
"""What the left side gets: that both are bad says no more about which is better than that both are good."""
BASE = "base"
"""The contestant that is the base model itself; versions are NAME/NUMBER."""
CHECKSUM = 12
"""Digits of a version's sha256 that a vote keeps."""
PATIENCE = 10.0
"""Seconds that a vote is tried for while another program writes into the database."""


@dataclass(frozen=True)
class Vote:
    """What a person said of two answers whose authors they did not know.

    `left` and `right` are contestants: BASE or NAME/NUMBER, each with the first digits of its sha256, empty for the
    base. `at` is in seconds since the epoch.
    """

    battle: str
    base: str
    left: str
    right: str
    said: Said
    tag: str = ""
    by: str = ""
    at: float = 0.0
    left_sum: str = ""
    right_sum: str = ""

    @property
    def game(self) -> tuple[str, str, float]:
        """Left, right and what the left one got."""
        return self.left, self.right, SCORES[self.said]


def keep(vote: Vote) -> Vote:
    """Write a vote down at each of its versions; the same battle's once more changes nothing.

    Raises ValueError where nobody can be told apart by it, TrackerError where MLflow cannot be written now.
    """
    sides = [side for side in (vote.left, vote.right) if side != BASE]
    if vote.left == vote.right or not sides:
        raise ValueError(tr("A version cannot meet itself; draw another battle."))
    made = replace(vote, at=vote.at or time.time())
    text = json.dumps(asdict(made), ensure_ascii=False)
    for side in sides:
        name, _, version = side.rpartition("/")
        _insist(lambda name=name, version=version: _set(name, version, vote.battle, text))  # type: ignore[misc]
    return made


def _set(name: str, version: str, battle: str, text: str) -> None:
    with changing():
        open_store(create=False).set_model_version_tag(name, version, f"{VOTE}{battle}", text)


def _insist(write: Callable[[], T]) -> T:
    """Do it, again where the database was locked: a vote that is lost cannot be asked for again."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return write()
        except TrackerError as error:
            if "locked by another program" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.05)


def votes(base: str = "") -> list[Vote]:
    """Every vote once, or those on one base model's versions, the oldest first. Raises TrackerError.

    Those on weights that a version of the same number has replaced are left out.
    """
    asked = reader()
    known = {vote.battle: vote for vote in map(_read, asked.votes()) if vote is not None}
    found = [vote for vote in known.values() if base in ("", vote.base)]
    sums = _sums(asked, found)
    return sorted(
        (vote for vote in found if _same_weights(vote, sums)), key=lambda vote: (vote.at, vote.battle)
    )


def _sums(asked: Reader, cast: Iterable[Vote]) -> dict[str, str]:
    """The checksums that the versions have now which votes are about."""
    sides = {side for vote in cast for side in (vote.left, vote.right)}
    parts = [side.rpartition("/") for side in sides]
    ids = [(name, int(number)) for name, _, number in parts if number.isdecimal()]
    rows = asked.adapters(ids) if ids else []
    return {f"{row['name']}/{row['version']}": row["tags"].get("sha256", "")[:CHECKSUM] for row in rows}


def tags(cast: Iterable[Vote]) -> list[str]:
    """The tags that votes have."""
    return sorted({vote.tag for vote in cast if vote.tag})


def _same_weights(vote: Vote, sums: Mapping[str, str]) -> bool:
    sides = ((vote.left, vote.left_sum), (vote.right, vote.right_sum))
    return all(not kept or sums.get(side, kept) == kept for side, kept in sides)


def _read(text: str) -> Vote | None:
    """A vote that was written down; None where it is none, or of a later studio."""
    known = {field.name for field in fields(Vote)}
    try:
        given = json.loads(text)
        vote = Vote(**{name: value for name, value in given.items() if name in known})
    except (ValueError, TypeError, AttributeError):
        return None
    return vote if vote.said in get_args(Said) else None
