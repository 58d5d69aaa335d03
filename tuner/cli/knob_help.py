"""`tuner train --help` and the like: every knob by section, from its one declaration."""

from __future__ import annotations

from tuner.config.config import Config
from tuner.config.knobs import Kind, Knob, Section, knobs_of, sections_of
from tuner.config.run_config import RunConfig
from tuner.config.spelling import word
from tuner.text.lookup import mark, tr

TYPES: dict[Kind, str] = {
    "bool": mark("bool"),
    "int": mark("int"),
    "float": mark("float"),
    "text": mark("text"),
    "choice": mark("choice"),
    "list": mark("list"),
    "json": "json",
}
"""What a flag takes, in a word."""


def knob_help(verb: str, config: type[RunConfig] = Config, own: type[Section] | None = None) -> str:
    """What a verb takes; `own` is a section that is its own and that other verbs only know of."""
    knobs = knobs_of(config)
    told = {
        name
        for name, knob in knobs.items()
        if not knob.secret and (knob.shown or own and name in own.model_fields)
    }
    lines = [
        f"tuner {verb} [file.yaml{'|recipe' if config is Config else ''}] [--flag value | key=value ...]"
    ]
    for section in sections_of(config):
        shown = [knobs[name] for name in section.model_fields if name in told]
        lines += ["", tr(section.title), *map(_knob_line, shown)] if shown else []
    rest = sorted(knobs.keys() - told)
    return "\n".join(
        [*lines, "", tr("Also taken, by transformers' own names: {names}", names=", ".join(rest))]
    )


def _knob_line(knob: Knob) -> str:
    what = "|".join(knob.choices) if knob.choices else tr(TYPES[knob.kind])
    told = tr("{what} (default {default})", what=what, default=word(knob.default) or tr("none"))
    return f"  --{knob.name} {told}\n      {knob.tooltip}"
