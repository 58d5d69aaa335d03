"""Votes at the versions that were voted on: kept in MLflow itself, once each, by however many voters at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import forks
import pytest

from tuner.chats.strengths import strengths
from tuner.tracking import adapters, store, votes
from tuner.tracking.client_reader import ClientReader
from tuner.tracking.client_reader import _seen as client_cache
from tuner.tracking.rows import VOTE
from tuner.tracking.sqlite_reader import SqliteReader
from tuner.tracking.votes import BASE, Vote


@pytest.fixture
def versions(home: Path) -> list[str]:
    """Three versions of two adapters of one base, as MLflow's registry has them."""
    client_cache.clear()
    client = store.open_store()
    made = []
    for name, digest in (("polite", "a" * 64), ("polite", "b" * 64), ("curt", "c" * 64)):
        if name not in {known.partition("/")[0] for known in made}:
            client.create_registered_model(name)
        tags = {"base": "data/starter", "sha256": digest}
        made.append(f"{name}/{client.create_model_version(name, str(home), tags=tags).version}")
    store.changed()
    return made


def vote(battle: str, left: str, right: str, **more: Any) -> Vote:
    return Vote(battle=battle, base="data/starter", left=left, right=right, **{"said": "left", **more})


def test_a_vote_stands_at_both_its_versions_and_counts_once(versions: list[str]) -> None:
    first, second, _ = versions
    votes.keep(vote("b1", first, second, tag="manners", left_sum="a" * 12, right_sum="b" * 12))
    votes.keep(vote("b1", first, second, tag="manners", left_sum="a" * 12, right_sum="b" * 12))
    votes.keep(vote("b2", BASE, first, said="bad"))
    (one, other) = votes.votes()
    assert (one.battle, one.game, one.tag) == ("b1", (first, second, 1.0), "manners")
    assert other.game == (BASE, first, 0.5) and votes.tags([one, other]) == ["manners"]
    assert 0 < one.at <= other.at
    client = store.open_store()
    assert {
        place: [key for key in client.get_model_version(*place.split("/")).tags if key.startswith(VOTE)]
        for place in versions
    } == {first: ["vote.b1", "vote.b2"], second: ["vote.b1"], versions[2]: []}
    assert votes.votes("data/starter") == [one, other] and votes.votes("another/base") == []


def test_both_readers_tell_the_same_and_lists_of_adapters_hold_no_votes(versions: list[str]) -> None:
    votes.keep(vote("b1", versions[0], versions[2]))
    quick, through_api = SqliteReader(store.database()), ClientReader()  # type: ignore[arg-type]
    assert sorted(quick.votes()) == sorted(through_api.votes()) and len(quick.votes()) == 2
    for row in (*quick.adapters(), *through_api.adapters()):
        assert set(row["tags"]) == {"base", "sha256"}


def test_a_version_never_meets_itself(versions: list[str]) -> None:
    for left, right in ((versions[0], versions[0]), (BASE, BASE)):
        with pytest.raises(ValueError, match="cannot meet itself"):
            votes.keep(vote("b", left, right))
    assert votes.votes() == []


def test_votes_outlive_one_of_their_versions_and_do_not_pass_to_another_of_its_number(
    versions: list[str], home: Path
) -> None:
    first, second, third = versions
    votes.keep(vote("b1", second, third, left_sum="b" * 12, right_sum="c" * 12))
    votes.keep(vote("b2", BASE, second, right_sum="b" * 12))
    adapters.delete_adapter("polite", 2)
    assert [one.battle for one in votes.votes()] == ["b1"]
    made = store.open_store().create_model_version("polite", str(home), tags={"sha256": "d" * 64})
    store.changed()
    left = [] if f"polite/{made.version}" == second else ["b1"]
    assert [one.battle for one in votes.votes()] == left


def test_what_is_no_vote_is_passed_over(versions: list[str]) -> None:
    votes.keep(vote("b1", versions[0], versions[2]))
    client = store.open_store()
    for number, text in enumerate(("no JSON", "[]", "{}", json.dumps({"battle": "x", "said": "perhaps"}))):
        client.set_model_version_tag("curt", "1", f"{VOTE}broken{number}", text)
    later = {
        **json.loads(client.get_model_version("curt", "1").tags["vote.b1"]),
        "battle": "b9",
        "mood": "good",
    }
    client.set_model_version_tag("curt", "1", f"{VOTE}b9", json.dumps(later))
    assert [one.battle for one in votes.votes()] == ["b1", "b9"]


def cast(who: str, left: str, right: str) -> None:
    for number in range(12):
        votes.keep(Vote(battle=f"{who}-{number}", base="data/starter", left=left, right=right, said="left"))


def test_voters_at_once_lose_no_vote_and_another_studio_reads_them(
    versions: list[str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    voters = [(cast, (who, *versions[:2])) for who in ("mia", "ron")]
    assert forks.done(*voters, log=tmp_path) == [0, 0]
    uri = store.tracking_uri()
    monkeypatch.setenv("TUNER_HOME", str(tmp_path_factory.mktemp("another")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    found = votes.votes("data/starter")
    assert Counter(one.battle.partition("-")[0] for one in found) == {"mia": 12, "ron": 12}
    (won, lost) = strengths([one.game for one in found], versions[1])
    assert (won.name, won.wins, lost.losses) == (versions[0], 24, 24)
