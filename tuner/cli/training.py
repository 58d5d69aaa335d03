"""`tuner train` here and now, `tuner submit` into the queue."""

from __future__ import annotations

import sys

from tuner import samples
from tuner.cli import launchers
from tuner.cli.words import OK
from tuner.config.config import Config, make
from tuner.config.knobs import ConfigError, Problem
from tuner.config.reading import parse_words
from tuner.config.run_config import RunConfig
from tuner.config.settings import settings
from tuner.text.lookup import tr


def train(words: list[str]) -> int:
    """Train here and now; prints the run's id and state last."""
    if launchers.spare():
        return OK
    words, gpus = _gpus(words)
    return run_here(_checked(words), gpus)


def run_here(config: RunConfig, gpus: list[int] | None = None) -> int:
    """Make a run and live it in this terminal; its exit code."""
    from tuner.jobs.foreground import run_in_foreground
    from tuner.jobs.submit import create, spread

    settings()  # before there is a run, which a supervisor would start later
    run = create(spread(config, gpus))
    print(tr("run {id} in {folder}", id=run.id, folder=run.folder), flush=True)
    code = run_in_foreground(run, gpus=gpus)
    status = run.status()
    if status.reason and status.state != "finished":
        print(f"tuner: {status.reason}", file=sys.stderr)
    print(tr("run {id} {state}", id=run.id, state=status.state), flush=True)
    return code


def submit(words: list[str]) -> int:
    """Put a run in the queue and come back at once; prints its id. Several values for a knob queue a sweep."""
    from tuner.jobs import submit as jobs

    if launchers.spare():
        return OK
    words, gpus = _gpus(words)
    values = launchers.asked() | parse_words(words)
    if jobs.swept(values):
        _say_notes([_check(make(row)) for row in jobs.expand(values)])
        for run in jobs.sweep(values, str(values.get("run_name") or ""), gpus):
            print(run.id)
        return OK
    config = _check(make(values))
    _say_notes([config])
    print(jobs.submit(config, gpus=gpus).id)
    return OK


def _say_notes(configs: list[Config]) -> None:
    """What the log of a run in the queue will say first; `train` shows that log itself."""
    from tuner.plan.preflight import notes

    for said in dict.fromkeys(said for config in configs for said in notes(config)):
        print(f"tuner: {said}", file=sys.stderr)


def _gpus(words: list[str]) -> tuple[list[str], list[int] | None]:
    """Take `--gpus 1` out of a command line: where a run goes is no knob of it. Raises ConfigError."""
    if "--gpus" not in words:
        return words, None
    at = words.index("--gpus")
    chosen = words[at + 1] if at + 1 < len(words) else ""
    if not all(part.strip().isdigit() for part in chosen.split(",")):
        raise ConfigError(
            [Problem("gpus", tr("--gpus needs a device number behind it, for example --gpus 0."))]
        )
    from tuner.jobs.slots import check_gpus

    gpus = [int(part) for part in chosen.split(",")]
    check_gpus(gpus)
    return words[:at] + words[at + 2 :], gpus


def _checked(words: list[str]) -> Config:
    """The config behind a command line, held against this machine before anything is loaded."""
    return _check(make(launchers.asked() | parse_words(words)))


def _check(config: Config) -> Config:
    from tuner.plan.preflight import problems

    samples.lay_out_for(config.model_name_or_path)
    if found := problems(config):
        raise ConfigError(found)
    return config
