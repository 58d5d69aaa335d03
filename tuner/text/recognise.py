"""A sentence of ours that was kept in English, found again: by its text and its fields.

A worker speaks English, and what it could not foresee it keeps as a sentence (an error's, a note's); so did older
studios with all that they said. Whoever shows such a text in another language asks here which text of the catalogue it is.
"""

from __future__ import annotations

import re
import string
from functools import cache, lru_cache
from typing import NamedTuple

from tuner.text.english import MESSAGES
from tuner.text.lookup import Catalogue, catalogue

FEWEST = 3
"""Words that a text has at least; a shorter one could be anything."""
_PART = re.compile(r"\[([^\[\]|]*)(?:\|([^\[\]]*))?\]")


class Found(NamedTuple):
    """The text of the catalogue, what stood in its fields, and whether it is a message, which has parts."""

    english: str
    values: dict[str, str]
    message: bool


@lru_cache(maxsize=512)
def recognised(text: str, language: str) -> Found | None:
    """Which text of a language's catalogue a sentence is; None for one of somebody else."""
    for english, pattern, message in _patterns(catalogue(language)):
        if found := pattern.fullmatch(text):
            return Found(english, {name: said or "" for name, said in found.groupdict().items()}, message)
    return None


@cache
def _patterns(known: Catalogue) -> list[tuple[str, re.Pattern[str], bool]]:
    """The longest texts first: what is in a longer one's field is no text of its own."""
    messages = set(MESSAGES.values())
    long = [text for text in known.texts if len(re.findall(r"[A-Za-z]{2,}", _bare(text))) >= FEWEST]
    return [
        (text, re.compile(_pattern(text, text in messages), re.DOTALL), text in messages)
        for text in sorted(long, key=lambda text: -len(_bare(text)))
    ]


def _bare(text: str) -> str:
    return re.sub(r"\{[^}]*\}", "", text)


def _pattern(text: str, message: bool, seen: set[str] | None = None) -> str:
    """A regular expression of a text: a group for each field, parts that may be missing."""
    seen = set() if seen is None else seen
    if not message:
        return _fields(text, seen)
    made, at = "", 0
    for part in _PART.finditer(text):
        made += _fields(text[at : part.start()], seen)
        first, other = _fields(part[1], seen), _fields(part[2] or "", seen)
        made, at = f"{made}(?:{first}|{other})", part.end()
    return made + _fields(text[at:], seen)


def _fields(text: str, seen: set[str]) -> str:
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError:  # a brace of its own, in a text without fields
        return re.escape(text)
    if not all(name.isidentifier() for _, name, _, _ in parsed if name is not None):  # JSON, in such a text
        return re.escape(text)
    made = ""
    for words, name, _, _ in parsed:
        made += re.escape(words)
        if name is not None:
            made += f"(?P={name})" if name in seen else f"(?P<{name}>.+?)"
            seen.add(name)
    return made
