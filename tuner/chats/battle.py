"""Blind battles: two contestants answer one prompt, a person votes, and only then is told who was who.

Sides are drawn for each battle and written down. A vote counts once, and none after it was told who was who.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from typing import Any

from tuner.chats import kept
from tuner.chats.talk import OPEN, Answer, Decoding, answer_of_json, answer_to_json, fresh_id, fresh_seed
from tuner.text.lookup import tr
from tuner.tracking import votes
from tuner.tracking.votes import CHECKSUM, Said, Vote

_chance = random.SystemRandom()


@dataclass(frozen=True)
class Contestant:
    """Who may be drawn: BASE or NAME/NUMBER, with the sha256 of its weights, empty for the base."""

    id: str
    sha256: str = ""


@dataclass(frozen=True)
class Battle:
    """One prompt and two answers. `messages` is the prompt as chat messages, `source` the data set it is from, if any.

    `left` and `right` are contestants, `run` the serve run that was asked. As long as nobody has voted `said` is None,
    and they are not told.
    """

    id: str
    base: str
    left: Contestant
    right: Contestant
    messages: tuple[Mapping[str, str], ...]
    tag: str = ""
    source: str = ""
    seed: int = 0
    decoding: Decoding = field(default_factory=Decoding)
    answers: tuple[Answer, Answer] = (Answer(""), Answer(""))
    pool: tuple[str, ...] = ()
    said: Said | None = None
    by: str = ""
    run: str = ""

    @property
    def ready(self) -> bool:
        """Whether both answers are there: neither is shown before the other."""
        return all(answer.state not in OPEN for answer in self.answers)

    @property
    def whole(self) -> bool:
        """Whether both can be judged: a side that failed says nothing about who is better."""
        return all(answer.state == "done" for answer in self.answers)

    def question(self) -> dict[str, Any]:
        """The body of the question to the server, but for the model's id: alike for both sides."""
        return {**asdict(self.decoding), "seed": self.seed, "messages": [dict(one) for one in self.messages]}


def pairs(pool: Sequence[Contestant]) -> list[tuple[Contestant, Contestant]]:
    """Who can meet whom: never one itself, nor the same weights under two numbers, nor the base the base."""
    return [
        (one, other)
        for one, other in combinations(dict.fromkeys(pool), 2)
        if one.id != other.id and (not one.sha256 or one.sha256 != other.sha256)
    ]


def draw(
    pool: Sequence[Contestant], met: Iterable[tuple[str, str]] = (), chance: random.Random = _chance
) -> tuple[Contestant, Contestant]:
    """Left and right of the next battle: a pair of those that met least often, its sides by the toss of a coin.

    Raises ValueError where nobody can meet anybody.
    """
    can = pairs(pool)
    if not can:
        raise ValueError(tr("A battle needs two different contestants; choose another version."))
    often = Counter(frozenset(pair) for pair in met)
    least = min(often[frozenset((one.id, other.id))] for one, other in can)
    pair = chance.choice([(a, b) for a, b in can if often[frozenset((a.id, b.id))] == least])
    return pair if chance.random() < 0.5 else pair[::-1]


def begin(
    base: str,
    pool: Sequence[Contestant],
    messages: Sequence[Mapping[str, str]],
    *,
    tag: str = "",
    source: str = "",
    decoding: Decoding | None = None,
    by: str = "",
    run: str = "",
) -> Battle:
    """Draw a battle and write it down. Raises ValueError, TrackerError or OSError."""
    met = [(vote.left, vote.right) for vote in votes.votes(base)]
    left, right = draw(pool, met)
    made = Battle(
        fresh_id(), base, left, right, tuple(messages), tag.strip(), source, fresh_seed(),
        decoding or Decoding(), (Answer(left.id), Answer(right.id)), tuple(one.id for one in pool), by=by, run=run,
    )  # fmt: skip
    kept.change("battles", made.id, lambda _: to_json(made))
    return made


def keep_answer(id: str, side: int, answer: Answer) -> None:
    """Write down an answer as far as it is written."""

    def changed(given: dict[str, Any] | None) -> Mapping[str, Any]:
        if given is None:
            raise ValueError(tr("This battle no longer exists."))
        battle = of_json(given)
        left, right = battle.answers
        return to_json(replace(battle, answers=(answer, right) if side == 0 else (left, answer)))

    kept.change("battles", id, changed)


def vote(id: str, said: Said, by: str = "") -> Battle:
    """Count a vote, at the versions in MLflow and in the battle; the first one stays, for then it was told who was who.

    Raises ValueError where there is nothing to judge, TrackerError where MLflow cannot be written: then it may be cast
    again.
    """
    made: list[Battle] = []

    def changed(given: dict[str, Any] | None) -> Mapping[str, Any]:
        battle = of_json(given or {})
        if battle.said is None:
            if not battle.whole:
                raise ValueError(tr("Two complete answers are needed to vote; draw another battle."))
            votes.keep(_vote(battle, said, by))
            battle = replace(battle, said=said, by=by)
        made.append(battle)
        return to_json(battle)

    kept.change("battles", id, changed)
    return made[0]


def _vote(battle: Battle, said: Said, by: str) -> Vote:
    return Vote(
        battle=battle.id,
        base=battle.base,
        left=battle.left.id,
        right=battle.right.id,
        said=said,
        tag=battle.tag,
        by=by,
        at=time.time(),
        left_sum=battle.left.sha256[:CHECKSUM],
        right_sum=battle.right.sha256[:CHECKSUM],
    )


def load(id: str) -> Battle | None:
    """A battle; None where there is none, or none that can be read."""
    given = kept.read_json("battles", id)
    try:
        return of_json(given) if given is not None else None
    except ValueError:
        return None


def left_share(cast: Iterable[Vote]) -> float | None:
    """How often the left side won of the votes that chose one; far from a half, people vote by side. None for none."""
    chosen = [vote.said for vote in cast if vote.said in ("left", "right")]
    return chosen.count("left") / len(chosen) if chosen else None


def to_json(battle: Battle) -> dict[str, Any]:
    """Plain values, which `of_json` reads."""
    return {**asdict(battle), "answers": [answer_to_json(answer) for answer in battle.answers]}


def of_json(given: Mapping[str, Any]) -> Battle:
    """A battle that was written down. Raises ValueError where it is none."""
    names = {one.name for one in fields(Battle)}
    try:
        known = {name: value for name, value in given.items() if name in names}
        left, right = map(answer_of_json, known["answers"])
        known |= {"left": Contestant(**known["left"]), "right": Contestant(**known["right"])}
        known |= {"decoding": Decoding(**known["decoding"]), "answers": (left, right)}
        return Battle(**known | {"messages": tuple(known["messages"]), "pool": tuple(known["pool"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(tr("There is no such battle; draw another one.")) from error
