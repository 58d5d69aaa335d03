"""A reward that a person wrote: module:function, named in a config file or in a shell. A page never runs one, because
whoever has a browser would choose what code runs here."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tuner.paths import home
from tuner.rewards.reward import Completion, Scores, wrong
from tuner.text.lookup import tr

_NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_own(name: str) -> bool:
    """Whether a reward's name is that of a function of somebody's own."""
    return ":" in name


def check(name: str) -> str:
    """What is wrong with such a name; empty for nothing."""
    return (
        ""
        if _NAMED.fullmatch(name)
        else tr("is no function; write module:function, for example my_rewards:politeness")
    )


def own(name: str, given: Mapping[str, Any]) -> Callable[[Sequence[Completion]], Scores]:
    """The function behind a name, called as TRL calls one: prompts and completions as lists of turns, each column of the
    data by its name, and what the config gives it. It returns a number or None an answer. Raises ConfigError."""
    function = _function(name)

    def scores(completions: Sequence[Completion]) -> Scores:
        try:
            found: Scores = function(**_columns(completions), **given)
        except Exception as error:
            raise wrong(
                tr(
                    "The reward {name} failed: {name_2}: {error}",
                    name=name,
                    name_2=type(error).__name__,
                    error=error,
                )
            ) from error
        if not isinstance(found, list | tuple):
            raise wrong(
                tr(
                    "The reward {name} returned {name_2}; it has to return a list, a number an answer.",
                    name=name,
                    name_2=type(found).__name__,
                )
            )
        return list(found)

    return scores


def _columns(completions: Sequence[Completion]) -> dict[str, list[Any]]:
    names = {name for one in completions for name in one.columns}
    own = {name: [one.columns.get(name) for one in completions] for name in sorted(names)}
    return own | {
        "prompts": [[dict(turn) for turn in one.messages] for one in completions],
        "completions": [[{"role": "assistant", "content": one.text}] for one in completions],
        "label": [one.label for one in completions],
        "finished": [one.finished for one in completions],
    }


def _function(name: str) -> Callable[..., Any]:
    module, _, called = name.partition(":")
    if str(home()) not in sys.path:
        sys.path.append(str(home()))  # behind everything else: a file of the studio's folder hides no library
    try:
        found = getattr(importlib.import_module(module), called)
    except (ImportError, AttributeError) as error:
        said = tr(
            "The reward {name} is not found ({error}); put {module}.py into {home} or install it.",
            name=name,
            error=error,
            module=module,
            home=home(),
        )
        raise wrong(said) from error
    if not callable(found):
        raise wrong(tr("The reward {name} is no function.", name=name))
    return found  # type: ignore[no-any-return]
