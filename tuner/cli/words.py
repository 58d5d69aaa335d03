"""What the verbs share: refusing in a sentence, printing rows, finding the run a person means."""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from tuner.config.knobs import ConfigError, Problem
from tuner.redact import redact
from tuner.text.lookup import mark, tr

OK, FAILED, REFUSED = 0, 1, 2


# What argparse says of itself; it asks gettext, in its own way of importing it.
SAID_BY_ARGPARSE = (
    mark("usage: "),
    mark("positional arguments"),
    mark("options"),
    mark("show this help message and exit"),
    mark("the following arguments are required: %s"),
    mark("unrecognized arguments: %s"),
    mark("argument %(argument_name)s: %(message)s"),
    mark("expected one argument"),
    mark("invalid choice: %(value)r (choose from %(choices)s)"),
    mark("invalid %(type)s value: %(value)r"),
)
setattr(argparse, "_", tr)  # noqa: B010  it has no public name


class Parser(argparse.ArgumentParser):
    """Refuses in one sentence, as everything here does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            [
                Problem(
                    "", tr("{message}; `{prog} --help` says what it takes.", message=message, prog=self.prog)
                )
            ]
        )


def parser(function: Callable[[list[str]], int]) -> Parser:
    """A parser for one verb, described by its function's docstring."""
    return Parser(prog=f"tuner {function.__name__}", description=tr((function.__doc__ or "").strip()))


def refuse(sentences: Iterable[str]) -> int:
    for sentence in sentences:
        print(f"tuner: {redact(sentence)}", file=sys.stderr)
    return REFUSED


def foreseen(error: Exception) -> list[str] | None:
    """What to say of an error, in sentences; None for one that nobody foresaw, which is ours to mend."""
    from tuner.jobs.control import Refused
    from tuner.runs.locks import LockHeldError
    from tuner.runs.reasons import refused_by_system
    from tuner.tracking.store import TrackerError

    if isinstance(error, ConfigError):
        return [problem.sentence for problem in error.problems]
    if isinstance(error, OSError):
        return [refused_by_system(error)]
    return [str(error)] if isinstance(error, Refused | LockHeldError | TrackerError) else None


def print_json(rows: Iterable[Any]) -> None:
    for row in rows:
        print(json.dumps(row, ensure_ascii=False, default=str), flush=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under headings, which are looked up here."""
    said = [tr(head) for head in heads]
    widths = [max(_width(str(row[i])) for row in (said, *rows)) for i in range(len(heads))]
    for row in (said, *rows):
        print("  ".join(_filled(str(cell), width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _width(text: str) -> int:
    """The columns of a terminal that a text takes: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def _filled(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def run_of(words: Sequence[str], verb: str) -> Any:
    """The run a verb is about: an id, the beginning of one, or a name that only one run has."""
    from tuner.runs.run import Run
    from tuner.tracking.runs import find_run

    try:
        return Run(find_run(words[0]))
    except ValueError as error:
        raise ConfigError([Problem(verb, str(error))]) from error
