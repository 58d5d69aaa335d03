"""The table of rewards: each by its name, with its parameters, their bounds and what they do, and the function that scores.

In a config each is a name, or a name with its parameters: `contains: {text: thank you, weight: 0.5}`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tuner.config.config import Config, refusal
from tuner.config.knobs import ConfigError, Knob, Problem, Section, describe, nearest
from tuner.config.spelling import listed
from tuner.rewards import labels, own, remote, structure, words
from tuner.rewards.reward import Completion, Reward, Rule, Scorer, Scores, each
from tuner.text.lookup import ended, tr

WEIGHT = "weight"
MODEL = "reward_model"
"""What the score of a reward model is called among the parts."""


@dataclass(frozen=True)
class Named:
    """A reward of the table. `settings` are its parameters, `check` says what is wrong with them, and `scores` makes the
    function of many answers."""

    name: str
    settings: Any
    about: str
    scores: Callable[[Any], Callable[[Sequence[Completion]], Sequence[float | None]]]
    check: Callable[[Any], str] = lambda settings: ""
    needs_label: bool = False

    @property
    def title(self) -> str:
        return str(self.settings.title)

    @property
    def parameters(self) -> dict[str, Knob]:
        """Its parameters, as knobs."""
        found: type[Section] = self.settings
        return {name: describe(found, name, info) for name, info in found.model_fields.items()}


def _rule(
    name: str,
    settings: type[Section],
    rule: Callable[[Any], Rule],
    check: Callable[[Any], str] = lambda settings: "",
    *,
    needs_label: bool = False,
) -> Named:
    about = " ".join((rule.__doc__ or "").split())
    return Named(name, settings, about, lambda given: each(rule(given)), check, needs_label)


_TABLE = (
    _rule("contains", words.Contains, words.contains),
    _rule("regex", words.Matches, words.matches, words.check_matches),
    _rule("length", words.Length, words.length, words.check_length),
    _rule("json_valid", structure.JsonValid, structure.json_valid),
    _rule("json_schema", structure.JsonSchema, structure.json_schema, structure.check_json_schema),
    _rule("equals_label", labels.EqualsLabel, labels.equals_label, needs_label=True),
    _rule(
        "number_equals",
        labels.NumberEquals,
        labels.number_equals,
        labels.check_number_equals,
        needs_label=True,
    ),
    _rule("tool_call_valid", structure.ToolCallValid, structure.tool_call_valid),
    _rule("think_format", structure.ThinkFormat, structure.think_format),
    _rule("repetition", words.Repetition, words.repetition),
    Named("http", remote.Http, "The score that a server gives.", remote.http, remote.check_http),
)
TABLE: dict[str, Named] = {one.name: one for one in _TABLE}


@dataclass(frozen=True)
class Spec:
    """A reward as a config names it."""

    name: str
    given: Mapping[str, Any]
    weight: float = 1.0


def spec(said: Any) -> Spec:
    """A config's item as what it asks for. Raises ValueError with what is wrong, as the end of a sentence."""
    if isinstance(said, str):
        return Spec(said, {})
    if not isinstance(said, Mapping) or len(said) != 1:
        raise ValueError(
            tr("is no reward; write a name, or one name with its parameters: {contains: {text: thanks}}")
        )
    name, given = next(iter(said.items()))
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            tr(
                "gives {name} {given!r:.80}; write its parameters by name: {{{name}: {{parameter: value}}}}",
                name=name,
                given=given,
            )
        )
    left = dict(given or {})
    return Spec(str(name), left, _weight(left.pop(WEIGHT, 1.0)))


def _weight(said: Any) -> float:
    try:
        weight = float(said)
    except (TypeError, ValueError):
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(
            tr("has weight {said!r:.40}, and it is a number; below 0 for what is not wanted", said=said)
        )
    return weight


def settings_of(asked: Spec) -> Section:
    """The parameters of a reward of the table, checked. Raises ValueError as `spec` does."""
    if asked.name not in TABLE:
        if asked.name.endswith("_reward"):
            raise ValueError(
                tr(
                    "is not of this table; TRL's own is trl.rewards:{name}, in a file or a shell",
                    name=asked.name,
                )
            )
        like = nearest(asked.name, TABLE)
        hint = (
            tr("did you mean {like}?", like=like)
            if like
            else tr("there are {table}, and module:function", table=", ".join(TABLE))
        )
        raise ValueError(tr("is not known; {hint}", hint=hint))
    named = TABLE[asked.name]
    try:
        found: Section = named.settings(**asked.given)
    except ValidationError as error:
        raise ValueError(_said(named, error)) from error
    if said := named.check(found):
        raise ValueError(said)
    return found


def _said(named: Named, error: ValidationError) -> str:
    """What is wrong with a parameter, in words."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        like = nearest(name, named.parameters)
        return tr("has no parameter {name}; ", name=name) + (
            tr("did you mean {like}?", like=like)
            if like
            else tr("it takes {parameters}", parameters=", ".join(named.parameters))
        )
    if first["type"] == "literal_error":
        return tr(
            "has {name} {input!r:.60}, and it is one of {choices}",
            name=name,
            input=first["input"],
            choices=", ".join(named.parameters[name].choices),
        )
    if first["type"] == "string_too_short":
        return tr("needs {name}", name=name)
    return tr(
        "has {name} {input!r:.60}, but it {message}", name=name, input=first["input"], message=refusal(first)
    )


def parse(said: Any, name: str = "") -> Reward:
    """The reward behind a config's item. Raises ConfigError; a function of somebody's own is imported here."""
    try:
        asked = spec(said)
        called = name or asked.name
        if own.is_own(asked.name):
            if why := own.check(asked.name):
                raise ValueError(why)
            return Scorer(called, asked.weight, own.own(asked.name, asked.given))
        return Scorer(called, asked.weight, TABLE[asked.name].scores(settings_of(asked)))
    except ValueError as error:
        raise ConfigError([Problem("reward_funcs", _sentence(said, str(error)))]) from error


def of(config: Config) -> tuple[Reward, ...]:
    """The rewards that a config names, a server among them where it is its reward model. A reward model that is loaded is
    none of these: its weight is `model_weight`. Raises ConfigError."""
    found = parsed(config.reward_funcs)
    weights = _weights(config, [one.weight for one in found])
    found = [_weighed(one, weight) for one, weight in zip(found, weights, strict=True)]
    return (*found, *_served(config))


def parsed(specs: Sequence[Any]) -> list[Reward]:
    """The rewards behind a config's items, each with a name of its own. Raises ConfigError."""
    return [parse(said, name) for said, name in zip(specs, names(specs), strict=True)]


def weighed(config: Config) -> list[Any]:
    """The config's items with the weights that `reward_weights` gives them, and the server that is its reward model. Raises
    ValueError for an item that is none."""
    asked = [spec(said) for said in config.reward_funcs]
    weights = _weights(config, [one.weight for one in asked])
    found = [{one.name: {**one.given, WEIGHT: w}} for one, w in zip(asked, weights, strict=True)]
    if config.reward_model and config.reward_model_type == "api":
        found.append({"http": {"url": config.reward_model, WEIGHT: model_weight(config)}})
    return found


def model_weight(config: Config) -> float:
    """What the score of the reward model counts by."""
    return float(config.reward_weights[-1]) if config.reward_model and config.reward_weights else 1.0


def names(specs: Sequence[Any]) -> list[str]:
    """What each is called in charts: its name, with a number where several have it."""
    seen: Counter[str] = Counter()
    found = []
    for said in specs:
        name = said if isinstance(said, str) else str(next(iter(said), ""))
        name = name.rpartition(":")[2]
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def problems(config: Config) -> Iterator[Problem]:
    """What is wrong with a config's rewards. Nothing is imported or asked for."""
    if config.kind.rewarded:
        yield from wrong_with(config.reward_funcs)
        yield from _served_problems(config)


def wrong_with(specs: Sequence[Any]) -> Iterator[Problem]:
    """What is wrong with rewards as a config names them."""
    for said in specs:
        try:
            asked = spec(said)
            why = own.check(asked.name) if own.is_own(asked.name) else ""
            if not own.is_own(asked.name):
                settings_of(asked)
        except ValueError as error:
            why = str(error)
        if why:
            yield Problem("reward_funcs", _sentence(said, why))


def of_labels(specs: Sequence[Any]) -> list[str]:
    """Those of them that say nothing of an answer whose row expects none."""
    asked = [spec(said).name for said in specs]
    return [name for name in asked if name in TABLE and TABLE[name].needs_label]


def of_own(specs: Sequence[Any]) -> list[str]:
    """The functions of somebody's own among them, which no page runs."""
    named = [str(next(iter(said), "")) if isinstance(said, Mapping) else str(said) for said in specs]
    return [name for name in named if own.is_own(name)]


def chosen(said: Any) -> list[Any]:
    """The rewards that values name, whichever way they are written; one that cannot be read as it is."""
    try:
        found = listed(said)
    except ValueError:
        found = said
    return list(found) if isinstance(found, list | tuple) else [found]


def refused_by_pages(values: Mapping[str, Any]) -> list[Problem]:
    """What stands against launching values from a page: code that they name."""
    names = of_own(chosen(values.get("reward_funcs")))
    why = tr(
        "is code, and a page runs none; launch this config from a shell with `tuner train FILE`, or take it out."
    )
    return [Problem("reward_funcs", f"{name} {why}") for name in names]


def _sentence(said: Any, why: str) -> str:
    name = said if isinstance(said, str) else next(iter(said), "") if isinstance(said, Mapping) else said
    return ended(f"--reward_funcs: {name!s:.80} {why}")


def _weights(config: Config, own: Sequence[float]) -> Sequence[float]:
    return config.reward_weights[: len(own)] if config.reward_weights else own


def _weighed(reward: Reward, weight: float) -> Reward:
    return Scorer(reward.name, weight, reward.score)


def _served(config: Config) -> tuple[Reward, ...]:
    """The server that a config names as its reward model."""
    if config.reward_model_type != "api" or not config.reward_model:
        return ()
    asked: Callable[[Sequence[Completion]], Scores] = remote.http(remote.Http(url=config.reward_model))
    return (Scorer(MODEL, model_weight(config), asked),)


def _served_problems(config: Config) -> Iterator[Problem]:
    served = config.reward_model if config.reward_model_type == "api" else None
    if served and (why := remote.check_http(remote.Http(url=served))):
        yield Problem("reward_model", ended(f"--reward_model {why}"))
