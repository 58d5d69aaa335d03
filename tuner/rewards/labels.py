"""Rewards that hold an answer against the one that its row expects."""

from __future__ import annotations

import re
import string
import threading
from typing import Literal

from tuner.config.knobs import Section, knob
from tuner.rewards.reward import Completion, Rule, answer_of
from tuner.text.lookup import tr

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<![\w.])[-+]?\.\d+"
)


class EqualsLabel(Section):
    title = "Equals the label"

    normalise: bool = knob(
        True, "Whether case, punctuation, articles and spaces are left out of the comparison, as in SQuAD."
    )


def equals_label(settings: EqualsLabel) -> Rule:
    """1 for the expected answer, 0 for another one; nothing where the row expects none."""

    def rule(one: Completion) -> float | None:
        if one.label is None:
            return None
        said, right = answer_of(one.text), answer_of(one.label)
        return float(normal(said) == normal(right) if settings.normalise else said == right)

    return rule


def normal(text: str) -> str:
    """A text as SQuAD compares it: small letters without punctuation, articles and double spaces."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


class NumberEquals(Section):
    title = "The right number"

    reader: Literal["plain", "math"] = knob(
        "plain",
        "How numbers are read: plain compares the last number of the answer with the label's; math reads formulas and "
        "fractions too and needs the library math-verify.",
    )
    tolerance: float = knob(
        1e-6,
        "How far off a plain number may be, as a share of the label's.",
        ge=0,
        usual="1e-06",
        advanced=True,
    )


def check_number_equals(settings: NumberEquals) -> str:
    """What is wrong with the settings; empty for nothing."""
    from importlib.util import find_spec

    if settings.reader == "math" and find_spec("math_verify") is None:
        return tr(
            "needs the library math-verify with reader math: `pip install 'tuner[math]'`; or set reader plain"
        )
    return ""


def number_equals(settings: NumberEquals) -> Rule:
    """1 for an answer that comes to the label's number, 0 for another one; nothing where the label has none."""
    return _by_math if settings.reader == "math" else _plain(settings.tolerance)


def _plain(tolerance: float) -> Rule:
    most = tolerance * (1 + 1e-9)  # 0.045 is a tenth off 0.05, and a little more in binary

    def rule(one: Completion) -> float | None:
        right = number_in(one.label or "")
        if right is None:
            return None
        said = number_in(answer_of(one.text))
        return float(said is not None and (said == right or abs(said - right) <= most * abs(right)))

    return rule


def number_in(text: str) -> float | None:
    """The number that a text comes to: that in its last \\boxed{}, else its last one. 1,234.5 is one number."""
    boxed = _BOXED.findall(text)
    found = _NUMBER.findall(boxed[-1] if boxed else text)
    return float(found[-1].replace(",", "")) if found else None


def _by_math(one: Completion) -> float | None:
    from math_verify import parse, verify

    # Its limit of seconds is a signal, which only a process's main thread can set.
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    right = parse(one.label or "", parsing_timeout=seconds)
    if not right:
        return None
    said = parse(answer_of(one.text), parsing_timeout=seconds)
    return float(verify(right, said, timeout_seconds=seconds))
