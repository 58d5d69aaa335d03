"""A text in the language of the moment: gettext's way, with the English text as the key.

Whoever speaks to a person asks `tr` at that moment and keeps nothing of it: what is kept (run folders, MLflow) is a
code, see message.py. Texts that stand in tables are English there; `mark` tells the extraction of them, `tr` is asked
where they are shown. Catalogues are locale/LANGUAGE/LC_MESSAGES/tuner.po, read as they are, once a process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

ENGLISH = "en"
LANGUAGES: dict[str, str] = {
    ENGLISH: "English",
    "zh_CN": "简体中文",
    "ja": "日本語",
    "ko": "한국어",
    "ru": "Русский",
}
"""The languages that are offered, each by its own name: those whose catalogues are complete."""
LOCALE = Path(__file__).with_name("locale")
ENDS = (".", "!", "?", "。", "！", "？")
"""What a sentence ends with."""
Plural = Callable[[int], int]


class Catalogue:
    """What is said in one language; English is said as it was asked."""

    def __init__(self, texts: Mapping[str, str], plurals: Mapping[str, tuple[str, ...]], form: Plural):
        self.texts, self.plurals, self._form = texts, plurals, form

    def text(self, english: str) -> str:
        return self.texts.get(english, english)

    def plural(self, one: str, many: str, number: int) -> str:
        forms = self.plurals.get(one)
        return forms[self._form(number)] if forms else one if number == 1 else many


_catalogues: dict[str, Catalogue] = {ENGLISH: Catalogue({}, {}, lambda number: int(number != 1))}
_spoken: ContextVar[str] = ContextVar("spoken", default="")
_edge: dict[str, Any] = {"language": ENGLISH, "asked": None}


def tr(english: str, /, **fields: object) -> str:
    """The text in the language of the moment. With fields they are filled in, and braces of the text itself are doubled."""
    said = catalogue(language()).text(english)
    return said.format(**fields) if fields else said


def trn(one: str, many: str, number: int, /, **fields: object) -> str:
    """The text for so many things; `{number}` is a field of it already."""
    return catalogue(language()).plural(one, many, number).format(**{"number": number, **fields})


def mark(english: str) -> str:
    """The text itself, which the catalogues take up: for tables, whose texts are looked up where they are shown."""
    return english


def joined(several: Sequence[str]) -> str:
    """Several things as one: a, b and c."""
    *before, last = several or [""]
    return tr("{before} and {last}", before=", ".join(before), last=last) if before else last


def ended(said: str) -> str:
    """What was said as a whole sentence: with the full stop of the language where it has no end yet."""
    return said if not said or said.endswith(ENDS) else tr("{said}.", said=said)


# --- which language


def language() -> str:
    """The language of the moment: this thread's or task's, else what the edge finds, else what the process speaks."""
    if spoken := _spoken.get():
        return spoken
    asked = _edge["asked"]
    return (asked() if asked else None) or str(_edge["language"])


def speak(wanted: str) -> None:
    """Speak a language in this thread or task from now on."""
    _spoken.set(wanted)


@contextmanager
def speaking(wanted: str) -> Iterator[None]:
    """Speak a language within a block."""
    before = _spoken.set(wanted)
    try:
        yield
    finally:
        _spoken.reset(before)


def speak_everywhere(wanted: str = ENGLISH, ask: Callable[[], str | None] | None = None) -> None:
    """The language of a whole process; `ask` finds that of a thread for which nobody spoke, None where it has none."""
    _edge.update(language=wanted, asked=ask)


def of_environment() -> str:
    """What a shell wants: TUNER_LANG, else LC_ALL, LC_MESSAGES or LANG, whichever is set first."""
    wanted = (os.environ.get(name) for name in ("TUNER_LANG", "LC_ALL", "LC_MESSAGES", "LANG"))
    return offered([next((name for name in wanted if name), "")])


def offered(wanted: Iterable[str]) -> str:
    """The first of the wanted languages that there is, as browsers (zh-Hans-CN) and shells (zh_CN.UTF-8) name them."""
    for name in wanted:
        parts = name.partition(".")[0].replace("-", "_").split("_")
        whole = "_".join([parts[0].lower(), *(part.upper() for part in parts[-1:] if len(parts) > 1)])
        near = [known for known in LANGUAGES if known.partition("_")[0] == parts[0].lower()]
        if whole in LANGUAGES or near:
            return whole if whole in LANGUAGES else near[0]
    return ENGLISH


# --- catalogues


def catalogue(name: str) -> Catalogue:
    """A language's catalogue, read at the first use; one without texts where there is no file."""
    if name not in _catalogues:
        file = LOCALE / name / "LC_MESSAGES" / "tuner.po"
        _catalogues[name] = read(file) if file.is_file() else _catalogues[ENGLISH]
    return _catalogues[name]


def read(file: Path) -> Catalogue:
    """The texts of a .po file that are translated and not marked as doubtful."""
    from gettext import c2py

    from babel.messages.pofile import read_po

    with file.open("rb") as opened:
        found = read_po(opened)
    texts: dict[str, str] = {}
    plurals: dict[str, tuple[str, ...]] = {}
    for entry in found:
        said = entry.string
        if isinstance(entry.id, str) and isinstance(said, str) and entry.id and said and not entry.fuzzy:
            texts[entry.id] = said
        elif isinstance(entry.id, tuple) and isinstance(said, tuple | list) and all(said) and not entry.fuzzy:
            plurals[entry.id[0]] = tuple(said)
    return Catalogue(texts, plurals, c2py(found.plural_expr))
