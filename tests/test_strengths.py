"""Strengths out of votes: known ones are found again, intervals hold what they promise, a second implementation agrees."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.chats.strengths import LIMIT, Game, expected, strengths

TRUE = {"a": 0.0, "b": 0.5, "c": 1.0}


def voted(count: int, seed: int, ties: float = 0.3) -> list[Game]:
    """Votes of people who see these strengths: a tie takes as much from a win as from a loss."""
    chance = np.random.default_rng(seed)
    names, values = list(TRUE), np.array(list(TRUE.values()))
    left = chance.integers(0, 3, count)
    right = (left + chance.integers(1, 3, count)) % 3
    win = 1 / (1 + np.exp(values[right] - values[left]))
    tie = ties * 2 * np.minimum(win, 1 - win)
    drawn = chance.random(count)
    scores = np.where(drawn < tie, 0.5, drawn < tie + win - tie / 2)
    return [(names[a], names[b], float(s)) for a, b, s in zip(left, right, scores, strict=True)]


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_known_strengths_are_found_again(ties: float) -> None:
    for seed in range(3):
        found = {one.name: one for one in strengths(voted(20_000, seed, ties), "a", resamples=50)}
        assert all(abs(found[name].value - value) < 0.06 for name, value in TRUE.items())
        assert found["a"].value == found["a"].low == found["a"].high == 0.0
    found = {one.name: one.value for one in strengths(voted(2000, 1, ties), "a", resamples=50)}
    assert all(abs(found[name] - value) <= 0.1 for name, value in TRUE.items())


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered, missed = np.zeros((200, 2)), np.zeros((200, 2))
    for seed in range(200):
        found = {one.name: one for one in strengths(voted(2000, 1000 + seed), "a", resamples=400, seed=seed)}
        covered[seed] = [found[name].low <= TRUE[name] <= found[name].high for name in "bc"]
        missed[seed] = [found[name].value - TRUE[name] for name in "bc"]
    assert covered.mean(0).min() >= 0.93
    assert covered.mean(0).max() < 1.0, "intervals that always cover are too wide"
    assert np.abs(missed.mean(0)).max() < 0.02 and np.sqrt((missed**2).mean(0)).max() < 0.1


def test_scikit_learn_finds_the_same() -> None:
    linear = pytest.importorskip(
        "sklearn.linear_model", reason="scikit-learn, which MLflow brings, is not here"
    )
    games = voted(2000, 7)
    names = list(TRUE)
    sides = np.array(
        [[(name == left) - (name == right) for name in names[1:]] for left, right, _ in games], float
    )
    scores = np.array([score for *_, score in games])
    peer = linear.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    peer.fit(
        np.vstack([sides, sides]),
        np.repeat([1, 0], len(games)),
        sample_weight=np.concatenate([scores, 1 - scores]),
    )
    ours = {one.name: one.value for one in strengths(games, "a", resamples=10)}
    assert [ours["b"], ours["c"]] == pytest.approx(list(peer.coef_[0]), abs=1e-4)


def test_the_anchor_is_the_one_named_and_the_order_is_by_strength() -> None:
    games = voted(500, 3)
    by_c = {one.name: one.value for one in strengths(games, "c", resamples=10)}
    by_a = {one.name: one.value for one in strengths(games, "a", resamples=10)}
    assert by_c["c"] == 0.0 and by_a["c"] == pytest.approx(-by_c["a"])
    assert [one.name for one in strengths(games, "a", resamples=10)] == ["c", "b", "a"]


def test_few_votes_are_counted_and_promise_nothing() -> None:
    (won, lost) = strengths([("new", "base", 1.0)] * 3, "base")
    assert (won.name, won.value, won.wins, won.games, won.bounded) == ("new", LIMIT, 3, 3, False)
    assert (lost.name, lost.losses) == ("base", 3)
    assert strengths([]) == [] == strengths([("a", "a", 1.0)])
    mixed = strengths([("new", "base", 1.0), ("base", "new", 0.5), ("new", "base", 0.0)], "base")
    assert [(one.value, one.wins, one.ties, one.losses) for one in mixed] == [(0.0, 1, 1, 1)] * 2
    assert all(one.low <= one.value <= one.high for one in mixed) and expected(0.0) == 0.5


def test_who_met_nobody_that_met_the_anchor_is_not_compared() -> None:
    found = {one.name: one for one in strengths([("a", "b", 1.0), ("b", "a", 0.0), ("x", "y", 0.5)], "a")}
    assert {name: one.compared for name, one in found.items()} == {
        "a": True, "b": True, "x": False, "y": False,
    }  # fmt: skip
