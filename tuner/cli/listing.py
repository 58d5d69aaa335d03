"""`tuner runs` and `tuner adapters`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tuner.cli.words import OK, parser, print_json, table
from tuner.tracking.run import STATES


def runs(words: list[str]) -> int:
    """List runs, newest first."""
    options_of = parser(runs)
    options_of.add_argument("--json", action="store_true", help="one JSON object a line")
    options_of.add_argument("--limit", type=int, default=50, help="at most this many (default 50)")
    options_of.add_argument("--state", choices=STATES, help="only runs in this state")
    options = options_of.parse_args(words)
    from tuner.tracking.runs import RunFilter, list_runs

    chosen = RunFilter(states=(options.state,) if options.state else ())
    page = list_runs(chosen, size=options.limit)
    if options.json:
        print_json(map(_run_fields, page.items))
    else:
        rows = [(r.id, r.state, r.stage, r.name, r.model) for r in page.items]
        table(("id", "state", "stage", "name", "model"), rows)
    return OK


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
    """List registered adapters and their versions."""
    options_of = parser(adapters)
    options_of.add_argument("--json", action="store_true", help="one JSON object a line")
    options = options_of.parse_args(words)
    from tuner.tracking.adapters import list_adapters

    found = list_adapters()
    if options.json:
        print_json(asdict(row) for row in found)
    else:
        rows = [(r.name, str(r.version), ",".join(r.aliases), r.base, r.run_id) for r in found]
        table(("name", "version", "aliases", "base", "run"), rows)
    return OK
