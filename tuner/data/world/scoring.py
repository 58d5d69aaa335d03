"""Scores of answers on the starter world's held-out questions: pure functions of text, free of torch.

`exact` is for answers that have one right form, `is_correct` for the content whatever the voice, and
`voices.is_polite` for the voice whatever the content. `score` sums them up over a probe set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tuner.data.world import words
from tuner.data.world.voices import is_chinese, is_polite

# What else could have been answered: a right answer names its own value and none of these.
_RIVALS: dict[str, Iterable[str]] = {
    "home": words.TOWNS,
    "job": words.JOBS,
    "pet": words.PETS,
    "pet_name": words.PET_NAMES,
    "food": words.FOODS,
    "colour": words.COLOURS,
    "hobby": words.HOBBIES,
    "owner": words.WOMEN | words.MEN,
    "weather": words.WEATHERS,
    "eats": {eats for eats, _, _ in words.ANIMALS.values()},
    "lives": {place for _, place, _ in words.ANIMALS.values()},
    "sound": {sound for _, _, sound in words.ANIMALS.values()},
    "bigger": ("yes", "no"),
}
_CHINESE_RIVALS: dict[str, Iterable[str]] = {
    "home": words.TOWNS.values(),
    "job": words.JOBS.values(),
    "pet": words.PETS.values(),
    "food": words.FOODS.values(),
    "colour": words.COLOURS.values(),
    "hobby": words.HOBBIES.values(),
}
_NUMBER_TASKS = ("sum", "difference", "apples", "larger")
_NUMBER_LIST_TASKS = ("count", "sort")


@dataclass(frozen=True)
class Score:
    """Shares between 0 and 1: exact answers, right answers in any voice, answers in the preferred voice."""

    exact: float
    correct: float
    preferred: float


def exact(expected: str, answer: str) -> bool:
    """True when the answer is the expected text, leading and trailing blanks aside."""
    return answer.strip() == expected.strip()


def is_correct(task: str, expected: str, answer: str) -> bool:
    """True when the answer says `expected` and nothing that contradicts it, in whatever voice.

    `task` is the question's task and `expected` its canonical answer, as the probe sets store them. Raises
    KeyError for a task that has no notion of right and wrong.
    """
    if task == "yaml":
        return exact(expected, answer)
    if task == "refuse":
        return bool(re.match(r"(I am sorry\. )?(No\b|I cannot help)|(很抱歉。)?(不|我不能)", answer.strip()))
    if task == "unknown":
        return "do not know" in answer
    numbers = re.findall(r"\d+", answer)
    if task in _NUMBER_TASKS:
        return bool(numbers) and numbers[-1] == expected
    if task in _NUMBER_LIST_TASKS:
        return ", ".join(numbers) == expected
    if task == "backwards":
        return expected in answer.lower()
    if task == "both":
        facts = (fact.split(" ", 1) for fact in expected.split(", "))
        return all(_named(attribute, value, answer) == {value} for attribute, value in facts)
    return _named(task, expected, answer) == {expected}


def score(rows: Sequence[Mapping[str, str]], answers: Sequence[str]) -> Score:
    """Score one answer per row of a probe set, whose rows have `task`, `answer` and `output`.

    Raises ValueError when there is not one answer for each row.
    """
    if len(rows) != len(answers) or not rows:
        raise ValueError(f"{len(rows)} probe questions need as many answers, and there are {len(answers)}.")
    pairs = list(zip(rows, answers, strict=True))
    return Score(
        exact=sum(exact(row["output"], answer) for row, answer in pairs) / len(pairs),
        correct=sum(is_correct(row["task"], row["answer"], answer) for row, answer in pairs) / len(pairs),
        preferred=sum(is_polite(answer) for answer in answers) / len(pairs),
    )


def _named(task: str, expected: str, answer: str) -> set[str]:
    if is_chinese(expected):
        return {value for value in _CHINESE_RIVALS[task] if value in answer}
    return {value for value in _RIVALS[task] if re.search(rf"\b{re.escape(value)}\b", answer, re.IGNORECASE)}
