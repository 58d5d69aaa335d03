"""A message: a code with its parameters, which becomes a sentence only where a person reads it.

Run folders, MLflow tags and dictionaries hold messages. Pages, shell and log render them: `english.py` maps each code to
a text with `{parameter}` fields, and `lookup.py` has that text in other languages. A part in square brackets is left out where
one of its parameters is empty or 0; behind a bar it has another text for that case: `[ at step {step}| at its start]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuner.text.english import MESSAGES
from tuner.text.lookup import ENGLISH, catalogue, ended, language, tr
from tuner.text.recognise import Found, recognised

PLAIN = "plain"
"""The code of a text that has none of its own: an exception of a library, or what an older studio wrote."""
_PART = re.compile(r"\[([^\[\]|]*)(?:\|([^\[\]]*))?\]")
_FIELD = re.compile(r"\{(\w+)")
_END = re.compile(r"(?<=[.!?]) ")
LONGEST, MOST_SENTENCES, MOST_ABOUT = 2000, 4, 2
"""Signs and sentences of a text that is held against those of the catalogue, and words before a sentence that say what it
is about; what has more is somebody else's."""


@dataclass(frozen=True)
class Message:
    """Empty (no code) where there is nothing to say."""

    code: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.code)

    def __str__(self) -> str:
        return render(self)


def message(code: str, **values: Any) -> Message:
    """A message of the catalog. Raises KeyError for a code that it does not have."""
    MESSAGES[code]
    return Message(code, values)


def plain(text: str) -> Message:
    """A text that is no message of ours, as it is; empty for an empty one."""
    return Message(PLAIN, {"text": text}) if text else Message()


def render(said: Message) -> str:
    """The sentence; the code itself where the catalog does not have it (another version wrote it)."""
    if not said.code:
        return ""
    known = {name: _value(name, v) for name, v in said.values.items()}
    text = MESSAGES.get(said.code, "{text}" if "text" in known else None)
    if text is None:
        return " ".join([said.code, *map(str, known.values())])
    text = _PART.sub(lambda part: _chosen(part, known), tr(text))
    try:
        return text.format_map(_Lenient(known))
    except (ValueError, TypeError):  # a parameter of another version, or of another kind
        return re.sub(r"(\{\w+):[^}]*\}", r"\1}", text).format_map(_Lenient(known))


def term(kind: str, code: str) -> str:
    """The short text of a code of some kind (a phase, a state); the code with spaces where there is none."""
    return tr(MESSAGES.get(f"{kind}.{code}", code.replace("_", " ")))


def _in_other_words(text: str) -> str:
    """A text that was kept in English, in the language of the moment where it, or each of its sentences, is one of ours."""
    if " " not in text or len(text) > LONGEST:
        return text
    if said := _known(text):
        return said
    ends = [found.start() for found in _END.finditer(text)][:MOST_SENTENCES]
    for end in reversed(ends):  # what refuses several things says one after the other
        if said := _known(text[:end]):
            return said + ("" if said.endswith("。") else " ") + _in_other_words(text[end + 1 :])
    return catalogue(language()).texts.get(text, text)


def _known(text: str) -> str:
    """A sentence of ours, also one that begins with what it is about (a file, a flag with its value); empty for another."""
    if found := recognised(text, language()):
        return _filled(found)
    words = text.split(" ")
    for count in range(1, min(len(words) - 2, MOST_ABOUT + 1)):
        if found := recognised(" ".join(words[count:]).removesuffix("."), language()):
            said = " ".join([*words[:count], _filled(found)])
            return ended(said) if text.endswith(".") else said
    return ""


def _filled(found: Found) -> str:
    # What stands in a field is text by now, whatever it was.
    said = re.sub(r"(?<!\{)\{(\w+)[!:][^}]*\}", r"{\1}", tr(found.english))
    values = {name: _in_other_words(value) for name, value in found.values.items()}
    if found.message:
        said = _PART.sub(lambda part: _chosen(part, values), said)
    return said.format_map(_Lenient(values)) if values or found.message else said


def _value(name: str, value: Any) -> Any:
    """A parameter as it is said. Why a row is not used (`reason`) is a word of ours, which the catalogues know, and a
    sentence may be an error's that was kept in English."""
    if isinstance(value, Message):
        return str(value)
    if not isinstance(value, str) or language() == ENGLISH:
        return value
    return tr(value) if name == "reason" else _in_other_words(value)


class _Lenient(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return ""


def _chosen(part: re.Match[str], known: Mapping[str, Any]) -> str:
    return part[1] if all(known.get(name) for name in _FIELD.findall(part[1])) else part[2] or ""


def to_plain(said: Message) -> dict[str, Any]:
    """For JSON; `of` reads it back."""
    values = {name: to_plain(v) if isinstance(v, Message) else v for name, v in said.values.items()}
    return {"code": said.code, "values": values}


def of(stored: Any) -> Message:
    """A stored message; a bare text, as older studios wrote them, as it is."""
    if isinstance(stored, Mapping) and isinstance(stored.get("code"), str):
        given = stored.get("values")
        values = given if isinstance(given, Mapping) else {}
        return Message(stored["code"], {n: of(v) if _is_message(v) else v for n, v in values.items()})
    return plain(stored) if isinstance(stored, str) else Message()


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"code", "values"}


def to_tag(said: Message) -> str:
    """For an MLflow tag, which is text."""
    return json.dumps(to_plain(said), ensure_ascii=False) if said else ""


def of_tag(text: str) -> Message:
    """What `to_tag` wrote, or the sentence of an older studio."""
    try:
        return of(json.loads(text)) or plain(text)
    except ValueError:
        return plain(text)
