"""The verbs that use what was trained: evaluate."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tuner.cli.knob_help import knob_help
from tuner.cli.training import run_here
from tuner.cli.words import OK
from tuner.config.evaluation import EvaluateConfig
from tuner.config.inference import C, read_words
from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import trn


def evaluate(words: list[str]) -> int:
    """Answer a data set with a model and its adapters, score the answers, and hold them against each other."""
    if asks_for_help(words):
        print(knob_help("evaluate", EvaluateConfig))
        return OK
    from tuner.jobs.checking import of_evaluation

    config = read(EvaluateConfig, words)
    refuse_for(of_evaluation(config))
    return run_here(config)


def asks_for_help(words: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(words))


def read(kind: type[C], words: Sequence[str], verb: str = "") -> C:
    """The config behind a verb's words; says which of them have no effect. Raises ConfigError."""
    config, unused = read_words(kind, words)
    if unused:
        flags = ", ".join(f"--{name}" for name in unused)
        said = trn(
            "{flags} has no effect on `tuner {verb}`.",
            "{flags} have no effect on `tuner {verb}`.",
            len(unused),
            flags=flags,
            verb=verb or config.kind.verb,
        )
        print(f"tuner: {said}", file=sys.stderr)
    return config


def refuse_for(problems: Sequence[Problem]) -> None:
    """Raise ConfigError where there are any."""
    if problems:
        raise ConfigError(problems)
