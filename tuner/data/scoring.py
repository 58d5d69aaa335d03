"""Scores of answers to held-out questions: exact match, and what the rows themselves say that an answer must hold.

A row may bring two regular expressions: `correct_pattern` finds right answers, whatever their form, and
`preferred_pattern` those in the form that a preference run is to teach.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr

CORRECT, PREFERRED = "correct_pattern", "preferred_pattern"


@dataclass(frozen=True)
class Score:
    """Shares between 0 and 1; None where not every row has the pattern."""

    exact: float
    correct: float | None
    preferred: float | None


def score(rows: Sequence[Mapping[str, Any]], expected: Sequence[str], answers: Sequence[str]) -> Score:
    """Score one answer a row against what is expected and the row's own patterns.

    Raises ValueError when there is not one answer for each row.
    """
    if len(rows) != len(answers) or not rows:
        raise ValueError(
            tr(
                "{number} probe questions need as many answers, and there are {number_2}.",
                number=len(rows),
                number_2=len(answers),
            )
        )
    exact = [said.strip() == right.strip() for said, right in zip(answers, expected, strict=True)]
    return Score(sum(exact) / len(rows), _share(rows, CORRECT, answers), _share(rows, PREFERRED, answers))


def _share(rows: Sequence[Mapping[str, Any]], name: str, answers: Sequence[str]) -> float | None:
    """The share of answers in which the pattern of their row is found."""
    if not all(row.get(name) for row in rows):
        return None
    found = [re.search(str(row[name]), said) for row, said in zip(rows, answers, strict=True)]
    return sum(match is not None for match in found) / len(rows)


def check_patterns(row: Mapping[str, Any]) -> None:
    """Raises ConfigError where a row's pattern is no regular expression."""
    for name in (CORRECT, PREFERRED):
        try:
            re.compile(str(row.get(name, "")))
        except re.error as error:
            sentence = tr(
                "The probe's {name} {row!r} is no regular expression: {error}; fix the set.",
                name=name,
                row=str(row[name])[:80],
                error=error,
            )
            raise ConfigError([Problem("probe", sentence)]) from error
