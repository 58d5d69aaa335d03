"""Blind battles: who meets whom on which side is drawn, a vote counts once and only before names are told."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from test_votes import versions  # noqa: F401  a fixture

from tuner.chats import battle as battles
from tuner.chats import kept
from tuner.chats.battle import Battle, Contestant
from tuner.chats.talk import Answer
from tuner.tracking import store, votes
from tuner.tracking.store import TrackerError
from tuner.tracking.votes import BASE

POOL = [Contestant(BASE), Contestant("polite/1", "a" * 64), Contestant("polite/2", "b" * 64)]


def test_sides_are_drawn_and_nobody_meets_himself() -> None:
    chance = random.Random(0)
    drawn = [battles.draw(POOL, chance=chance) for _ in range(3000)]
    assert all(left.id != right.id for left, right in drawn)
    often = Counter(frozenset((left.id, right.id)) for left, right in drawn)
    assert len(often) == 3 and min(often.values()) > 900
    firsts = Counter(left.id for left, _ in drawn)
    assert all(abs(firsts[one.id] / 2000 - 0.5) < 0.03 for one in POOL), "each is as often left as right"


@pytest.mark.parametrize(
    "pool",
    [
        [],
        POOL[:1],
        [POOL[1], POOL[1]],
        [Contestant("polite/1", "a" * 64), Contestant("again/7", "a" * 64)],
        [Contestant(BASE), Contestant(BASE)],
    ],
)
def test_who_cannot_meet_anybody_is_told(pool: list[Contestant]) -> None:
    with pytest.raises(ValueError, match="two different contestants"):
        battles.draw(pool)


def test_those_who_met_least_meet_next() -> None:
    met = [(BASE, "polite/1"), ("polite/1", "polite/2")]
    assert all({one.id for one in battles.draw(POOL, met)} == {BASE, "polite/2"} for _ in range(20))


@pytest.fixture
def drawn(versions: list[str]) -> Battle:  # noqa: F811
    """A battle of the base with a version, both of whose answers are there."""
    pool = [Contestant(BASE), Contestant(versions[0], "a" * 64)]
    made = battles.begin("data/starter", pool, [{"role": "user", "content": "Hello?"}], tag="greetings")
    for side in (0, 1):
        battles.keep_answer(made.id, side, replace(made.answers[side], state="done", text=f"Hi {side}."))
    found = battles.load(made.id)
    assert found is not None
    return found


def test_a_battle_is_kept_and_both_sides_are_asked_alike(drawn: Battle) -> None:
    assert battles.of_json(json.loads(json.dumps(battles.to_json(drawn)))) == drawn
    assert drawn.ready and drawn.whole and [a.text for a in drawn.answers] == ["Hi 0.", "Hi 1."]
    assert drawn.question()["seed"] == drawn.seed and "model" not in drawn.question()
    assert [a.model for a in drawn.answers] == [drawn.left.id, drawn.right.id]
    assert battles.load("0" * 16) is None and battles.load("..") is None


def test_the_first_vote_counts_and_later_ones_do_not(drawn: Battle) -> None:
    first = battles.vote(drawn.id, "left", "mia")
    again = battles.vote(drawn.id, "right", "ron")
    assert (first.said, again.said, again.by) == ("left", "left", "mia")
    (vote,) = votes.votes("data/starter")
    assert (vote.said, vote.left, vote.right) == ("left", drawn.left.id, drawn.right.id)
    assert (vote.tag, vote.by, vote.battle) == ("greetings", "mia", drawn.id)
    sums = {vote.left: vote.left_sum, vote.right: vote.right_sum}
    assert sums == {BASE: "", "polite/1": "a" * 12}


def test_votes_at_once_make_one(drawn: Battle) -> None:
    said = ["left", "right", "tie", "bad"] * 2
    voters = [threading.Thread(target=battles.vote, args=(drawn.id, word)) for word in said]
    for one in voters:
        one.start()
    for one in voters:
        one.join()
    (vote,) = votes.votes()
    assert battles.load(drawn.id).said == vote.said  # type: ignore[union-attr]


def test_a_vote_that_mlflow_does_not_take_can_be_cast_again(drawn: Battle, home: Path) -> None:
    file, away = store.database(), home / "away.db"
    assert file is not None
    file.rename(away)
    with pytest.raises(TrackerError):
        battles.vote(drawn.id, "left")
    assert battles.load(drawn.id).said is None  # type: ignore[union-attr]
    away.rename(file)
    assert battles.vote(drawn.id, "right").said == "right"
    assert [vote.said for vote in votes.votes()] == ["right"]


@pytest.mark.parametrize("state", ["waiting", "writing", "failed", "stopped"])
def test_what_cannot_be_judged_is_not_voted_on(drawn: Battle, state: str) -> None:
    battles.keep_answer(drawn.id, 1, Answer(drawn.right.id, state=state))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Two complete answers are needed"):
        battles.vote(drawn.id, "left")
    with pytest.raises(ValueError, match="no such battle"):
        battles.vote("0" * 16, "left")
    assert votes.votes() == [] and kept.read_json("battles", "0" * 16) is None


def test_how_often_the_left_side_wins_is_told(drawn: Battle) -> None:
    assert battles.left_share(votes.votes()) is None
    battles.vote(drawn.id, "left")
    assert battles.left_share(votes.votes()) == 1.0
