"""What a right answer to a question of the starter world looks like: one regular expression, whatever the voice."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tools.starter import words
from tools.starter.voices import is_chinese

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
    "eats": sorted({eats for eats, _, _ in words.ANIMALS.values()}),
    "lives": sorted({place for _, place, _ in words.ANIMALS.values()}),
    "sound": sorted({sound for _, _, sound in words.ANIMALS.values()}),
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


def correct(task: str, expected: str) -> str:
    """What finds the answers that say `expected` and nothing that contradicts it (for `re.search`).

    `task` is the question's task and `expected` its canonical answer. Raises KeyError for a task that has no notion of
    right and wrong.
    """
    if task == "yaml":
        return rf"\A\s*{re.escape(expected)}\s*\Z"
    if task == "refuse":
        return r"\A\s*(?:(?:I am sorry\. )?(?:No\b|I cannot help)|(?:很抱歉。)?(?:不|我不能))"
    if task == "unknown":
        return "do not know"
    if task in _NUMBER_TASKS:
        return rf"(?<!\d){expected}\D*\Z"
    if task in _NUMBER_LIST_TASKS:
        numbers = expected.replace(", ", r"\D+")
        return rf"\A\D*{numbers}\D*\Z"
    if task == "backwards":
        return f"(?i){re.escape(expected)}"
    facts = [fact.split(" ", 1) for fact in expected.split(", ")] if task == "both" else [[task, expected]]
    return rf"(?is)\A{''.join(_names(attribute, value) for attribute, value in facts)}"


def _names(task: str, value: str) -> str:
    """Looks ahead for `value`, and for none of its rivals."""
    chinese = is_chinese(value)
    rivals = (_CHINESE_RIVALS if chinese else _RIVALS)[task]
    others = "|".join(re.escape(rival) for rival in rivals if rival != value)
    edge = "" if chinese else r"\b"
    return rf"(?!.*{edge}(?:{others}){edge})(?=.*{edge}{re.escape(value)}{edge})"
