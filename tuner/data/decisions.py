"""Questions about a state with typed answers (yes or no, a choice, a score), as transformers' `decision` pipeline asks them.

A record is {"state": text, object or list, "questions": {name: {"type", "instructions"?, "criteria"?}}}. What is allowed
and how it is written are transformers' `decision.parse_questions` and `DECISION_PROMPT`, to which
tests/test_decisions.py holds both: that library loads torch, and a page that shows rows must not. What trains and what
answers asks transformers' own parser too (tuner/models/questions.py).
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tuner.text.lookup import tr

SETTINGS = "decision.json"
"""The file beside weights that holds labels and temperatures."""
REPORT = "decisions.json"
"""In a run's folder: how it answered the rows kept aside, which its page shows and its version is measured by."""
MEASURED = ("accuracy", "record_accuracy", "brier", "kl", "calibration_error", "score_distance")
"""What of that is said of the version."""
NOUL, CHOICE, SCORE = TYPES = ("noul", "choice", "score")
"""Yes or no (as the System One interface calls it), one of several options, a level."""
LETTERS = tuple(string.ascii_uppercase)
LABELS = ("Yes", "No", *LETTERS)
"""The words whose probability behind the prompt is an answer's: the first two for yes or no, else a letter an option."""
MOST = len(LETTERS)
_FIELDS = ("type", "instructions", "criteria")
_TRUTHS = ("true", "false")


class QuestionError(ValueError):
    """A question that cannot be asked; the text says which and why."""


@dataclass(frozen=True)
class Question:
    """One question, its options in the order in which they are written."""

    name: str
    type: str
    instructions: Any
    options: tuple[str, ...]
    descriptions: tuple[Any, ...]

    @property
    def first(self) -> int:
        """Where its labels begin in LABELS."""
        return 0 if self.type == NOUL else 2

    @property
    def labels(self) -> tuple[str, ...]:
        return LABELS[self.first : self.first + len(self.options)]

    def ordered(self, order: Sequence[int]) -> Question:
        """The same with its options in another order."""
        return Question(
            self.name,
            self.type,
            self.instructions,
            tuple(self.options[i] for i in order),
            tuple(self.descriptions[i] for i in order),
        )

    @cached_property
    def text(self) -> str:
        """What is written below the state."""
        lines = [_text(self.instructions), *map(self._line, self.labels, self.options, self.descriptions)]
        return "\n".join(filter(None, lines)) + "\n" + self._order

    def _line(self, label: str, option: str, description: Any) -> str:
        said = _text(description)
        if self.type == NOUL:
            return f"{label}: {said}" if said else ""
        if self.type == CHOICE:
            said = f"{option}: {said}" if said else option
        return f"{label}. {said}"

    @property
    def _order(self) -> str:
        if self.type == NOUL:
            return "Answer Yes or No only."
        what = "option" if self.type == CHOICE else "level"
        return f"Answer with the letter of the {what} that fits best ({self.labels[0]} to {self.labels[-1]}) only."

    def answer(self, probabilities: Sequence[float]) -> dict[str, Any]:
        """The answer in the shape of `POST /v1/systemone`; confidence is what lies above chance, 0 to 1."""
        by_option = dict(zip(self.options, probabilities, strict=True))
        if self.type == NOUL:
            return {"type": NOUL, "noul": by_option["true"]}
        count, best = len(probabilities), max(by_option, key=lambda option: by_option[option])
        if self.type == CHOICE:
            sure = 1.0 if count == 1 else max(0.0, (by_option[best] - 1 / count) / (1 - 1 / count))
            return {"type": CHOICE, "choice": best, "confidence": sure, "probabilities": by_option}
        distance = sum(p * abs(level - int(best)) for level, p in enumerate(probabilities))
        by_chance = sum(abs(level - (count - 1) / 2) for level in range(count)) / count
        return {
            "type": SCORE,
            "score": sum(level * p for level, p in enumerate(probabilities)),
            "legend": dict(zip(self.options, self.descriptions, strict=True)),
            "confidence": 1.0 if count == 1 else max(0.0, 1 - distance / by_chance),
            "probabilities": by_option,
        }


def prompt(state: Any, question: Question) -> str:
    """The user's message that asks a question about a state."""
    return f"{_text(state)}\n\n{question.text}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def questions_of(raw: Any) -> list[Question]:
    """The questions of a request, in its order. Raises QuestionError naming each that cannot be asked."""
    if not isinstance(raw, Mapping) or not raw:
        raise QuestionError(tr("questions maps names to questions, and needs at least one"))
    found, wrong = [], []
    for name, one in raw.items():
        try:
            found.append(_question(str(name), one))
        except QuestionError as error:
            wrong.append(tr("question {name!r} {wrong}", name=name, wrong=error))
    if wrong:
        raise QuestionError("; ".join(wrong))
    return found


def _question(name: str, raw: Any) -> Question:
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    if kind not in TYPES:
        raise QuestionError(
            tr("has type {kind!r}, it must be one of {types}", kind=kind, types=", ".join(TYPES))
        )
    if unknown := [key for key in raw if key not in _FIELDS]:
        raise QuestionError(
            tr(
                "has {name!r}, which is not known; it takes {fields}",
                name=unknown[0],
                fields=", ".join(_FIELDS),
            )
        )
    said, criteria = raw.get("instructions"), raw.get("criteria")
    if not _is_content(said) and said is not None:
        raise QuestionError(tr("has instructions that are no text, object or list"))
    options = _OPTIONS[kind](criteria)
    if len(options) > MOST:
        raise QuestionError(tr("has {count} options, it may have {most}", count=len(options), most=MOST))
    return Question(name, kind, said, tuple(options), tuple(options.values()))


def _is_content(value: Any) -> bool:
    return isinstance(value, str | dict | list)


def _of_noul(criteria: Any) -> dict[str, Any]:
    given = {} if criteria is None else criteria
    if not isinstance(given, Mapping) or set(given) - set(_TRUTHS) or not _described(given):
        raise QuestionError(tr("has criteria other than descriptions of true and false"))
    return {option: given.get(option) for option in _TRUTHS}


def _of_choice(criteria: Any) -> dict[str, Any]:
    if not isinstance(criteria, Mapping) or not criteria or not _described(criteria):
        raise QuestionError(tr("needs criteria: its options, each with a description or null"))
    return dict(criteria)


def _described(criteria: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and (v is None or _is_content(v)) for k, v in criteria.items())


def _of_score(criteria: Any) -> dict[str, Any]:
    if not isinstance(criteria, list) or not criteria or not all(map(_is_content, criteria)):
        raise QuestionError(tr("needs criteria: a list of its levels, the lowest first"))
    return {str(level): said for level, said in enumerate(criteria)}


_OPTIONS = {NOUL: _of_noul, CHOICE: _of_choice, SCORE: _of_score}


def settings(temperature: Mapping[str, float]) -> dict[str, Any]:
    """What is written to SETTINGS: labels are told too, so that another version's own change nothing."""
    return {
        "labels": {NOUL: list(LABELS[:2]), CHOICE: list(LETTERS), SCORE: list(LETTERS)},
        "temperature": dict(temperature),
        "noul_options": list(_TRUTHS),
        "sanitize_control_tokens": True,
        "adapter": None,
    }
