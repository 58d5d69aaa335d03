"""A config: a validated set of knob values for one run, and its ways in and out (YAML, flags, mappings)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tuner.config.aliases import MEANT, NO_STAGE, REFUSED, disagreeing, renamed, said_again
from tuner.config.board import from_board, is_board, other_verb
from tuner.config.kinds import DEFAULT, KINDS, Kind
from tuner.config.knobs import ConfigError, Knob, Problem, Section, knobs_of, nearest, sections_of
from tuner.config.method_sections import Answers, Decisions, Freeze, Lora, Oft, Preference, Quantization
from tuner.config.optimizer_sections import Optimizers
from tuner.config.picture_sections import Pictures
from tuner.config.reward_sections import Online, Ppo, Rewards
from tuner.config.rules import broken_rules
from tuner.config.run_config import RunConfig, as_plain
from tuner.config.run_sections import Evaluation, Export, Generation, Machine, Profiling, Vocabulary
from tuner.config.sections import Data, Model, Output, Samples, Task, Training
from tuner.config.spelling import Dumper, asks_for_fsdp, flag, literal, takes_numbers
from tuner.config.training_arguments import TrainingArguments
from tuner.paths import Stamp, home, package, stamp
from tuner.redact import is_secret_name, shaped
from tuner.text.lookup import ended, mark, tr

Values = Mapping[str, Any]
C = TypeVar("C", bound=RunConfig)


class Config(
    RunConfig,
    Model,
    Task,
    Data,
    Pictures,
    Training,
    Lora,
    Oft,
    Freeze,
    Quantization,
    Preference,
    Answers,
    Decisions,
    Rewards,
    Online,
    Ppo,
    Evaluation,
    Generation,
    Samples,
    Optimizers,
    Machine,
    Vocabulary,
    Output,
    Profiling,
    Export,
    TrainingArguments,
):
    """Every knob with its value. Immutable; `make` builds one and says what is wrong in sentences."""

    @property
    def kind(self) -> Kind:
        """What this run is, by its stage."""
        return KINDS[self.stage]

    @property
    def processes(self) -> int:
        """How many processes the run has: one a GPU, or so many on the CPU."""
        return self.nproc_per_node or self.num_gpus

    @property
    def examples_per_step(self) -> int:
        """How many examples all processes together learn from in an optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.processes

    @property
    def sharded(self) -> bool:
        """Whether weights, gradients and optimizer are spread over the processes."""
        return bool(self.deepspeed) or asks_for_fsdp(self.fsdp)

    def with_values(self, **values: Any) -> Config:
        """This config with some knobs set otherwise. Raises ConfigError."""
        return make({**self.changed(), **self.secrets(), **values})


KNOBS: dict[str, Knob] = knobs_of(Config)


def form_sections() -> list[type[Section]]:
    """The sections a person sees, in order."""
    return [s for s in sections_of(Config) if any(KNOBS[n].shown for n in s.model_fields)]


def load(values: Values) -> RunConfig:
    """The config of a run of any kind, as its folder holds it. Raises ConfigError."""
    kind = KINDS.get(str(values.get("stage", DEFAULT)))
    if kind is None or kind.family == "train":
        return make(values)
    module, name = kind.config.split(":")
    of_kind: type[RunConfig] = getattr(importlib.import_module(module), name)
    return made_of(of_kind, {knob: value for knob, value in values.items() if knob != "stage"})


def made_of(kind: type[C], values: Values) -> C:
    """A config of a class of its own. Raises ConfigError."""
    try:
        config = kind(**values)
    except ValidationError as error:
        raise ConfigError(_problem(e, knobs_of(kind)) for e in error.errors()) from error
    if problems := list(_secrets_in_the_open(config)):
        raise ConfigError(problems)
    return config


def make(values: Values) -> Config:
    """Build a config from knob values of any source (typed by a person or read from a file).

    Raises ConfigError with every problem found, each in one sentence that names the knob, the value and the remedy.
    """
    config, problems = check(values)
    if config is None or problems:
        raise ConfigError(problems)
    return config


def check(values: Values) -> tuple[Config | None, list[Problem]]:
    """The config if the values make one, and all that is wrong with it."""
    known, problems = _known(values)
    kind = KINDS.get(str(known.get("stage", DEFAULT)))
    try:
        config = Config(**{**(kind.defaults if kind else {}), **known})
    except ValidationError as error:
        return None, problems + [_problem(e, KNOBS) for e in error.errors()]
    return config, [*problems, *_secrets_in_the_open(config), *broken_rules(config)]


def _secrets_in_the_open(config: RunConfig) -> Iterator[Problem]:
    """What may not be recorded, in knobs that are."""
    for name, value in config.changed().items():
        if _holds_secret(value):
            yield Problem(
                name,
                tr(
                    "--{name} holds a password or a token, and every run's values are recorded; leave it out and give it"
                    " by the environment (HF_TOKEN, AWS_SECRET_ACCESS_KEY, ~/.netrc, ...).",
                    name=name,
                ),
            )


def _holds_secret(value: Any) -> bool:
    if isinstance(value, dict):
        return any((one and is_secret_name(str(key))) or _holds_secret(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return any(map(_holds_secret, value))
    return isinstance(value, str) and shaped(value)


def _known(values: Values) -> tuple[dict[str, Any], list[Problem]]:
    """Old names made new, unknown names told."""
    known: dict[str, Any] = {}
    problems = [
        Problem(
            knob,
            tr("--{name} and --{knob} name one thing and say two; keep one of them.", name=name, knob=knob),
        )
        for name, knob in disagreeing(values)
    ]
    for name, value in renamed(values).items():
        if name in KNOBS:
            if not _emptied(KNOBS[name], value):
                known[name] = value
        elif name in REFUSED:
            if not REFUSED[name].fits(value):
                problems.append(
                    Problem(
                        name,
                        tr(
                            "--{name} {value} is refused: {sentence}",
                            name=name,
                            value=word(value),
                            sentence=tr(REFUSED[name].sentence),
                        ),
                    )
                )
        else:
            like = MEANT.get(name) or nearest(name, KNOBS)
            hint = (
                tr("did you mean --{like}?", like=like)
                if like
                else tr("`tuner train --help` lists what there is.")
            )
            problems.append(Problem(name, tr("--{name} is not known; {hint}", name=name, hint=hint)))
    return known, problems


def _emptied(knob: Knob, value: Any) -> bool:
    """Whether a value takes a knob back to its default: null where null is no value of it."""
    nothing = value is None or (isinstance(value, str) and value.strip().lower() == "null")
    return nothing and not knob.optional


WANTED = {
    "float": mark("should be a number"),
    "int": mark("should be a whole number"),
    "bool": mark("should be true or false"),
    "string": mark("should be a text"),
    "tuple": mark("should be a list"),
    "finite": mark("should be a finite number"),
}
"""What a knob takes, by the first word of pydantic's kind of error: float_parsing, float_type."""
BOUNDS = {
    "gt": mark("should be greater than {bound}"),
    "ge": mark("should be greater than or equal to {bound}"),
    "lt": mark("should be less than {bound}"),
    "le": mark("should be less than or equal to {bound}"),
}


def refusal(error: ErrorDetails) -> str:
    """Why a value is refused, in the person's language; pydantic's own words for what it seldom says."""
    for name, bound in (error.get("ctx") or {}).items():
        if name in BOUNDS:
            return tr(BOUNDS[name], bound=f"{bound:.12g}")
    if said := WANTED.get(error["type"].partition("_")[0]):
        return tr(said)
    return error["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _problem(error: ErrorDetails, knobs: Mapping[str, Knob]) -> Problem:
    name = str(error["loc"][0]) if error["loc"] else ""
    said = refusal(error)
    shown = "***" if name in knobs and knobs[name].secret else repr(error["input"])
    sentence = ended(tr("--{name} is {shown}, but it {said}", name=name, shown=shown, said=said))
    if name == "stage" and (why := NO_STAGE.get(str(error["input"]))):
        return Problem(name, tr("--stage {input} is refused: {why}", input=error["input"], why=why))
    if error["type"] == "literal_error":
        choices = knobs[name].choices
        known, like = ", ".join(choices), nearest(str(error["input"]), choices)
        one_of = mark("--{name} is {shown}, but it is one of {choices}.")
        meant = mark("--{name} is {shown}, but it is one of {choices}; did you mean {like}?")
        sentence = tr(meant if like else one_of, name=name, shown=shown, choices=known, like=like)
    return Problem(name, sentence)


# --- from a file, a recipe, a command line -------------------------------------------------------------------------


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
        raise ConfigError(
            [
                Problem(
                    "",
                    tr(
                        "{source} is not readable as YAML: {first_line}",
                        source=source,
                        first_line=_first_line(error),
                    ),
                )
            ]
        ) from error
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
        raise ConfigError(
            [
                Problem(
                    "",
                    tr(
                        "{path} is not readable as YAML: {first_line}",
                        path=path,
                        first_line=_first_line(error),
                    ),
                )
            ]
        ) from error
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


# --- to a file and a command line ----------------------------------------------------------------------------------


def word(value: Any) -> str:
    """A value as it is typed in a shell: 5e-05, True, a,b, {"x": 1}; empty for None."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        nested = any(isinstance(v, dict) for v in value)
        return json.dumps(value) if nested else ",".join(str(v) for v in value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def command(config: RunConfig, verb: str = "") -> str:
    """The shell command that does the same as `config`, quoted, one knob a line; `parse_words` reads it back."""
    flags = [
        flag(name, value, word(value))
        for name, value in config.changed().items()
        if name in knobs_of(type(config))
    ]
    return " \\\n  ".join([f"tuner {verb or config.kind.verb}", *flags])


def to_yaml(values: Values) -> str:
    """Values as a YAML file that `read` gives back unchanged."""
    return dump(literal(dict(values)))


def dump(values: Values) -> str:
    """Values as plain YAML, for whoever reads them without filling anything in."""
    plain = {name: as_plain(value) for name, value in values.items()}
    text: str = yaml.dump(
        plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
    return text


def params(config: RunConfig) -> dict[str, str]:
    """Every knob as MLflow stores it: text, secrets left out."""
    return {name: word(value) for name, value in config.plain().items()}


def differing(configs: Iterable[Values]) -> list[str]:
    """The knobs in which these differ, in the form's order, then whatever else there is."""
    rows = list(configs)
    names = [n for n in KNOBS if any(n in r for r in rows)] + sorted(
        {n for r in rows for n in r} - set(KNOBS)
    )
    return [n for n in names if len({repr(r.get(n)) for r in rows}) > 1]
