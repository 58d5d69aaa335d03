"""`tuner train --help` and `tuner submit --help`: every knob by section, from its one declaration."""

from __future__ import annotations

from tuner.config.config import KNOBS, Config, form_sections, word
from tuner.config.knobs import Knob, sections_of


def knob_help(verb: str) -> str:
    lines = [f"tuner {verb} [file.yaml|recipe] [--flag value | key=value ...]"]
    for section in form_sections():
        lines += ["", section.title]
        lines += [_knob_line(KNOBS[name]) for name in section.model_fields if KNOBS[name].shown]
    rest = sorted(n for s in sections_of(Config) for n in s.model_fields if not KNOBS[n].shown)
    return "\n".join([*lines, "", "Also taken, by transformers' own names: " + ", ".join(rest)])


def _knob_line(knob: Knob) -> str:
    what = "|".join(knob.choices) if knob.choices else knob.kind
    return f"  --{knob.name} {what} (default {word(knob.default) or 'none'})\n      {knob.tooltip}"
