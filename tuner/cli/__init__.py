"""The studio from a shell: every verb of the dashboard, with the same words.

Parsing loads no torch and no MLflow, so that a wrong flag is answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from tuner import __version__, process
from tuner.cli.chat import chat
from tuner.cli.data import data
from tuner.cli.disk import clean, disk
from tuner.cli.export import export
from tuner.cli.knob_help import knob_help
from tuner.cli.listing import adapters, runs
from tuner.cli.machine import doctor, webui
from tuner.cli.queueing import queue, resume, stop, sync, wait
from tuner.cli.serving import api
from tuner.cli.training import submit, train
from tuner.cli.using import evaluate
from tuner.cli.words import OK, foreseen, refuse
from tuner.config.knobs import nearest
from tuner.config.reading import recipes
from tuner.text.lookup import mark, of_environment, speak_everywhere, tr

VERBS: dict[str, Callable[[list[str]], int]] = {
    verb.__name__: verb
    for verb in (
        webui,
        train,
        submit,
        api,
        chat,
        evaluate,
        queue,
        stop,
        resume,
        wait,
        sync,
        runs,
        adapters,
        export,
        data,
        disk,
        clean,
        doctor,
    )
}


# Verbs of LLaMA-Factory, and what to do here instead.
ELSEWHERE = {
    "eval": mark(
        "`tuner evaluate` measures a model and its adapters, on a data set or on benchmarks of lm-eval."
    ),
    "webchat": mark("`tuner webui` has a Chat page, and `tuner chat` talks in the terminal."),
    "env": mark("`tuner doctor` says what this machine has."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0, 1 (it failed) or 2 (it was refused before it began)."""
    speak_everywhere(of_environment())
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        process.begin(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help())
        return OK
    verb, rest = words[0], words[1:]
    if verb in ("-V", "--version", "version"):
        print(f"tuner {__version__}")
        return OK
    if verb not in VERBS:
        like = nearest(verb, VERBS)
        hint = tr(ELSEWHERE.get(verb, "")) or (
            tr("did you mean {like}?", like=like) if like else tr("try tuner --help.")
        )
        return refuse([tr("tuner has no verb {verb!r}; {hint}", verb=verb, hint=hint)])
    if verb in ("train", "submit") and {"-h", "--help"} & set(rest):
        print(knob_help(verb))
        return OK
    try:
        return VERBS[verb](rest)
    except BrokenPipeError:
        return OK
    except Exception as error:
        said = foreseen(error)
        if said is None:
            raise
        return refuse(said)


def _about(function: Callable[[list[str]], int]) -> str:
    """What a verb does: the first line of its docstring."""
    return tr((function.__doc__ or "").strip()).splitlines()[0]


def help() -> str:
    lines = [tr("tuner: fine-tune language models, from a page or a shell."), "", tr("Verbs:")]
    lines += [f"  {verb:<10} {_about(function)}" for verb, function in VERBS.items()]
    lines += [
        "",
        tr(
            "  tuner train FILE.yaml [--flag value | key=value ...]   LLaMA-Factory's YAML files and flags work unchanged"
        ),
        tr(
            "  tuner train RECIPE                                      recipes: {recipes}",
            recipes=", ".join(recipes()),
        ),
        tr("  tuner train --help                                      every knob, by section"),
    ]
    return "\n".join(lines)
