"""What a reward is: it looks at answers and says how good each is. Nothing here needs torch, so that a page can ask too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr


@dataclass(frozen=True)
class Completion:
    """One answer as rewards see it.

    `prompt` is the last user turn and `messages` the whole conversation before the answer. `text` is the answer without
    special tokens, `tokens` its length. `label` is the row's expected answer, if it has one, `tools` its tools and `columns`
    its other columns. `finished` is whether it ended by itself; else it was cut at the limit. `whole` is prompt and answer
    as the model reads them, marks and all, where that is known.
    """

    prompt: str
    messages: tuple[Mapping[str, Any], ...]
    text: str
    label: str | None = None
    tokens: int = 0
    finished: bool = True
    tools: tuple[Any, ...] = ()
    columns: Mapping[str, object] = field(default_factory=dict)
    whole: str = ""


Scores = list[float | None]
"""A number an answer; None where a reward says nothing of it."""
Rule = Callable[[Completion], float | None]


class Reward(Protocol):
    """What scores answers. Its name is its own in a run, and its weight is what its scores count by."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def score(self, completions: Sequence[Completion]) -> Scores:
        """A number an answer, in their order. Raises ConfigError where it cannot be had."""
        ...


@dataclass(frozen=True)
class Scorer:
    """A reward by a function of many answers."""

    name: str
    weight: float
    scores: Callable[[Sequence[Completion]], Sequence[float | None]]

    def score(self, completions: Sequence[Completion]) -> Scores:
        """Its scores, of which there has to be one an answer."""
        found = list(self.scores(completions))
        if len(found) != len(completions):
            raise wrong(
                tr(
                    "{name} gave {number} scores for {number_2} answers; it has to give one each.",
                    name=self.name,
                    number=len(found),
                    number_2=len(completions),
                )
            )
        return [self._number(value) for value in found]

    def _number(self, value: float | None) -> float | None:
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise wrong(
                tr(
                    "{name} gave {value!r:.80} for a score; it has to be a number, or None.",
                    name=self.name,
                    value=value,
                )
            ) from None
        if not math.isfinite(number):
            raise wrong(
                tr(
                    "{name} gave {number} for a score, which nothing can be learnt from.",
                    name=self.name,
                    number=number,
                )
            )
        return number


@dataclass(frozen=True)
class Scored:
    """What an answer got: from each reward, by its name, and in all, weighted. No reward's word is None in all."""

    parts: Mapping[str, float | None]
    total: float | None


def each(rule: Rule) -> Callable[[Sequence[Completion]], Scores]:
    """A rule for one answer as a function of many."""
    return lambda completions: [rule(one) for one in completions]


def score_all(rewards: Sequence[Reward], completions: Sequence[Completion]) -> list[Scored]:
    """What each answer gets. A reward that says nothing of an answer adds nothing to it, as in TRL."""
    columns = {reward.name: reward.score(completions) for reward in rewards}
    weights = {reward.name: reward.weight for reward in rewards}
    found = []
    for row in range(len(completions)):
        parts = {name: scores[row] for name, scores in columns.items()}
        said = [weights[name] * value for name, value in parts.items() if value is not None]
        found.append(Scored(parts, math.fsum(said) if said else None))
    return found


def wrong(sentence: str, knob: str = "reward_funcs") -> ConfigError:
    """What a reward raises that cannot score."""
    return ConfigError([Problem(knob, sentence)])


def answer_of(text: str) -> str:
    """What an answer says behind its thoughts (<think>…</think>); nothing where they never end."""
    before, mark, after = text.rpartition("</think>")
    if mark:
        return after.strip()
    return "" if before == "" and "<think>" in text else text.strip()
