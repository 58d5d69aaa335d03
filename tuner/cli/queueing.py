"""The verbs for runs that wait or are at work: queue, stop, resume, wait, sync."""

from __future__ import annotations

import sys
from contextlib import suppress

from tuner.cli.words import FAILED, OK, parser, print_json, refuse, run_of, table
from tuner.config.config import KNOBS
from tuner.text.lookup import mark, tr


def queue(words: list[str]) -> int:
    """Show what runs and what waits, in order; or change it."""
    options_of = parser(queue)
    options_of.add_argument("--json", action="store_true", help=tr("one JSON object a line"))
    options_of.add_argument(
        "--move", nargs=2, metavar=("ID", "PLACE"), help=tr("move a waiting run; place 1 is next")
    )
    options_of.add_argument("--pause", action="store_true", help=tr("start nothing new"))
    options_of.add_argument("--go", action="store_true", help=tr("continue after --pause"))
    options = options_of.parse_args(words)
    from tuner.jobs import queue as jobs
    from tuner.jobs.supervisor import ensure_supervisor

    if options.move:
        run, place = run_of([options.move[0]], "queue --move"), options.move[1]
        if not place.isdigit():
            return refuse([tr("--move needs a place as a number, 1 is next; {place} is none.", place=place)])
        try:
            jobs.move(run.id, int(place))
        except ValueError as error:
            return refuse([str(error)])
    if options.pause or options.go:
        jobs.pause(options.pause)
    gone = False
    with suppress(OSError):  # a studio that nobody may write to can be looked at all the same
        gone = ensure_supervisor(only_if_needed=True)
    rows = [row.as_dict() for row in jobs.queue()]
    if options.json:
        print_json(rows)
    else:
        table(("id", "state", "name"), [(str(r["id"]), str(r["state"]), str(r["name"])) for r in rows])
    if gone and not (options.move or options.pause or options.go):
        print(tr("tuner: no supervisor was running; one was started."), file=sys.stderr)
    return OK


def stop(words: list[str]) -> int:
    """Stop a run: it saves a checkpoint and ends; --now ends it without saving."""
    options_of = parser(stop)
    options_of.add_argument("run", nargs=1)
    options_of.add_argument("--now", action="store_true", help=tr("do not save first"))
    options = options_of.parse_args(words)
    from tuner.jobs import control

    print(control.stop(run_of(options.run, "stop"), now=options.now))
    return OK


def resume(words: list[str]) -> int:
    """Go on with a run from its last sound checkpoint, or from the one given."""
    options_of = parser(resume)
    options_of.add_argument("run", nargs=1)
    options_of.add_argument("--from", dest="checkpoint", help=tr("a checkpoint's name or path"))
    tokens = [name for name, knob in KNOBS.items() if knob.secret]
    for name in tokens:
        options_of.add_argument(
            f"--{name}", help=tr("in place of the one it was given; kept for a week after its end")
        )
    options = options_of.parse_args(words)
    from tuner.jobs import control

    secrets = {name: value for name in tokens if (value := getattr(options, name))}
    print(control.resume(run_of(options.run, "resume"), options.checkpoint, secrets).id)
    return OK


def wait(words: list[str]) -> int:
    """Wait until a run has ended; the exit code is 0 only if it finished."""
    options_of = parser(wait)
    options_of.add_argument("run", nargs=1)
    options_of.add_argument("--timeout", type=float, help=tr("seconds to wait at most"))
    options = options_of.parse_args(words)
    from tuner.jobs import control

    run = run_of(options.run, "wait")
    status = control.wait(run, options.timeout)
    said = mark("run {id} {state}: {reason}") if status.reason else mark("run {id} {state}")
    print(tr(said, id=run.id, state=status.state, reason=status.reason))
    return OK if status.state == "finished" else FAILED


def sync(words: list[str]) -> int:
    """Send MLflow what it missed while it was away."""
    options_of = parser(sync)
    options_of.add_argument(
        "--new", action="store_true", help=tr("start a new database where the old one is gone for good")
    )
    options = options_of.parse_args(words)
    from tuner.jobs.reconcile import sync as send
    from tuner.tracking.mirror import start_anew

    if options.new:
        try:
            start_anew()
        except ValueError as refused:
            return refuse([str(refused)])
    sent, wrong = send()
    print(tr("{sent} points sent", sent=sent))
    for sentence in wrong:
        print(f"tuner: {sentence}", file=sys.stderr)
    return FAILED if wrong else OK
