"""`tuner chat`: a talk in the terminal with a model, which a serve run of the queue holds as it does for the pages."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.cli.words import FAILED, OK
from tuner.config.knobs import ConfigError, Problem, knobs_of
from tuner.text.lookup import mark, tr

if TYPE_CHECKING:
    from tuner.config.serving import ServeConfig
    from tuner.jobs.serving import Endpoint
    from tuner.runs.run import Run

IDLE = 10.0
"""Minutes after which the model of a terminal that was killed is unloaded."""
CLEAR, EXIT, IMAGE = "clear", "exit", "image "
OF_EACH_REQUEST = frozenset(
    {
        "adapter_name_or_path",
        "seed",
        "do_sample",
        "temperature",
        "top_p",
        "top_k",
        "max_new_tokens",
        "repetition_penalty",
    }
)
"""Knobs that a server need not share with who asks it: each question says them."""


def chat(words: list[str]) -> int:
    """Talk with a model in the terminal: clear begins anew, exit ends it; takes LLaMA-Factory's inference files."""
    from tuner.cli.using import asks_for_help, read

    if asks_for_help(words):
        print(tr(USAGE))
        return OK
    from tuner import samples
    from tuner.config.serving import ServeConfig

    words, system = _system(words)
    config = read(ServeConfig, words, "chat")
    if config.model_name_or_path is None:
        raise ConfigError(
            [Problem("model_name_or_path", tr("--model_name_or_path is missing; name a model."))]
        )
    if len(config.adapter_name_or_path) > 1:
        said = tr(
            "--adapter_name_or_path names several adapters, and one can answer; name one, or merge them with `tuner export`."
        )
        raise ConfigError([Problem("adapter_name_or_path", said)])
    samples.lay_out_for(config.model_name_or_path)
    with _served(config) as (place, model):
        return _talk(place, _question(config, model), system or config.default_system or "")


USAGE = mark("""usage: tuner chat [FILE.yaml] [--model_name_or_path MODEL] [--adapter_name_or_path ADAPTER] [--system TEXT]

Talk with a model in the terminal. `clear` begins anew, `exit` ends it, Ctrl-C stops an answer. `image FILE` adds a picture to the next message.
An adapter is a folder, NAME@ALIAS or NAME/VERSION. Decoding: --temperature, --top_p, --top_k, --max_new_tokens.""")


def _system(words: list[str]) -> tuple[list[str], str]:
    """Take `--system TEXT` out of a command line. Raises ConfigError."""
    if "--system" not in words:
        return words, ""
    at = words.index("--system")
    if at + 1 == len(words):
        raise ConfigError(
            [Problem("system", tr('--system needs a text behind it, for example --system "Be brief."'))]
        )
    return words[:at] + words[at + 2 :], words[at + 1]


# --- the server


@contextmanager
def _served(config: ServeConfig) -> Iterator[tuple[Endpoint, str]]:
    """Where the model answers and by which name: a server that lives and was loaded alike, else one for this talk."""
    from tuner.config.config import made_of
    from tuner.config.serving import ServeConfig
    from tuner.jobs import control, serving
    from tuner.jobs.submit import submit

    adapters = config.adapter_name_or_path
    run = next((run for run in serving.living() if _loaded_alike(run, config)), None)
    if run is not None:
        yield _listening(run), adapters[0] if adapters else "base"
        return
    run = submit(made_of(ServeConfig, {**_given(config), "api_port": 0, "idle_minutes": IDLE}))
    try:
        yield _listening(run), ""
    finally:
        with suppress(control.Refused):
            control.stop(run)


def _given(config: ServeConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.model_fields_set}


def _loaded_alike(run: Run, config: ServeConfig) -> bool:
    """Whether a serve run holds the model that a config means, loaded and prompted as it says."""
    from tuner.config.inference import InferenceConfig
    from tuner.jobs import serving
    from tuner.plan.facts import place
    from tuner.tracking.adapters import VERSION

    given, wanted = run.values(), config.plain()
    known = given.get("adapter_name_or_path") or ()
    if not all(
        name in known or VERSION.fullmatch(name) or place(name).is_dir()
        for name in config.adapter_name_or_path
    ):
        return False  # one on the hub is only known to a server that began with it
    if not serving.same_base(str(given.get("model_name_or_path")), str(config.model_name_or_path)):
        return False
    shared = knobs_of(InferenceConfig).keys() - OF_EACH_REQUEST
    return all(given.get(name) == wanted.get(name) for name in shared - {"model_name_or_path"})


def _listening(run: Run) -> Endpoint:
    """Where a run answers, once it does; what it does meanwhile is said. Raises Refused once it never will."""
    from tuner.jobs import serving
    from tuner.jobs.control import Refused
    from tuner.jobs.supervisor import ensure_supervisor
    from tuner.runs.status import ENDED
    from tuner.text.message import term

    told = ""
    while (at := serving.endpoint(run)) is None:
        status = run.status()
        if status.state in ENDED:
            raise Refused(
                tr("The model could not be served. {reason}", reason=status.reason or tr("Its log says why."))
            )
        if status.state == "queued":
            ensure_supervisor(only_if_needed=True)
        doing = tr("waiting for a slot") if status.state == "queued" else term("phase", status.phase)
        if doing and doing != told:
            told = doing
            print(tr("tuner: {doing} ...", doing=doing), file=sys.stderr, flush=True)
        time.sleep(0.2)
    return at


# --- the talk


def _question(config: ServeConfig, model: str) -> dict[str, Any]:
    """The body of every question but for its messages."""
    chosen = {"seed": config.seed} if config.seed is not None else {}
    return chosen | {
        "model": model,
        "temperature": config.temperature if config.do_sample else 0.0,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "repetition_penalty": config.repetition_penalty,
        "max_tokens": config.max_new_tokens,
    }


def _talk(place: Endpoint, question: dict[str, Any], system: str) -> int:
    """Read, ask, print, until `exit` or the input's end; 1 where the last answer failed."""
    from tuner.chats.talk import Answer

    begun: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages, code = list(begun), OK
    shown: list[str] = []
    print(tr("`{clear}` starts over, `{exit}` ends.", clear=CLEAR, exit=EXIT), flush=True)
    while (text := _read()) is not None:
        if not text:
            continue
        if text == CLEAR:
            messages, shown = list(begun), []
            print(tr("Chat cleared."), flush=True)
            continue
        if text.startswith(IMAGE):
            shown += _picture(Path(text.removeprefix(IMAGE).strip()).expanduser())
            continue
        messages.append({"role": "user", "content": _content(text, shown)})
        shown = []
        said = _answered(place, {**question, "messages": messages})
        code = OK if said is not None else FAILED
        if said:
            # Without its thoughts, as chat templates want it and as the page does.
            messages.append({"role": "assistant", "content": Answer("", text=said).said})
        else:
            messages.pop()
    return code


def _picture(file: Path) -> list[str]:
    """A picture for the next message, as a data: URL; none where it cannot be used, which is said."""
    from tuner.data.pictures.opening import PictureError
    from tuner.data.pictures.places import shown_url

    try:
        found = [shown_url(file)]
    except PictureError as error:
        print(f"tuner: {error}", file=sys.stderr, flush=True)
        return []
    print(tr("The picture goes with the next message."), flush=True)
    return found


def _content(text: str, shown: list[str]) -> Any:
    if not shown:
        return text
    return [
        *({"type": "image_url", "image_url": {"url": url}} for url in shown),
        {"type": "text", "text": text},
    ]


def _read() -> str | None:
    """A line; None for the end."""
    try:
        text = input(tr("\nUser: ")).strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if text == EXIT else text


def _answered(place: Endpoint, question: dict[str, Any]) -> str | None:
    """Print an answer as it comes; all that came, or None where the server gave none. Ctrl-C stops it there."""
    from tuner.chats.completions import Unanswered, ask

    said = ""
    print(tr("Assistant: "), end="", flush=True)
    try:
        for part in ask(place, question):
            said += part
            print(part, end="", flush=True)
    except KeyboardInterrupt:
        print(" " + tr("[stopped]"), end="")
    except Unanswered as error:
        print(flush=True)
        print(f"tuner: {error}", file=sys.stderr, flush=True)
        return None
    print(flush=True)
    return said
