"""Values of knobs from outside: YAML and JSON files, recipes, what stands behind a verb in a shell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from tuner.config.aliases import said_again
from tuner.config.board import from_board, is_board, other_verb
from tuner.config.config import KNOBS, Values
from tuner.config.knobs import ConfigError, Knob, Problem, nearest
from tuner.config.spelling import takes_numbers, word
from tuner.paths import Stamp, home, package, stamp
from tuner.text.lookup import tr


def recipes() -> dict[str, Path]:
    """The recipes that ship with the studio, by name."""
    return {p.stem: p for p in sorted((package() / "config" / "recipes").glob("*.yaml"))}


def read(source: str | Path, resolve: bool = True) -> dict[str, Any]:
    """The values in a YAML or JSON file, or of a recipe by its name; ${...} is filled in unless `resolve` is off.

    The saved arguments of LLaMA-Factory's board are read as the knobs they stand for. Raises ConfigError.
    """
    path = recipes().get(str(source)) or Path(source)
    if not path.is_absolute():
        path = home() / path
    if not path.is_file():
        like = nearest(str(source), recipes())
        hint = (
            tr("did you mean the recipe {like}?", like=like)
            if like
            else tr("recipes are {recipes}.", recipes=", ".join(recipes()))
        )
        raise ConfigError([Problem("", tr("There is no file {source}; {hint}", source=source, hint=hint))])
    try:
        values = deepcopy(_parsed(path, stamp(path)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(source, error) from error
    if not isinstance(values, dict):
        raise ConfigError(
            [Problem("", tr("{source} holds no knobs; write one `name: value` a line.", source=source))]
        )
    named = {str(k): v for k, v in values.items()}
    named = from_board(named) if is_board(named) else named
    return _for_training(resolved(named), source) if resolve else named


@lru_cache(maxsize=64)
def _parsed(path: Path, changed: Stamp) -> Any:
    """What stands in a YAML file; kept until it is `changed`."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml)  # noqa: S506  a SafeLoader


def stored(path: Path) -> dict[str, Any]:
    """The values of a run's own config.yaml, as `to_yaml` wrote them. Raises ConfigError."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Stored)  # noqa: S506  a SafeLoader
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(values, dict):
        raise ConfigError([Problem("", tr("{path} holds no knobs.", path=path))])
    return resolved({str(k): v for k, v in values.items()})  # what is no variable comes out of its quotes


def _for_training(values: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """The values of a training file. Raises ConfigError for a file of another verb."""
    if said := other_verb(values):
        raise ConfigError([Problem("", tr("{source} is no training file: {said}", source=source, said=said))])
    return values


def resolved(values: Values) -> dict[str, Any]:
    """Values with every ${...} filled in from the others, as OmegaConf does. Raises ConfigError."""
    if "${" not in repr(values):
        return dict(values)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found: Any = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    except OmegaConfBaseException as error:
        sentence = tr(
            "A ${{...}} cannot be filled in: {first_line}; name a knob of the same file, or ${{oc.env:NAME}}.",
            first_line=_first_line(error),
        )
        raise ConfigError([Problem("", sentence)]) from error
    return {str(k): v for k, v in found.items()}


class _Yaml(yaml.SafeLoader):
    """YAML as people write it: 5e-5 is a number here, as in every tool that reads these files."""


def _once(loader: _Yaml, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    """A mapping whose keys each stand once: of two, PyYAML would silently take the last."""
    seen: set[str] = set()
    for key, _ in node.value:
        if str(key.value) in seen:
            line = key.start_mark.line + 1
            raise yaml.MarkedYAMLError(
                problem=tr(
                    "{value} stands twice, again in line {line}; keep one of them", value=key.value, line=line
                )
            )
        seen.add(str(key.value))
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Yaml.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _once)


class _Stored(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same for what the studio wrote: six times faster, and laxer with what nobody should write."""


for _kind in (_Yaml, _Stored):
    takes_numbers(_kind)


def _unreadable(source: str | Path, error: Exception) -> ConfigError:
    said = tr("{source} is not readable as YAML: {first_line}", source=source, first_line=_first_line(error))
    return ConfigError([Problem("", said)])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def parse_words(
    words: Sequence[str], knobs: Mapping[str, Knob] = KNOBS, training: bool = True
) -> dict[str, Any]:
    """What stands behind `tuner train`: [file|recipe] then `--flag value`, `--flag`, `--no_flag` or `key=value`.

    Later words win. `knobs` are those of the verb, and `training` says that a file must be one to train with. Raises
    ConfigError.
    """
    values: dict[str, Any] = {}
    source = ""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            given = _flag(word[2:], rest, knobs)
        elif "=" in word:
            given = _assigned(values, word)
        elif not values:
            source = word
            given = read(word, resolve=False)
        else:
            raise ConfigError(
                [Problem("", tr("{word!r} stands alone; write --name value or name=value.", word=word))]
            )
        for name in given if values else ():
            values = said_again(values, name)
        values.update(given)
    found = resolved(values)
    return _for_training(found, source) if source and training else found


def _assigned(values: Values, word: str) -> dict[str, Any]:
    """What `name=value` sets, as OmegaConf reads it: null empties, [a,b] is a list, a.b is inside a."""
    name, value = word.split("=", 1)
    if "." not in name and value[:1] not in ("[", "{"):
        return {name: None if value in ("null", "~") else value}
    if "." not in name:
        with suppress(ValueError):
            return {name: json.loads(value)}
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist([word]))
        top = next(iter(given))
        if isinstance(values.get(top), dict) and isinstance(given[top], dict):
            given = {top: OmegaConf.to_container(OmegaConf.merge(values[top], given[top]))}
    except (OmegaConfBaseException, yaml.YAMLError):
        return {name: value}
    return {str(k): v for k, v in given.items()}


def _flag(flag: str, rest: list[str], knobs: Mapping[str, Knob]) -> dict[str, Any]:
    name, given, value = flag.partition("=")
    name = name.replace("-", "_")
    if given:
        return {name: value}
    # A switch is a flag with nothing behind it; -1 and the like are values, not flags.
    if rest and not rest[0].startswith("--"):
        return {name: rest.pop(0)}
    positive = name.removeprefix("no_")
    if name not in knobs and positive in knobs:
        return {positive: False}
    knob = knobs.get(name)
    if knob and knob.kind != "bool":
        raise ConfigError(
            [
                Problem(
                    name,
                    tr(
                        "--{name} needs a value behind it, for example --{name} {example}.",
                        name=name,
                        example=_example(knob),
                    ),
                )
            ]
        )
    return {name: True}


def _example(knob: Knob) -> str:
    return word(knob.default) or (knob.choices[0] if knob.choices else "VALUE")
