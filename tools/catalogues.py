"""`python -m tools.catalogues` writes tuner/text/locale/tuner.pot, every text that a person reads, and brings the
catalogue of each language up to it: new texts come in untranslated, those that are gone leave.

Texts are found where they are asked for (`tr`, `trn`, `mark`, `count`) and in the tables that declare them: knobs,
sections, rules, kinds, rewards, messages, verbs, chart lines and columns.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from tuner.cli import VERBS
from tuner.config.config import KNOBS, Config
from tuner.config.kinds import KINDS
from tuner.config.knobs import Knob, Section, knobs_of
from tuner.config.rules import RULES
from tuner.rewards.registry import TABLE
from tuner.text.english import MESSAGES
from tuner.text.lookup import LOCALE
from tuner.ui.words import english_label

ROOT = Path(__file__).parents[1]
TEMPLATE = LOCALE / "tuner.pot"
_FIELD = re.compile(r"(?<!\{)\{(?!\{)")
_WRITTEN = datetime(2026, 11, 28, tzinfo=UTC)  # one moment for ever: a file changes with its texts only


class Text(NamedTuple):
    """A text, its plural where it counts something, and the file that asks for it."""

    english: str
    many: str
    file: str


def texts() -> Iterator[Text]:
    """Every text, in the order of the files, some of them more than once."""
    files = [ROOT / "app.py", *sorted((ROOT / "pages").glob("*.py")), *sorted((ROOT / "tuner").rglob("*.py"))]
    for file in files:
        name = str(file.relative_to(ROOT))
        yield from (
            found._replace(file=name)
            for found in in_code(file.read_text(encoding="utf-8"), "ui" in file.parts)
        )
    yield from (Text(english, "", file) for file, english in declared() if english)


# --- in code


def in_code(source: str, headed: bool) -> Iterator[Text]:
    """The texts that a module asks for; `headed` where keys of dictionaries are headings of tables."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", "") or getattr(node.func, "attr", "")
            yield from _asked(name, [a.value if isinstance(a, ast.Constant) else None for a in node.args])
            yield from (Text(unit, "", "") for unit in _units(node))
            if name == "table" and node.args and isinstance(node.args[0], ast.Tuple):
                yield from (
                    Text(str(h.value), "", "") for h in node.args[0].elts if isinstance(h, ast.Constant)
                )
        elif headed and isinstance(node, ast.Dict):
            yield from (
                Text(str(k.value), "", "")
                for k in node.keys
                if isinstance(k, ast.Constant) and _heading(k.value)
            )


def _asked(name: str, words: list[object]) -> Iterator[Text]:
    """What one call asks for, by the function's name and its constant arguments."""
    first, second = [*words, None, None][:2]
    third = words[2] if len(words) > 2 else None
    if name in ("tr", "mark", "Column") and isinstance(first, str) and first:
        yield Text(first, "", "")
    elif name == "trn" and isinstance(first, str):
        yield Text(first, str(second), "")
    elif name in ("count", "_folded") and isinstance(second, str) and second:
        yield Text(f"{{count}} {second}", f"{{count}} {third or second + 's'}", "")
    elif name == "Line" and isinstance(second, str):
        yield Text(second, "", "")


def _units(call: ast.Call) -> Iterator[str]:
    """The units of charts: words, not signs."""
    for given in call.keywords:
        if given.arg in ("unit", "axis") and isinstance(given.value, ast.Constant):
            unit = given.value.value
            if isinstance(unit, str) and re.search("[a-z]{2}", unit):
                yield unit


def _heading(key: object) -> bool:
    """Whether a key of a dictionary is a column's or a figure's name."""
    return isinstance(key, str) and bool(re.fullmatch(r"[A-Z][a-z]+( [A-Za-z]+)*", key))


# --- in tables


def declared() -> Iterator[tuple[str, str]]:
    """The texts of tables, with the file that declares them."""
    yield from (("tuner/text/english.py", text) for code, text in MESSAGES.items() if code != "plain")
    for kind in KINDS.values():
        yield "tuner/config/kinds.py", kind.label
        module, name = kind.config.split(":")
        yield from _knobs(getattr(__import__(module, fromlist=[name]), name))
    yield from (("tuner/config/rules.py", rule.sentence) for rule in RULES)
    for reward in TABLE.values():
        yield from (("tuner/rewards/registry.py", said) for said in (reward.title, reward.about))
        yield from (
            text for knob in reward.parameters.values() for text in _knob(knob, "tuner/rewards/registry.py")
        )
    yield from (("tuner/cli/__init__.py", (verb.__doc__ or "").strip()) for verb in VERBS.values())
    yield from (("tuner/config/sections.py", english_label(name)) for name in KNOBS)


def _knobs(config: type[Section]) -> Iterator[tuple[str, str]]:
    file = "tuner/config/sections.py" if config is Config else config.__module__.replace(".", "/") + ".py"
    for knob in knobs_of(config).values():
        yield file, knob.section
        yield from _knob(knob, file)


def _knob(knob: Knob, file: str) -> Iterator[tuple[str, str]]:
    yield from (
        (file, said)
        for said in (english_label(knob.name), knob.help, knob.raised, knob.lowered, knob.usual, knob.unit)
    )


# --- files


def template() -> Catalog:
    """All texts, once each, with the files that ask for them."""
    made = Catalog(project="tuner", creation_date=_WRITTEN, fuzzy=False)
    made.header_comment = "# Every text that a person reads; written by `python -m tools.catalogues`."
    for text in texts():
        formatted = ("python-brace-format",) if _FIELD.search(text.english + text.many) else ()
        made.add(
            (text.english, text.many) if text.many else text.english,
            locations=[(text.file, 0)],
            flags=formatted,
        )
    return made


def write(catalogue: Catalog, file: Path) -> None:
    """Write a catalogue; lines are not broken, so that a text is found by searching."""
    for entry in catalogue:
        entry.locations = sorted(set(entry.locations))[:3]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        write_po(out, catalogue, width=0, include_lineno=False, ignore_obsolete=True)


def brought_up(file: Path, to: Catalog) -> Catalog:
    """A language's catalogue with all texts of the template and no others; what was translated stays."""
    with file.open("rb") as opened:
        known = read_po(opened, locale=file.parents[1].name)
    known.update(to, no_fuzzy_matching=True, update_creation_date=False)
    known.obsolete.clear()
    known.header_comment = (
        f"# {known.locale_identifier}: brought up to tuner.pot by `python -m tools.catalogues`."
    )
    return known


def catalogues() -> list[Path]:
    """The catalogues that there are, a language each."""
    return sorted(LOCALE.glob("*/LC_MESSAGES/tuner.po"))


def main() -> None:
    made = template()
    write(made, TEMPLATE)
    for file in catalogues():
        write(brought_up(file, made), file)


if __name__ == "__main__":
    main()
