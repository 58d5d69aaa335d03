"""The studio from a shell: every verb of the dashboard, with the same words.

Parsing loads no torch and no MLflow, so that a wrong flag is answered at once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from tuner import hardware, paths
from tuner.config.config import KNOBS, Config, form_sections, make, parse_words, recipes, word
from tuner.config.knobs import ConfigError, Knob, Problem, nearest, sections_of
from tuner.tracking.run import STATES

OK, FAILED, REFUSED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0, 1 (it failed) or 2 (it was refused before it began)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return OK
    verb, rest = words[0], words[1:]
    if verb in ("-V", "--version", "version"):
        print(f"tuner {metadata.version('tuner')}")
        return OK
    if verb not in VERBS:
        like = nearest(verb, VERBS)
        return _refuse(
            [f"tuner has no verb {verb!r}; " + (f"did you mean {like}?" if like else "try tuner --help.")]
        )
    try:
        return VERBS[verb][0](rest)
    except ConfigError as error:
        return _refuse([p.sentence for p in error.problems])
    except BrokenPipeError:
        return OK


def _refuse(sentences: Iterable[str]) -> int:
    for sentence in sentences:
        print(f"tuner: {sentence}", file=sys.stderr)
    return REFUSED


def _print_json(rows: Iterable[Any]) -> None:
    for row in rows:
        print(json.dumps(row, ensure_ascii=False, default=str), flush=True)


# --- training ------------------------------------------------------------------------------------------------------


def train(words: list[str]) -> int:
    """Train here and now; prints the run's id and state last."""
    if {"-h", "--help"} & set(words):
        print(_knob_help())
        return OK
    from tuner.jobs.foreground import run_in_foreground
    from tuner.tracking.runs import create_run

    words, gpus = _gpus(words)
    config = _checked(words)
    run = create_run(config, config.run_name or "")
    print(f"run {run.id} in {run.folder}", flush=True)
    code = run_in_foreground(run, gpus=gpus)
    status = run.status()
    if status.reason and status.state != "finished":
        print(f"tuner: {status.reason}", file=sys.stderr)
    print(f"run {run.id} {status.state}", flush=True)
    return code


def submit(words: list[str]) -> int:
    """Put a run in the queue and come back at once; prints its id. Several values for a knob queue a sweep."""
    from tuner.jobs import submit as jobs

    words, gpus = _gpus(words)
    values = parse_words(words)
    if jobs.swept(values):
        for row in jobs.expand(values):
            _check(make(row))
        for run in jobs.sweep(values, str(values.get("run_name") or ""), gpus):
            print(run.id)
        return OK
    print(jobs.submit(_check(make(values)), gpus=gpus).id)
    return OK


def _gpus(words: list[str]) -> tuple[list[str], list[int] | None]:
    """Take `--gpus 0,1` out of a command line: where a run goes is no knob of it."""
    if "--gpus" not in words:
        return words, None
    at = words.index("--gpus")
    chosen = words[at + 1] if at + 1 < len(words) else ""
    if not all(part.strip().isdigit() for part in chosen.split(",")):
        raise ConfigError([Problem("gpus", "--gpus needs device numbers behind it, for example --gpus 0,1.")])
    return words[:at] + words[at + 2 :], [int(part) for part in chosen.split(",")]


def _checked(words: list[str]) -> Config:
    """The config behind a command line, held against this machine before anything is loaded."""
    return _check(make(parse_words(words)))


def _check(config: Config) -> Config:
    from tuner.preflight import problems

    if found := problems(config):
        raise ConfigError(found)
    return config


# --- runs and the queue --------------------------------------------------------------------------------------------


def runs(words: list[str]) -> int:
    """List runs, newest first."""
    parser = _parser("runs")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--limit", type=int, default=50, help="at most this many (default 50)")
    parser.add_argument("--state", choices=STATES, help="only runs in this state")
    options = parser.parse_args(words)
    from tuner.tracking.runs import RunFilter, list_runs

    chosen = RunFilter(states=(options.state,) if options.state else ())
    page = list_runs(chosen, size=options.limit)
    if options.json:
        _print_json(map(_run_fields, page.items))
    else:
        rows = [(r.id, r.state, r.stage, r.name, r.model) for r in page.items]
        _table(("id", "state", "stage", "name", "model"), rows)
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
    parser = _parser("adapters")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(words)
    from tuner.tracking.adapters import list_adapters

    found = list_adapters()
    if options.json:
        _print_json(asdict(row) for row in found)
    else:
        rows = [(r.name, str(r.version), ",".join(r.aliases), r.base, r.run_id) for r in found]
        _table(("name", "version", "aliases", "base", "run"), rows)
    return OK


def queue(words: list[str]) -> int:
    """Show what runs and what waits, in order; or change it."""
    parser = _parser("queue")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--move", nargs=2, metavar=("ID", "PLACE"), help="move a waiting run; place 1 is next"
    )
    parser.add_argument("--pause", action="store_true", help="start nothing new")
    parser.add_argument("--go", action="store_true", help="go on after --pause")
    options = parser.parse_args(words)
    from tuner.jobs import queue as jobs
    from tuner.jobs.supervisor import ensure_supervisor

    if options.move:
        jobs.move(_run([options.move[0]], "queue --move").id, int(options.move[1]))
    if options.pause or options.go:
        jobs.pause(options.pause)
        ensure_supervisor(only_if_needed=True)
    rows = [row.as_dict() for row in jobs.queue()]
    if options.json:
        _print_json(rows)
    else:
        _table(("id", "state", "name"), [(str(r["id"]), str(r["state"]), str(r["name"])) for r in rows])
    return OK


def stop(words: list[str]) -> int:
    """Stop a run: it saves a checkpoint and ends; --now ends it without saving."""
    parser = _parser("stop")
    parser.add_argument("run", nargs=1)
    parser.add_argument("--now", action="store_true", help="do not save first")
    options = parser.parse_args(words)
    from tuner.jobs import control

    return _say(lambda: control.stop(_run(options.run, "stop"), now=options.now))


def resume(words: list[str]) -> int:
    """Go on with a run from its last sound checkpoint, or from the one given."""
    parser = _parser("resume")
    parser.add_argument("run", nargs=1)
    parser.add_argument("--from", dest="checkpoint", help="a checkpoint's name or path")
    options = parser.parse_args(words)
    from tuner.jobs import control

    return _say(lambda: control.resume(_run(options.run, "resume"), options.checkpoint).id)


def wait(words: list[str]) -> int:
    """Wait until a run has ended; the exit code is 0 only if it finished."""
    parser = _parser("wait")
    parser.add_argument("run", nargs=1)
    parser.add_argument("--timeout", type=float, help="seconds to wait at most")
    options = parser.parse_args(words)
    from tuner.jobs import control

    run = _run(options.run, "wait")
    status = control.wait(run, options.timeout)
    print(f"run {run.id} {status.state}" + (f": {status.reason}" if status.reason else ""))
    return OK if status.state == "finished" else FAILED


def sync(words: list[str]) -> int:
    """Send MLflow what it missed while it was away."""
    _parser("sync").parse_args(words)
    from tuner.jobs.settle import sync as send

    sent, wrong = send()
    print(f"{sent} points sent")
    for sentence in wrong:
        print(f"tuner: {sentence}", file=sys.stderr)
    return FAILED if wrong else OK


def _say(act: Callable[[], str]) -> int:
    from tuner.jobs.control import Refused

    try:
        print(act())
    except Refused as refused:
        return _refuse([str(refused)])
    return OK


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(str(row[i])) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _run(words: Sequence[str], verb: str) -> Any:
    """The run a verb is about: an id, the beginning of one, or a name that only one run has."""
    from tuner.tracking.run import Run
    from tuner.tracking.runs import find_run

    try:
        return Run(find_run(words[0]))
    except ValueError as error:
        raise ConfigError([Problem(verb, str(error))]) from error


# --- the machine and the page --------------------------------------------------------------------------------------


def webui(words: list[str]) -> int:
    """Serve the dashboard on this machine only."""
    if not (paths.package().parent / "app.py").is_file():
        return _refuse(
            ["app.py is missing; start the dashboard from a checkout of the project (`make run`)."]
        )
    # A process of its own name and memory; an argument list, no shell.
    os.execv(sys.executable, [sys.executable, "-m", "tuner.ui.serve", *words])  # noqa: S606


def doctor(words: list[str]) -> int:
    """Say what this machine has and what is missing."""
    _parser("doctor").parse_args(words)
    load = hardware.usage(paths.home())
    print(f"tuner     {metadata.version('tuner')} in {paths.home()}")
    print(f"machine   {hardware.describe()}; {load.disk_free / hardware.GIB:.0f} GiB disk free")
    print(f"Python    {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"bfloat16  {'yes' if hardware.bf16() else 'no: leave --bf16 off'}")
    missing = []
    for package in (
        "torch",
        "transformers",
        "peft",
        "trl",
        "datasets",
        "accelerate",
        "mlflow",
        "streamlit",
        "plotly",
    ):
        try:
            print(f"{package:<13} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
            print(f"{package:<13} missing")
    for package, use in EXTRAS.items():
        try:
            print(f"{package:<13} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package:<13} not installed ({use})")
    if not hardware.gpus():
        print("No GPU is visible: runs go on the CPU, one at a time.")
    return _refuse([f"{', '.join(missing)} missing; run `make run` again."]) if missing else OK


EXTRAS = {
    "bitsandbytes": "4 and 8 bit QLoRA: pip install 'tuner[quantization]'",
    "deepspeed": "ZeRO over several GPUs: pip install deepspeed",
    "liger-kernel": "fused kernels on a GPU: pip install liger-kernel",
}


# --- help ----------------------------------------------------------------------------------------------------------


def _parser(verb: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"tuner {verb}", description=VERBS[verb][0].__doc__)


def _help() -> str:
    lines = ["tuner: fine-tune language models, from a page or a shell.", "", "Verbs:"]
    lines += [
        f"  {verb:<10} {(function.__doc__ or '').splitlines()[0]}" for verb, (function,) in VERBS.items()
    ]
    lines += [
        "",
        "  tuner train FILE.yaml [--flag value | key=value ...]   LLaMA-Factory's YAML files and flags work unchanged",
        f"  tuner train RECIPE                                      recipes: {', '.join(recipes()) or 'none'}",
        "  tuner train --help                                      every knob, by section",
    ]
    return "\n".join(lines)


def _knob_help() -> str:
    lines = ["tuner train [file.yaml|recipe] [--flag value | key=value ...]"]
    for section in form_sections():
        lines += ["", section.title]
        lines += [_knob_line(KNOBS[name]) for name in section.model_fields if KNOBS[name].shown]
    rest = sorted(n for s in sections_of(Config) for n in s.model_fields if not KNOBS[n].shown)
    return "\n".join([*lines, "", "Also taken, by transformers' own names: " + ", ".join(rest)])


def _knob_line(knob: Knob) -> str:
    what = "|".join(knob.choices) if knob.choices else knob.kind
    return f"  --{knob.name} {what} (default {word(knob.default) or 'none'})\n      {knob.tooltip}"


VERBS: dict[str, tuple[Callable[[list[str]], int]]] = {
    "webui": (webui,),
    "train": (train,),
    "submit": (submit,),
    "queue": (queue,),
    "stop": (stop,),
    "resume": (resume,),
    "wait": (wait,),
    "sync": (sync,),
    "runs": (runs,),
    "adapters": (adapters,),
    "doctor": (doctor,),
}


if __name__ == "__main__":
    sys.exit(main())
