"""How strong contestants are, out of votes for one of two: Bradley-Terry, with 95% intervals from a bootstrap.

The model (Bradley and Terry 1952): i wins against j with probability sigmoid(s_i - s_j). A tie is half a win for each,
as in the public arenas of language models. Strengths are in logits, and the anchor's is 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Game = tuple[str, str, float]
"""Left, right, and what the left one got: 1 for a win, 0.5 for a tie, 0 for a loss."""
RESAMPLES = 1000
LIMIT = 8.0
"""Logits that a strength may be away from the anchor: of who never lost it would be infinite."""
STEPS = 30
CLOSE = 1e-10
"""Newton's steps end once none is longer than this, in logits."""


@dataclass(frozen=True)
class Strength:
    """One contestant, held against the anchor: logits with the ends of a 95% interval, and its games."""

    name: str
    value: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    compared: bool = True
    """Whether games lead from it to the anchor, over others if need be; without, its strength says nothing."""

    @property
    def games(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def bounded(self) -> bool:
        """Whether the games say how far it is from the anchor: who lost none, or won none, may be any distance away."""
        return self.compared and max(abs(self.value), abs(self.low), abs(self.high)) < LIMIT


def expected(strength: float) -> float:
    """How often one of this strength beats the anchor, 0 to 1; a tie counts half."""
    return float(1 / (1 + np.exp(-strength)))


def strengths(
    games: Iterable[Game], anchor: str = "", resamples: int = RESAMPLES, seed: int = 0
) -> list[Strength]:
    """Every contestant's strength, the strongest first. The anchor is the one named, else the first by name.

    A game of one against itself says nothing and is left out.
    """
    counted = Counter(game for game in games if game[0] != game[1])
    names = sorted({name for left, right, _ in counted for name in (left, right)})
    if not names:
        return []
    names.sort(key=lambda name: name != anchor)
    cells, counts = list(counted), np.array(list(counted.values()), float)
    left, right, scores = _numbered(cells, names)
    fitted = fit(_wins(left, right, scores, counts[None], len(names)))[0]
    chance = np.random.default_rng(seed)
    drawn = chance.multinomial(int(counts.sum()), counts / counts.sum(), size=resamples).astype(float)
    low, high = np.quantile(
        fit(_wins(left, right, scores, drawn, len(names)), start=fitted), (0.025, 0.975), axis=0
    )
    reached = _reached(left, right, len(names))
    tallies = [_tally(name, counted) for name in names]
    found = [
        Strength(name, float(fitted[i]), float(low[i]), float(high[i]), *tallies[i], bool(reached[i]))
        for i, name in enumerate(names)
    ]
    return sorted(found, key=lambda one: (not one.compared, -one.value, one.name))


def fit(wins: Floats, start: Floats | None = None) -> Floats:
    """The likeliest strengths for tables of wins, shape (tables, n, n), where wins[t, i, j] are those of i over j.

    Newton's method on all tables at once, the first contestant held at 0; returns shape (tables, n).
    """
    tables, n = wins.shape[:2]
    found = np.zeros((tables, n)) if start is None else np.tile(start, (tables, 1))
    games = wins + wins.swapaxes(1, 2)
    won = wins.sum(2)
    for _ in range(STEPS):
        chances = 1 / (1 + np.exp(found[:, None, :] - found[:, :, None]))
        gradient = won - (games * chances).sum(2)
        weights = games * chances * (1 - chances)
        hessian = -weights
        hessian[:, np.arange(n), np.arange(n)] = weights.sum(2) + 1e-12  # one without games stays where it is
        step = np.linalg.solve(hessian[:, 1:, 1:], gradient[:, 1:, None])[..., 0]
        new = np.clip(found[:, 1:] + np.clip(step, -2, 2), -LIMIT, LIMIT)
        moved = np.abs(new - found[:, 1:]).max(initial=0.0)
        found[:, 1:] = new
        if moved < CLOSE:
            break
    return found


def _numbered(
    cells: Sequence[Game], names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    place = {name: i for i, name in enumerate(names)}
    left = np.array([place[cell[0]] for cell in cells])
    right = np.array([place[cell[1]] for cell in cells])
    return left, right, np.array([cell[2] for cell in cells], float)


def _wins(
    left: NDArray[np.int64], right: NDArray[np.int64], scores: Floats, counts: Floats, n: int
) -> Floats:
    """Tables of wins, shape (tables, n, n), of games that happened `counts` (tables, games) times."""
    table = np.zeros((len(counts), n * n))
    for score, first, second in ((scores, left, right), (1 - scores, right, left)):
        cells = np.zeros((len(score), n * n))
        cells[np.arange(len(score)), first * n + second] = score
        table += counts @ cells
    return table.reshape(-1, n, n)


def _reached(left: NDArray[np.int64], right: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Which contestants games lead to from the first one."""
    reached = np.zeros(n, bool)
    reached[0] = True
    for _ in range(n):
        known = reached[left] | reached[right]
        reached[left[known]] = reached[right[known]] = True
    return reached


def _tally(name: str, counted: Counter[Game]) -> tuple[int, int, int]:
    """Wins, ties and losses."""
    own = [(score, many) for (left, _, score), many in counted.items() if left == name]
    own += [(1 - score, many) for (_, right, score), many in counted.items() if right == name]
    return (
        sum(many for score, many in own if score > 0.5),
        sum(many for score, many in own if score == 0.5),
        sum(many for score, many in own if score < 0.5),
    )
