"""`tuner disk` says what takes room, `tuner clean` makes some."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from tuner.cli.words import OK, parser, print_json, refuse, run_of, table
from tuner.text.lookup import mark, tr

MOST = 10
"""Runs that are listed to be read: those that take most."""


def disk(words: list[str]) -> int:
    """Say what takes room on the disk, in all and of each run."""
    options_of = parser(disk)
    options_of.add_argument("--json", action="store_true", help=tr("one JSON object, with every run; bytes"))
    options = options_of.parse_args(words)
    from tuner.jobs import room
    from tuner.runs import files as under

    runs = room.of_runs()
    kinds = room.of_studio(runs)
    if options.json:
        each = {id: asdict(one) | {"total": one.total} for id, one in runs.items()}
        print_json([{"total": sum(kinds.values()), "free": under.free(), "kinds": kinds, "runs": each}])
        return OK
    every = [*kinds.items(), (mark("in all"), sum(kinds.values())), (mark("free"), under.free())]
    table(("what", "size"), [(tr(what), _size(bytes)) for what, bytes in every])
    most = sorted(runs.items(), key=lambda one: -one[1].total)[:MOST]
    if most:
        print()
        cells = [(id, *map(_size, (one.checkpoints, one.output, one.logs, one.total))) for id, one in most]
        table(("run", "checkpoints", "output", "logs", "total"), cells)
    return OK


def clean(words: list[str]) -> int:
    """Make room: checkpoints of ended runs, caches. Shows what would go; --yes removes it."""
    options_of = parser(clean)
    options_of.add_argument(
        "--keep",
        help=tr("remove checkpoints of ended runs but these: best, last, or best,last; none removes all"),
    )
    options_of.add_argument("--caches", action="store_true", help=tr("remove what can be computed again"))
    options_of.add_argument("--run", action="append", help=tr("only of this run; may be given several times"))
    options_of.add_argument("--yes", action="store_true", help=tr("do it"))
    options_of.add_argument("--json", action="store_true", help=tr("one JSON object a thing"))
    options = options_of.parse_args(words)
    from tuner.jobs import cleaning

    keep = None if options.keep is None else {*options.keep.split(",")} - {"none"}
    if (keep is None and not options.caches) or (keep and not keep <= {*cleaning.KEEPS}):
        return refuse([tr("Say what to remove: --keep best,last, --keep none, or --caches.")])
    runs = [run_of([one], "run").id for one in options.run] if options.run else None
    wanted = cleaning.plan(keep, options.caches, runs)
    if options.yes:
        _tell(cleaning.clean(wanted), options.json, gone=True)
    else:
        _tell(wanted, options.json, gone=False)
        if not options.json:
            print(tr("Nothing was removed; --yes removes it."), file=sys.stderr)
    return OK


def _tell(plan: Any, as_json: bool, gone: bool) -> None:
    if as_json:
        done = "removed" if gone else "would go"
        print_json(asdict(item) | {"done": done} for item in plan.items)
    elif plan.items:
        rows = [
            (_size(item.size), tr(item.what), item.name, str(item.path), item.warning) for item in plan.items
        ]
        table(("size", "what", "run", "path", "note"), rows)
    for sentence in plan.stays:
        print(f"tuner: {sentence}", file=sys.stderr)
    if not as_json:
        said = mark("Removed: {number}, {size}.") if gone else mark("Would go: {number}, {size}.")
        print(tr(said, number=len(plan.items), size=_size(plan.size)))


def _size(bytes: int) -> str:
    from tuner.ui.words import size

    return size(bytes)
