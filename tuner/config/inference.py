"""What kinds of runs that use a trained model have in common: which model, which adapters, how it is loaded and asked.

Their configs are read from the same words as training's, so that LLaMA-Factory's files for chat, api and export work.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Literal, TypeVar

from tuner.config.aliases import REFUSED, renamed
from tuner.config.config import KNOBS, Config, made_of
from tuner.config.kinds import DEFAULT, KINDS
from tuner.config.knobs import (
    ConfigError,
    EmptiableText,
    OptionalBool,
    OptionalText,
    Problem,
    Section,
    knobs_of,
    nearest,
)
from tuner.config.method_sections import Quantization
from tuner.config.reading import parse_words
from tuner.config.run_config import RunConfig
from tuner.config.run_sections import Generation, Machine
from tuner.config.sections import Data, Model, Training
from tuner.config.spelling import word
from tuner.config.training_arguments import TrainingArguments
from tuner.text.lookup import tr

C = TypeVar("C", bound="InferenceConfig")


def same(section: type[Section], name: str) -> Any:
    """The declaration of a knob that another section has, too."""
    return copy(section.model_fields[name])


class Loading(Section):
    """Of training's knobs those that say how a model is loaded and prompted."""

    title = "Loading"
    icon = ":material/memory:"

    infer_dtype: Literal["auto", "float16", "bfloat16", "float32"] = same(Machine, "infer_dtype")
    use_cpu: bool = same(TrainingArguments, "use_cpu")
    seed: int = same(Training, "seed")
    cutoff_len: int = same(Data, "cutoff_len")
    default_system: EmptiableText = same(Data, "default_system")
    enable_thinking: OptionalBool = same(Data, "enable_thinking")
    tool_format: OptionalText = same(Data, "tool_format")


class Answering(Section):
    """Of training's generation knobs those that one way of making text obeys: it follows no beams."""

    title = "Generation"
    icon = ":material/chat:"

    do_sample: bool = same(Generation, "do_sample")
    temperature: float = same(Generation, "temperature")
    top_p: float = same(Generation, "top_p")
    top_k: int = same(Generation, "top_k")
    max_new_tokens: int = same(Generation, "max_new_tokens")
    repetition_penalty: float = same(Generation, "repetition_penalty")
    skip_special_tokens: bool = same(Generation, "skip_special_tokens")


class InferenceConfig(RunConfig, Model, Loading, Quantization, Answering):
    """The config of a run that uses a model; each kind has a class of its own, with a section for what is its own."""

    def loading(self) -> Config:
        """The training config that loads and prompts this model the same way: what `models/` and `data/` are asked with."""
        shared = {name: getattr(self, name) for name in knobs_of(type(self)).keys() & KNOBS.keys()}
        told = {name: value for name, value in shared.items() if value is not None or KNOBS[name].optional}
        return Config(**told, stage=DEFAULT)


def read_words(kind: type[C], words: Sequence[str]) -> tuple[C, list[str]]:
    """The config behind a command line: [file] then `--flag value` or `key=value`, as `parse_words` reads them.

    The second are the knobs of training that were given and say nothing here. Raises ConfigError.
    """
    own = knobs_of(kind)
    values = renamed(parse_words(words, {**KNOBS, **own}, training=False))
    verb = KINDS[kind.of_kind].verb if kind.of_kind else ""
    elsewhere = {name: value for name, value in values.items() if name not in own and name not in KNOBS}
    values = {name: value for name, value in values.items() if name not in elsewhere}
    problems = [
        found for name, value in elsewhere.items() if (found := _problem(name, value, list(own), verb))
    ]
    if problems:
        raise ConfigError(problems)
    known = {n: v for n, v in values.items() if n in own and (v is not None or own[n].optional)}
    return made_of(kind, known), [name for name in values if name not in own]


def _problem(name: str, value: Any, known: Sequence[str], verb: str) -> Problem | None:
    """What stands against a name that no knob has; None where another tool's file spells out its default."""
    if name not in REFUSED:
        return _unknown(name, known, verb)
    if REFUSED[name].fits(value):
        return None
    return Problem(
        name,
        tr(
            "--{name} {value} is refused: {sentence}",
            name=name,
            value=word(value),
            sentence=tr(REFUSED[name].sentence),
        ),
    )


def _unknown(name: str, known: Sequence[str], verb: str) -> Problem:
    like = nearest(name, known)
    listed = (
        tr("`tuner {verb} --help` lists all.", verb=verb)
        if verb
        else tr("these are known: {known}.", known=", ".join(known))
    )
    return Problem(
        name,
        tr(
            "--{name} is not known; {tr}",
            name=name,
            tr=tr("did you mean --{like}?", like=like) if like else listed,
        ),
    )
