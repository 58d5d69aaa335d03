"""`tuner api`: a model behind OpenAI's interface, from LLaMA-Factory's files, flags and environment."""

from __future__ import annotations

import os
import sys

from tuner import samples
from tuner.cli.words import OK
from tuner.config.config import made_of
from tuner.config.inference import read_words
from tuner.config.knobs import ConfigError, Problem, knobs_of
from tuner.config.serving import ServeConfig

ENVIRONMENT = {
    "API_HOST": "api_host",
    "API_PORT": "api_port",
    "API_KEY": "api_key",
    "API_MODEL_NAME": "api_model_name",
}


def api(words: list[str]) -> int:
    """Serve a model and its adapters in OpenAI's way until Ctrl-C; see docs/api.md."""
    from tuner.jobs.foreground import run_in_foreground
    from tuner.tracking.runs import create_run

    if {"-h", "--help"} & set(words):
        print(_help())
        return OK
    config = _config(words)
    run = create_run(config, "")
    print(f"run {run.id} in {run.folder}", flush=True)
    code = run_in_foreground(run)
    status = run.status()
    if status.reason:
        print(f"tuner: {status.reason}", file=sys.stderr)
    return code


def _config(words: list[str]) -> ServeConfig:
    """What was said, then the environment, then what suits a server that somebody started by hand. Raises ConfigError."""
    config, unused = read_words(ServeConfig, words)
    for name in unused:
        print(f"tuner: --{name} says nothing about serving and is left out.", file=sys.stderr)
    environment = {knob: os.environ[name] for name, knob in ENVIRONMENT.items() if os.environ.get(name)}
    given = {name: getattr(config, name) for name in config.model_fields_set}
    by_hand = {"api_open": True, "api_gives_way": False, "idle_minutes": 0.0}
    made = made_of(ServeConfig, {**by_hand, **environment, **given})
    if not made.model_name_or_path:
        raise ConfigError(
            [Problem("model_name_or_path", "--model_name_or_path is missing: name the model to serve.")]
        )
    samples.lay_out_for(made.model_name_or_path)
    return made


def _help() -> str:
    lines = ["tuner api [file.yaml] [--flag value | key=value ...]"]
    knobs = [knob for knob in knobs_of(ServeConfig).values() if not knob.secret]
    for title in dict.fromkeys(knob.section for knob in knobs):
        lines += ["", title]
        lines += [f"  --{k.name} {k.kind}\n      {k.tooltip}" for k in knobs if k.section == title]
    return "\n".join([*lines, "", f"Environment: {', '.join(ENVIRONMENT)}."])
