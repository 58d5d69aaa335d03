"""`tuner runs` and `tuner adapters`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import islice
from typing import Any

from tuner.cli.training import run_here
from tuner.cli.words import OK, parser, print_json, refuse, table
from tuner.config.importing import ImportConfig
from tuner.config.knobs import ConfigError
from tuner.runs.status import STATES
from tuner.text.lookup import tr

A_SCREEN = 50
"""Runs that are listed to be read."""


def runs(words: list[str]) -> int:
    """List runs, newest first."""
    options_of = parser(runs)
    options_of.add_argument("--json", action="store_true", help=tr("one JSON object a line"))
    options_of.add_argument(
        "--limit",
        type=int,
        help=tr("at most this many (default {a_screen}; with --json all)", a_screen=A_SCREEN),
    )
    options_of.add_argument("--state", choices=STATES, help=tr("only runs in this state"))
    options = options_of.parse_args(words)
    from tuner.tracking.runs import RunFilter, every_run, list_runs

    if options.limit is not None and options.limit < 1:
        return refuse([tr("--limit needs a number from 1 on; {limit} is none.", limit=options.limit)])
    chosen = RunFilter(states=(options.state,) if options.state else ())
    if options.json:
        print_json(map(_run_fields, islice(every_run(chosen, _warn), options.limit)))
        return OK
    page = list_runs(chosen, size=options.limit or A_SCREEN)
    rows = [(r.id, r.state, r.stage, r.name, r.model) for r in page.items]
    table(("id", "state", "stage", "name", "model"), rows)
    if page.notice:
        _warn(page.notice)
    if page.total > len(rows):
        _warn(tr("{number} of {total} runs; --limit {total} shows all.", number=len(rows), total=page.total))
    return OK


def _warn(notice: str) -> None:
    print(f"tuner: {notice}", file=sys.stderr)


def _run_fields(row: Any) -> dict[str, Any]:
    names = (
        "id",
        "name",
        "state",
        "reason",
        "stage",
        "model",
        "params",
        "metrics",
        "created",
        "started",
        "ended",
    )
    return {name: getattr(row, name) for name in names} | {
        "dataset": list(row.datasets),
        "duration": row.duration,
    }


def adapters(words: list[str]) -> int:
    """List registered adapters and their versions, newest first; --import takes in one from elsewhere."""
    options_of = parser(adapters)
    options_of.add_argument(
        "word", nargs="*", help=tr("only what has these in name, base, data sets or aliases")
    )
    options_of.add_argument("--json", action="store_true", help=tr("one JSON object a line"))
    options_of.add_argument(
        "--limit",
        type=int,
        help=tr("at most this many (default {a_screen}; with --json all)", a_screen=A_SCREEN),
    )
    options_of.add_argument(
        "--import", dest="folder", metavar="FOLDER", help=tr("register an adapter that was trained elsewhere")
    )
    options_of.add_argument("--base", help=tr("with --import: the model it was trained on"))
    options_of.add_argument("--name", help=tr("with --import: what it is called here"))
    options = options_of.parse_args(words)
    if options.folder:
        return _import(options.folder, options.base, options.name)
    from tuner.tracking.adapters import find_adapters

    if options.limit is not None and options.limit < 1:
        return refuse([tr("--limit needs a number from 1 on; {limit} is none.", limit=options.limit)])
    page = find_adapters(
        " ".join(options.word), size=options.limit or (sys.maxsize if options.json else A_SCREEN)
    )
    if options.json:
        print_json(asdict(row) for row in page.items)
        return OK
    rows = [(r.name, str(r.version), ",".join(r.aliases), r.base, r.run_id) for r in page.items]
    table(("name", "version", "aliases", "base", "run"), rows)
    if page.total > len(rows):
        _warn(
            tr("{number} of {total} versions; --limit {total} shows all.", number=len(rows), total=page.total)
        )
    return OK


def _import(folder: str, base: str | None, name: str | None) -> int:
    """Take in an adapter; the run's exit code."""
    from tuner.jobs.checking import of_import

    config = ImportConfig(adapter_name_or_path=folder, model_name_or_path=base, adapter_name=name)
    if problems := of_import(config):
        raise ConfigError(problems)
    return run_here(config)
