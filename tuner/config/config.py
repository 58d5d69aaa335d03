"""A config: a validated set of knob values for one run, and its ways in and out (YAML, flags, mappings)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tuner.config.aliases import MEANT, NO_STAGE, REFUSED, disagreeing, renamed
from tuner.config.kinds import DEFAULT, KINDS, Kind
from tuner.config.knobs import ConfigError, Knob, Problem, Section, knobs_of, nearest, sections_of
from tuner.config.method_sections import Answers, Decisions, Freeze, Lora, Oft, Preference, Quantization
from tuner.config.optimizer_sections import Optimizers
from tuner.config.picture_sections import Pictures
from tuner.config.reward_sections import Online, Ppo, Rewards
from tuner.config.rules import broken_rules
from tuner.config.run_config import RunConfig
from tuner.config.run_sections import Evaluation, Export, Generation, Machine, Profiling, Vocabulary
from tuner.config.sections import Data, Model, Output, Samples, Task, Training
from tuner.config.spelling import asks_for_fsdp, word
from tuner.config.training_arguments import TrainingArguments
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
