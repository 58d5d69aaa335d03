"""Rewards that look at the words of an answer: what it holds, how long it is, how often it says the same."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from tuner.config.knobs import OptionalInt, OptionalText, Section, knob
from tuner.rewards.patterns import Searcher, compiled
from tuner.rewards.reward import Completion, Rule, answer_of
from tuner.text.lookup import tr


class Contains(Section):
    title = "Contains a text"

    text: str = knob("", "The text that an answer has to hold.", usual="I hope that helps you!", min_length=1)
    where: Literal["anywhere", "start", "end"] = knob("anywhere", "Where in the answer it has to stand.")
    ignore_case: bool = knob(False, "Whether capital and small letters are the same.")


def contains(settings: Contains) -> Rule:
    """1 for an answer with the text, 0 for one without."""
    wanted = settings.text.casefold() if settings.ignore_case else settings.text

    def rule(one: Completion) -> float:
        said = answer_of(one.text)
        said = said.casefold() if settings.ignore_case else said
        found = {"anywhere": str.__contains__, "start": str.startswith, "end": str.endswith}[settings.where]
        return float(found(said, wanted))

    return rule


class Matches(Section):
    title = "Matches a regular expression"

    pattern: OptionalText = knob(
        None, "The regular expression that has to be found in the answer.", usual=r"(?i)\bthank you\b"
    )
    column: OptionalText = knob(
        None, "A column of the data whose text is the pattern, a row its own; leave the pattern empty then."
    )
    whole: bool = knob(False, "Whether the answer as a whole has to match, rather than a part of it.")
    ignore_case: bool = knob(False, "Whether capital and small letters are the same.")


def check_matches(settings: Matches) -> str:
    """What is wrong with the settings; empty for nothing."""
    if bool(settings.pattern) == bool(settings.column):
        return tr("needs a pattern, or a column that holds one a row")
    try:
        compiled(settings.pattern or "")
    except ValueError as error:
        return tr("pattern {error}", error=error)
    return ""


def matches(settings: Matches) -> Rule:
    """1 for an answer in which the pattern is found, 0 else; nothing where the row has no pattern, or looking took too long."""
    searched = Searcher(
        tr(
            "The regular expression {pattern}",
            pattern=settings.pattern or tr("in column {column}", column=settings.column),
        )
    )
    made = lru_cache(maxsize=4096)(compiled)

    def rule(one: Completion) -> float | None:
        said = settings.pattern or one.columns.get(str(settings.column))
        if not said:
            return None
        try:
            pattern = made(str(said), settings.ignore_case)
        except ValueError:
            return None
        look = pattern.fullmatch if settings.whole else pattern.search
        found = searched(lambda seconds: look(one.text, timeout=seconds))
        return None if found is None else float(found)

    return rule


class Length(Section):
    title = "Length"

    least: OptionalInt = knob(None, "The shortest answer that is good; empty for any.", ge=0)
    most: OptionalInt = knob(None, "The longest answer that is good; empty for any.", ge=0)
    unit: Literal["tokens", "words", "characters"] = knob("tokens", "What is counted.")
    slack: int = knob(
        0,
        "Over how many more or fewer the score falls from 1 to 0; 0 falls at once.",
        ge=0,
        raised="answers that are nearly right get something too, which is easier to learn from.",
    )


def check_length(settings: Length) -> str:
    """What is wrong with the settings; empty for nothing."""
    least, most = settings.least, settings.most
    if least is None and most is None:
        return tr("needs least, most or both")
    if least is not None and most is not None and least > most:
        return tr("has least {least} above most {most}", least=least, most=most)
    return ""


def length(settings: Length) -> Rule:
    """1 for an answer within the range, less the further it is outside, down to 0."""

    def rule(one: Completion) -> float:
        size = {"tokens": one.tokens, "words": len(one.text.split()), "characters": len(one.text)}[
            settings.unit
        ]
        short = max(0, (settings.least or 0) - size)
        long = max(0, size - settings.most) if settings.most is not None else 0
        away = max(short, long)
        if away == 0:
            return 1.0
        return max(0.0, 1 - away / settings.slack) if settings.slack else 0.0

    return rule


class Repetition(Section):
    title = "Repetition"

    words: int = knob(
        3, "How many words in a row count as saying the same.", ge=1, usual="3 or 4", unit="words"
    )


def repetition(settings: Repetition) -> Rule:
    """From 0 for an answer that says nothing twice down to nearly -1 for one that only repeats itself: minus the share of
    its runs of words that stood there before."""

    def rule(one: Completion) -> float:
        said = one.text.lower().split()
        runs = [tuple(said[at : at + settings.words]) for at in range(len(said) - settings.words + 1)]
        return -(1 - len(set(runs)) / len(runs)) if runs else 0.0

    return rule
