"""A config on its way out: a YAML file, a shell command, what MLflow stores."""

from __future__ import annotations

from collections.abc import Iterable

import yaml

from tuner.config.config import KNOBS, Values
from tuner.config.knobs import knobs_of
from tuner.config.run_config import RunConfig, as_plain
from tuner.config.spelling import Dumper, flag, literal, word


def command(config: RunConfig, verb: str = "") -> str:
    """The shell command that does the same as `config`, quoted, one knob a line; `parse_words` reads it back."""
    flags = [
        flag(name, value, word(value))
        for name, value in config.changed().items()
        if name in knobs_of(type(config))
    ]
    return " \\\n  ".join([f"tuner {verb or config.kind.verb}", *flags])


def to_yaml(values: Values) -> str:
    """Values as a YAML file that `read` gives back unchanged."""
    return dump(literal(dict(values)))


def dump(values: Values) -> str:
    """Values as plain YAML, for whoever reads them without filling anything in."""
    plain = {name: as_plain(value) for name, value in values.items()}
    text: str = yaml.dump(
        plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
    return text


def params(config: RunConfig) -> dict[str, str]:
    """Every knob as MLflow stores it: text, secrets left out."""
    return {name: word(value) for name, value in config.plain().items()}


def differing(configs: Iterable[Values]) -> list[str]:
    """The knobs in which these differ, in the form's order, then whatever else there is."""
    rows = list(configs)
    names = [n for n in KNOBS if any(n in r for r in rows)] + sorted(
        {n for r in rows for n in r} - set(KNOBS)
    )
    return [n for n in names if len({repr(r.get(n)) for r in rows}) > 1]
