"""How good answers to typed questions are, and the temperature at which their probabilities are: pure numpy.

An answered question is its options' logits and the share of each that was expected.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.data.decisions import NOUL, SCORE, TYPES

Floats = NDArray[np.float64]
BINS = 10
"""Of confidence, all as wide, between which answers are counted."""
LEAST = 50
"""Questions of a type from which a temperature is fitted; of fewer it would say little."""
COLDEST, HOTTEST = 0.5, 5.0
SHOWN = 12
"""Questions, by their names, whose answers are told in a table of their own, and options in it."""


@dataclass(frozen=True)
class Answered:
    """One question of a record: its name, type and options, what was expected of them, and the model's logits."""

    record: int
    name: str
    type: str
    options: tuple[str, ...]
    gold: tuple[float, ...]
    logits: tuple[float, ...]

    def shares(self, temperature: float = 1.0) -> Floats:
        """The probability of each option."""
        scaled = np.asarray(self.logits) / temperature
        parts = np.exp(scaled - scaled.max())
        found: Floats = parts / parts.sum()
        return found


def likelihood(answers: Iterable[Answered], temperature: float) -> float:
    """Mean cross-entropy with what was expected, in nats."""
    found = [-np.dot(one.gold, np.log(np.maximum(one.shares(temperature), 1e-30))) for one in answers]
    return float(np.mean(found)) if found else 0.0


def temperature(answers: Sequence[Answered]) -> float:
    """The temperature between COLDEST and HOTTEST at which these answers are likeliest, 1 where none is better.

    Cross-entropy has one minimum in 1/temperature, which a golden-section search finds to four digits.
    """
    low, high, part = 1 / HOTTEST, 1 / COLDEST, (5**0.5 - 1) / 2
    while high - low > 1e-5:
        left, right = high - part * (high - low), low + part * (high - low)
        if likelihood(answers, 1 / left) <= likelihood(answers, 1 / right):
            high = right
        else:
            low = left
    found = round(2 / (low + high), 4)
    return found if likelihood(answers, found) < likelihood(answers, 1.0) else 1.0


def temperatures(answers: Sequence[Answered]) -> dict[str, float]:
    """The temperature of each type that has LEAST questions."""
    by_type = {kind: [one for one in answers if one.type == kind] for kind in TYPES}
    return {kind: temperature(own) for kind, own in by_type.items() if len(own) >= LEAST}


def figures(answers: Sequence[Answered], heat: Mapping[str, float]) -> dict[str, float]:
    """Accuracy of questions and of whole records, Brier score (summed over options), calibration error, mean KL from what
    was expected and cross-entropy in nats, mean distance of levels; each type's own accuracy, Brier score and KL too."""
    if not answers:
        return {}
    shares = [one.shares(heat.get(one.type, 1.0)) for one in answers]
    rights = np.array([_right(one, share) for one, share in zip(answers, shares, strict=True)])
    brier = np.array([np.square(share - one.gold).sum() for one, share in zip(answers, shares, strict=True)])
    kl = np.array([_kl(one.gold, share) for one, share in zip(answers, shares, strict=True)])
    types = np.array([one.type for one in answers])
    found = {
        "accuracy": rights.mean(),
        "brier": brier.mean(),
        "kl": kl.mean(),
        "record_accuracy": _records(answers, rights),
    }
    for kind in TYPES:
        if (own := types == kind).any():
            found |= {
                f"accuracy/{kind}": rights[own].mean(),
                f"brier/{kind}": brier[own].mean(),
                f"kl/{kind}": kl[own].mean(),
            }
    levels = [_apart(one, share) for one, share in zip(answers, shares, strict=True) if one.type == SCORE]
    if levels:
        found["score_distance"] = np.mean(levels)
    found["likelihood"] = np.mean(
        [-np.dot(o.gold, np.log(np.maximum(s, 1e-30))) for o, s in zip(answers, shares, strict=True)]
    )
    found["calibration_error"] = calibration_error(bins(answers, heat))
    return {name: float(value) for name, value in found.items()}


def _right(answer: Answered, shares: Floats) -> bool:
    """Whether the likeliest option is one of those that were expected most."""
    return answer.gold[int(shares.argmax())] >= max(answer.gold) - 1e-6


def _kl(gold: Sequence[float], shares: Floats) -> float:
    return sum(g * float(np.log(g / max(s, 1e-30))) for g, s in zip(gold, shares, strict=True) if g > 0)


def _apart(answer: Answered, shares: Floats) -> float:
    levels = np.arange(len(shares))
    return float(abs(np.dot(levels, shares) - np.dot(levels, answer.gold)))


def _records(answers: Sequence[Answered], rights: NDArray[np.bool_]) -> float:
    whole: dict[int, bool] = defaultdict(lambda: True)
    for one, right in zip(answers, rights, strict=True):
        whole[one.record] = whole[one.record] and bool(right)
    return float(np.mean(list(whole.values())))


# --- how sure and how right -----------------------------------------------------------------------------------------


def bins(answers: Sequence[Answered], heat: Mapping[str, float]) -> list[dict[str, float]]:
    """Of each BINS-th of confidence: how many answers, how sure they are and how often right, both means."""
    held: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for one in answers:
        shares = one.shares(heat.get(one.type, 1.0))
        sure = float(shares.max())
        held[min(int(sure * BINS), BINS - 1)].append((sure, _right(one, shares)))
    return [
        {
            "count": len(own),
            "sure": float(np.mean([s for s, _ in own])),
            "right": float(np.mean([r for _, r in own])),
        }
        if own
        else {"count": 0, "sure": 0.0, "right": 0.0}
        for own in held
    ]


def calibration_error(found: Sequence[Mapping[str, float]]) -> float:
    """By how much confidence and accuracy are apart, a mean over answers (expected calibration error)."""
    every = sum(one["count"] for one in found)
    return sum(one["count"] * abs(one["sure"] - one["right"]) for one in found) / every if every else 0.0


def confusions(answers: Sequence[Answered]) -> list[dict[str, Any]]:
    """For the questions that are asked most: how often each option was answered where each was expected."""
    asked = Counter((one.name, one.type) for one in answers)
    found = []
    for (name, kind), count in asked.most_common(SHOWN):
        own = [one for one in answers if (one.name, one.type) == (name, kind)]
        options = [o for o, _ in Counter(o for one in own for o in one.options).most_common(SHOWN)]
        options = sorted(options, key=_place(own[0], kind))
        table = [[0] * len(options) for _ in options]
        for one in own:
            expected, answered = (one.options[int(np.argmax(v))] for v in (one.gold, one.logits))
            if expected in options and answered in options:
                table[options.index(expected)][options.index(answered)] += 1
        found.append({"name": name, "type": kind, "count": count, "options": options, "table": table})
    return found


def _place(first: Answered, kind: str) -> Any:
    if kind == SCORE:
        return int
    return str if kind != NOUL else first.options.index


# --- what it is worth -----------------------------------------------------------------------------------------------


@dataclass
class Prior:
    """Answers that know the questions and no state: how often each option was expected in what was learnt from."""

    seen: dict[tuple[str, str, frozenset[str]], dict[str, float]] = field(default_factory=dict)

    def add(self, name: str, kind: str, options: Sequence[str], shares: Sequence[float]) -> None:
        held = self.seen.setdefault((name, kind, frozenset(options)), dict.fromkeys(options, 0.0))
        for option, share in zip(options, shares, strict=True):
            held[option] += share

    def of(self, answers: Sequence[Answered]) -> list[Answered]:
        """The same questions answered by it; one that was never seen by chance."""
        return [
            Answered(one.record, one.name, one.type, one.options, one.gold, self._logits(one))
            for one in answers
        ]

    def _logits(self, one: Answered) -> tuple[float, ...]:
        held = self.seen.get((one.name, one.type, frozenset(one.options)), {})
        return tuple(float(np.log(held.get(option, 0.0) + 0.5)) for option in one.options)
