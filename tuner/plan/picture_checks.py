"""What is said before launch of rows whose pictures cannot be used: how many, why, and where the first stands."""

from __future__ import annotations

from collections.abc import Iterator

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data.catalog import pick, pick_eval
from tuner.data.pictures.look import Look, look
from tuner.plan.facts import model_folder
from tuner.text.lookup import tr, trn


def problems(config: Config) -> Iterator[Problem]:
    """A set of which no picture can be used."""
    for knob, name, found in _looks(config):
        if found.bad and found.bad == found.rows:
            yield Problem(
                knob, tr("{name}: no row's pictures can be used: {why}.", name=name, why=_why(found))
            )


def notes(config: Config) -> Iterator[str]:
    """Sets of which some rows will be left out for their pictures."""
    for _, name, found in _looks(config):
        if 0 < found.bad < found.rows:
            yield trn(
                "{name}: {bad} of the first {rows} rows will be left out for its pictures: {why}.",
                "{name}: {bad} of the first {rows} rows will be left out for their pictures: {why}.",
                found.bad,
                name=name,
                bad=found.bad,
                rows=found.rows,
                why=_why(found),
            )


def _looks(config: Config) -> Iterator[tuple[str, str, Look]]:
    try:
        sets = [
            (knob, e) for knob, find in (("dataset", pick), ("eval_dataset", pick_eval)) for e in find(config)
        ]
    except ConfigError:
        return  # said where the sets are looked for
    folder = model_folder(config)
    for knob, entry in sets:
        if found := look(entry, config, folder):
            yield knob, entry.name, found


def _why(found: Look) -> str:
    """Each reason with the place of its first row."""
    first = ((reason, finding.count, finding.examples[0]) for reason, finding in found.unfit.items())
    return "; ".join(
        tr(
            "{reason} ({count}), line {line} of {file}: {detail}",
            reason=tr(reason),
            count=count,
            line=at["line"],
            file=at["file"],
            detail=at["detail"],
        )
        for reason, count, at in first
    )
