"""When a run that writes its own answers writes them, and which of them each optimizer step learns from: TRL's counting.

A generation is a batch of prompts with several answers to each. It is learnt from in micro-batches, `accumulation` of them
an optimizer step, all of them as often as there are iterations. What happens at a step follows from its number alone, so
that a run that is resumed does what it would have done. Several processes learn what one would with as many times the
micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tuner.config.config import Config
from tuner.config.knobs import Problem
from tuner.text.lookup import tr

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Schedule:
    """`rows` prompts in all, `answers` to each; `batch` answers in a micro-batch, `written` micro-batches a generation,
    `accumulation` of them an optimizer step, `iterations` times each; of all processes together. `seed` is that of the
    order of prompts, `drawn` that of the answers' chance."""

    rows: int
    answers: int
    batch: int
    written: int
    accumulation: int
    iterations: int = 1
    seed: int = 42
    drawn: int = 42
    shuffled: bool = True

    @classmethod
    def of(cls, config: Config, rows: int) -> Schedule:
        """The schedule of a run of so many prompts."""
        grouped = config.kind.baseline != "value"
        accumulation = config.gradient_accumulation_steps * config.processes
        kept = (config.steps_per_generation or 0) * config.processes or accumulation
        return cls(
            rows=rows,
            answers=config.num_generations if grouped else 1,
            batch=config.per_device_train_batch_size,
            written=kept if grouped else accumulation * config.ppo_buffer_size,
            accumulation=accumulation,
            iterations=config.num_iterations if grouped else config.ppo_epochs,
            seed=config.data_seed if config.data_seed is not None else config.seed,
            drawn=config.seed,
            shuffled=not config.disable_shuffling,
        )

    @property
    def prompts(self) -> int:
        """Prompts of a generation."""
        return self.batch * self.written // self.answers

    @property
    def on_policy(self) -> bool:
        """Whether answers are learnt from in one step, so that the model which wrote them is the one that learns."""
        return self.updates == 1

    @property
    def updates(self) -> int:
        """Optimizer steps on each generation."""
        return self.iterations * self.written // self.accumulation

    @property
    def generations(self) -> int:
        """Whole generations of an epoch; prompts that fill none wait for another order."""
        return self.rows // max(self.prompts, 1)  # a batch below one prompt's answers is told as a problem

    def chosen(self, generation: int) -> Ints:
        """The prompts of a generation, by their numbers."""
        epoch, place = divmod(generation, self.generations)
        order = np.arange(self.rows)
        if self.shuffled:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return order[place * self.prompts : (place + 1) * self.prompts]

    def mixed(self, generation: int, again: int = 0) -> Ints:
        """The order in which the answers of a generation are learnt from, the first time or `again`."""
        chance = np.random.default_rng([self.seed, generation, 1 + again])
        return chance.permutation(self.batch * self.written)

    def micro_batches(self, order: Ints, update: int) -> Ints:
        """The answers [accumulation, batch] of an optimizer step, the `update`th of its generation."""
        parts = order.reshape(self.written, self.batch)
        first = update * self.accumulation % self.written
        return parts[first : first + self.accumulation]

    def seed_of(self, generation: int, row: int, answer: int) -> int:
        """The seed of an answer's chance."""
        said = f"{self.drawn} {generation} {row} {answer}".encode()
        return int.from_bytes(blake2b(said, digest_size=6).digest())


def steps(config: Config, rows: int) -> int:
    """Steps of a run of so many prompts: optimizer steps, and for PPO rounds of them."""
    if config.max_steps > 0:
        return config.max_steps
    s = Schedule.of(config, rows)
    each = s.generations * (1 if config.kind.baseline == "value" else s.updates)
    return math.ceil(max(each, 1) * config.num_train_epochs)


def problems(config: Config, rows: int | None) -> Iterator[Problem]:
    """What does not come out even. `rows` is None where nobody knows how many there are."""
    if not config.kind.rewarded:
        return
    s = Schedule.of(config, rows or 0)
    size, knob = s.batch * s.written, "per_device_train_batch_size"
    if s.written % s.accumulation:
        said = tr(
            "--steps_per_generation {written} is no multiple of --gradient_accumulation_steps {accumulation}, so that a "
            "step would learn from half of a batch of answers; take a multiple of it.",
            written=config.steps_per_generation,
            accumulation=config.gradient_accumulation_steps,
        )
        yield Problem("steps_per_generation", said, {"steps_per_generation": None})
    elif size % s.answers:
        said = tr(
            "{size} answers are written at once (--{knob} {batch} times {written}), and that is no multiple of "
            "--num_generations {answers}; make it one, for example with --{knob} {next}.",
            size=size,
            knob=knob,
            batch=s.batch,
            written=s.written,
            answers=s.answers,
            next=_next(s),
        )
        yield Problem("num_generations", said, {knob: _next(s)})
    elif rows is not None and rows < s.prompts:
        more = tr(" or raise --num_generations") if s.answers > 1 else ""
        said = tr(
            "A batch of answers takes {prompts} prompts, and there are {rows}; lower --{knob}{more}.",
            prompts=s.prompts,
            rows=rows,
            knob=knob,
            more=more,
        )
        yield Problem(knob, said)


def _next(s: Schedule) -> int:
    """The next batch size with which all comes out even."""
    return next(n for n in range(s.batch, s.batch + s.answers + 1) if n * s.written % s.answers == 0)
