"""Pieces that redraw themselves share a fixed part of the machine, each in its turn."""

from __future__ import annotations

from collections import Counter

import pytest

from tuner.ui import redraws
from tuner.ui.redraws import Redraws


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(redraws, "time", clock)
    return clock


def an_hour(clock: Clock, sessions: int, seconds: float, budget: float) -> Counter[tuple[str, str]]:
    """How often each piece of so many sessions is drawn, that take `seconds` each and ask every two or three seconds."""
    turns, drawn = Redraws(budget), Counter[tuple[str, str]]()
    due = {
        (f"s{n}", piece): clock.now + n / 7 for n in range(sessions) for piece in ("state", "charts", "side")
    }
    end = clock.now + 3600
    while clock.now < end:
        key = min(due, key=due.__getitem__)
        clock.now = due[key]
        due[key] += 2.0 if key[1] == "state" else 3.0
        if turns.due(*key):
            drawn[key] += 1
            turns.took(seconds)
    return drawn


def test_a_lone_browser_is_drawn_whenever_it_asks(clock: Clock) -> None:
    drawn = an_hour(clock, sessions=1, seconds=0.01, budget=0.06)
    assert drawn["s0", "state"] >= 1795 and drawn["s0", "charts"] >= 1195


def test_thirty_browsers_take_no_more_than_their_share_and_none_is_left_out(clock: Clock) -> None:
    drawn = an_hour(clock, sessions=30, seconds=0.02, budget=0.06)
    spent = sum(drawn.values()) * 0.02 * redraws.ON_ITS_WAY
    assert spent <= 0.06 * 3600 * 1.1
    assert len(drawn) == 90 and min(drawn.values()) >= 0.8 * max(drawn.values()) > 50


def test_who_has_left_takes_no_turn_from_who_is_there(clock: Clock) -> None:
    turns = Redraws(0.06)
    for n in range(100):
        turns.due(f"gone{n}", "state")
        turns.took(0.05)
    turns.due("here", "state")
    clock.now += redraws.GONE + 1
    assert turns.due("here", "state")
    clock.now += 2
    assert turns.due("here", "state")
