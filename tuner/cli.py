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
from importlib import metadata
from typing import Any

from tuner import hardware, paths
from tuner.config.config import KNOBS, Config, form_sections, make, parse_words, recipes, word
from tuner.config.knobs import ConfigError, Knob, nearest, sections_of

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
    from tuner.jobs.submit import create

    run = create(_checked(words))
    print(f"run {run.id} · {run.folder}", flush=True)
    code = run_in_foreground(run)
    status = run.status()
    if status.reason:
        print(status.reason, file=sys.stderr)
    print(f"run {run.id} {status.state}", flush=True)
    return code


def submit(words: list[str]) -> int:
    """Put a run in the queue and come back at once; prints its id."""
    from tuner.jobs.submit import submit as submit_run

    gpus = None
    if "--gpus" in words:
        at = words.index("--gpus")
        gpus = [int(g) for g in words[at + 1].split(",")]
        del words[at : at + 2]
    print(submit_run(_checked(words), gpus=gpus).id)
    return OK


def _checked(words: list[str]) -> Config:
    """The config behind a command line, held against this machine before anything is loaded."""
    from tuner.preflight import problems

    config = make(parse_words(words))
    found = problems(config)
    if found:
        raise ConfigError(found)
    return config


# --- runs and the queue --------------------------------------------------------------------------------------------


def runs(words: list[str]) -> int:
    """List runs, newest first."""
    parser = _parser("runs")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--limit", type=int, default=50, help="at most this many (default 50)")
    parser.add_argument("--state", help="only runs in this state")
    options = parser.parse_args(words)
    from tuner.tracking.runs import RunFilter, list_runs

    chosen = RunFilter(states=(options.state,) if options.state else ())
    rows = list_runs(chosen, page=0, size=options.limit).rows
    if options.json:
        _print_json(row.as_dict() for row in rows)
    else:
        _table(
            ("id", "state", "stage", "name", "model"),
            [(r.id, r.state, r.stage, r.name, r.model) for r in rows],
        )
    return OK


def adapters(words: list[str]) -> int:
    """List registered adapters and their versions."""
    parser = _parser("adapters")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(words)
    from tuner.tracking.adapters import list_adapters

    rows = list_adapters()
    if options.json:
        _print_json(row.as_dict() for row in rows)
    else:
        _table(
            ("name", "version", "aliases", "base", "run"),
            [(r.name, str(r.version), ",".join(r.aliases), r.base, r.run_id) for r in rows],
        )
    return OK


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(str(row[i])) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _run_id(verb: str, words: list[str]) -> Any:
    """The run a verb is about, by id or by an unmistakable beginning of it."""
    from tuner.tracking.run import Run, all_runs

    if not words:
        raise ConfigError([_problem(f"tuner {verb} needs a run id; `tuner runs` lists them.")])
    matches = [r for r in all_runs() if r.id.startswith(words[0])]
    if len(matches) != 1:
        said = "There is no run" if not matches else "Several runs begin with"
        raise ConfigError([_problem(f"{said} {words[0]!r}; `tuner runs` lists them.")])
    return Run(matches[0].id)


def _problem(sentence: str) -> Any:
    from tuner.config.knobs import Problem

    return Problem("", sentence)


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
    "runs": (runs,),
    "adapters": (adapters,),
    "doctor": (doctor,),
}


if __name__ == "__main__":
    sys.exit(main())
