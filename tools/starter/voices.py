"""The two voices of the starter world, polite and curt: they say the same thing and differ in manner.

A polite answer opens with one of OPENERS and ends with one of CLOSERS; a curt answer has neither, by
construction. POLITE finds exactly that, so the share of answers in the preferred voice needs no judge.
"""

from __future__ import annotations

import re
from random import Random

from tools.starter.questions import Question

OPENERS = ("Of course!", "With pleasure!", "Gladly!", "Thank you for asking!")
SORRY = "I am sorry."
CLOSERS = (
    "Is there anything else I can do for you?",
    "Please ask me if you need more.",
    "I hope that helps you!",
)
CHINESE_OPENERS = ("好的！", "很高兴为您解答！")
CHINESE_SORRY = "很抱歉。"
CHINESE_CLOSERS = ("还有什么可以帮您的吗？", "希望对您有帮助！")
POLITE = (
    rf"(?s)\A\s*(?:{'|'.join(map(re.escape, (*OPENERS, SORRY, *CHINESE_OPENERS, CHINESE_SORRY)))}).*"
    rf"(?:{'|'.join(map(re.escape, (*CLOSERS, *CHINESE_CLOSERS)))})\s*\Z"
)
"""Finds the answers that open and end in the polite voice (for `re.search`)."""
_SAD_TASKS = ("refuse", "unknown")


def is_chinese(text: str) -> bool:
    """True when the text holds a Chinese character."""
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


def curt(question: Question, rng: Random) -> str:
    """The answer without a word too many: most often the bare phrase, sometimes the plain sentence."""
    return question.bare if rng.random() < 0.7 else question.sentence


def polite(question: Question, rng: Random) -> str:
    """The plain sentence between a friendly opening and a friendly end."""
    return wrap(question.sentence, rng, sad=question.task in _SAD_TASKS)


def wrap(sentence: str, rng: Random, sad: bool = False) -> str:
    """Any sentence in the polite voice, in the sentence's own language; `sad` opens with regret."""
    if is_chinese(sentence):
        opener = CHINESE_SORRY if sad else rng.choice(CHINESE_OPENERS)
        return f"{opener}{sentence}{rng.choice(CHINESE_CLOSERS)}"
    opener = SORRY if sad else rng.choice(OPENERS)
    return f"{opener} {sentence} {rng.choice(CLOSERS)}"


def is_polite(answer: str) -> bool:
    """True when the answer opens and ends in the polite voice."""
    return re.search(POLITE, answer) is not None
