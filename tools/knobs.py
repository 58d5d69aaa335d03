"""`python -m tools.knobs` writes docs/knobs.md, the reference of all knobs, from their declarations in tuner/config."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic.fields import FieldInfo

from tuner.config.config import KNOBS, Config
from tuner.config.kinds import KINDS
from tuner.config.knobs import Knob, Section, describe, sections_of
from tuner.config.spelling import word
from tuner.config.without_effect import REASONS

FILE = Path(__file__).parents[1] / "docs" / "knobs.md"
_HEAD = """\
<!-- Written by `python -m tools.knobs` from tuner/config; change the declaration, not this page. -->

# All knobs

Each is a flag of `tuner train` and `tuner submit` (`--learning_rate 1e-4`), or of the verb that its section names, a key of a YAML file, a field of the form and a parameter in
MLflow, by the same name: LLaMA-Factory's, or that of transformers.
"""
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """The whole reference as Markdown: a table of contents, then a table a section."""
    sections = [*sections_of(Config), *others()]
    contents = [f"- [{section.title}](#{_anchor(section.title)})" for section in sections]
    return "\n".join([_HEAD, *contents, *(line for section in sections for line in _section(section))]) + "\n"


def others() -> list[type[Section]]:
    """The sections that only runs of another kind than training have: those with a knob that training does not know."""
    classes = [kind.config.split(":") for kind in KINDS.values() if kind.family != "train"]
    found = [
        s for module, name in classes for s in sections_of(getattr(importlib.import_module(module), name))
    ]
    return list(dict.fromkeys(s for s in found if not s.model_fields.keys() <= KNOBS.keys()))


def _section(section: type[Section]) -> Iterator[str]:
    yield from ("", f"## {section.title}", "", "| knob | default | what it does |", "|---|---|---|")
    for name, field in section.model_fields.items():
        knob = KNOBS.get(name) or describe(section, name, field)
        default = f"`{shown}`" if (shown := word(knob.default)) else "empty"
        yield f"| `{name}`<br>{_cell(_type(knob, field))} | {_cell(default)} | {_cell(_about(knob))} |"


def _type(knob: Knob, field: FieldInfo) -> str:
    """Its kind or choices, its bounds and its unit."""
    limits = [
        f"{sign} {word(limit)}"
        for rule in field.metadata
        for bound, sign in _BOUNDS.items()
        if (limit := getattr(rule, bound, None)) is not None
    ]
    kind = " \\| ".join(f"`{choice}`" for choice in knob.choices) or knob.kind
    unit = f"({knob.unit})" if knob.unit else ""
    return " ".join(filter(None, [kind, " and ".join(limits), unit]))


def _about(knob: Knob) -> str:
    """What the form's tooltip says, and when it has an effect."""
    parts = [knob.tooltip]
    if knob.needs:
        also = f", or with {_condition(knob.or_needs)}" if knob.or_needs else ""
        parts.append(f"Only with {_condition(knob.needs)}{also}.")
    if elsewhere := _elsewhere(knob.name):
        parts.append(f"Default with {elsewhere}.")
    if knob.name in REASONS:
        parts.append(f"Taken, without effect here: {REASONS[knob.name]}.")
    if knob.secret and "never stored" not in knob.help:
        parts.append("Never stored.")
    return " ".join(parts)


def _elsewhere(name: str) -> str:
    """The defaults that it has for some stages only; for example: `stage` `rloo`: `0.05`."""
    found: dict[str, list[str]] = {}
    for stage, kind in KINDS.items():
        if name in kind.defaults:
            found.setdefault(word(kind.defaults[name]), []).append(f"`{stage}`")
    return ", ".join(f"`stage` {' or '.join(stages)}: `{value}`" for value, stages in found.items())


def _condition(needs: Mapping[str, tuple[object, ...]]) -> str:
    """For example: `stage` `sft` or `pt` and `do_train` `True`."""
    return " and ".join(
        f"`{name}` " + " or ".join(f"`{word(value) or 'empty'}`" for value in values)
        for name, values in needs.items()
    )


def _cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return text.replace("\\|", "|").replace("|", "\\|").replace("\n", " ")


def _anchor(title: str) -> str:
    """The name GitHub gives a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
    print(f"{FILE}: {len(KNOBS)} knobs")
