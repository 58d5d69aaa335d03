"""`tuner api`: a model behind OpenAI's interface, from LLaMA-Factory's files, flags and environment."""

from __future__ import annotations

import os

from tuner import samples
from tuner.cli.knob_help import knob_help
from tuner.cli.training import run_here
from tuner.cli.using import asks_for_help, read
from tuner.cli.words import OK
from tuner.config.config import made_of
from tuner.config.knobs import ConfigError, Problem
from tuner.config.serving import ServeConfig, Serving
from tuner.text.lookup import tr

ENVIRONMENT = {
    "API_HOST": "api_host",
    "API_PORT": "api_port",
    "API_KEY": "api_key",
    "API_MODEL_NAME": "api_model_name",
}


def api(words: list[str]) -> int:
    """Serve a model and its adapters in OpenAI's way until Ctrl-C; see docs/api.md."""
    if asks_for_help(words):
        print(knob_help("api", ServeConfig, own=Serving))
        print(tr("\nEnvironment: {environment}.", environment=", ".join(ENVIRONMENT)))
        return OK
    return run_here(_config(words))


def _config(words: list[str]) -> ServeConfig:
    """What was said, then the environment, then what suits a server that somebody started by hand. Raises ConfigError."""
    config = read(ServeConfig, words)
    environment = {knob: os.environ[name] for name, knob in ENVIRONMENT.items() if os.environ.get(name)}
    given = {name: getattr(config, name) for name in config.model_fields_set}
    by_hand = {"api_open": True, "api_gives_way": False, "idle_minutes": 0.0}
    made = made_of(ServeConfig, {**by_hand, **environment, **given})
    if not made.model_name_or_path:
        raise ConfigError(
            [Problem("model_name_or_path", tr("--model_name_or_path is missing: name the model to serve."))]
        )
    samples.lay_out_for(made.model_name_or_path)
    return made
