"""Answers of the model that learns to the prompts of its data, by the one way in which text is made, and what they are
worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tuner.config.config import Config
from tuner.data.tokens import Tokenizer
from tuner.engine import group
from tuner.engine.packed.units import Floats, Ints
from tuner.generate.answers import answers
from tuner.generate.decoder import Decoder
from tuner.generate.request import Answer, Sampling
from tuner.plan.memory import SIDE_BY_SIDE
from tuner.rewards.reward import Completion, Reward, Scored, score_all

Row = Mapping[str, Any]
"""An encoded row: `prompt_ids`, and under `asked` the messages before the answer, its label, tools and other columns."""


@dataclass(frozen=True)
class Rollouts:
    """Answers in the order in which they were asked for, and what each got."""

    completions: list[Completion]
    ids: list[Ints]
    scored: list[Scored]

    @property
    def rewards(self) -> Floats:
        """The weighted sums; no number where no reward had a word."""
        return np.array([math.nan if s.total is None else s.total for s in self.scored], np.float32)

    def part(self, name: str) -> Floats:
        """What one reward gave."""
        found = [s.parts[name] for s in self.scored]
        return np.array([math.nan if value is None else value for value in found], np.float32)

    @classmethod
    def together(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """One behind the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            [one for part in parts for one in part.completions],
            [one for part in parts for one in part.ids],
            [one for part in parts for one in part.scored],
        )


class Writer:
    """Writes answers to prompts with the model as it is. What it sets up for a model's adapter is kept from one batch to
    the next; a whole model's is not, for copies of its weights would be old."""

    def __init__(self, model: Any, words: Tokenizer, stops: Sequence[int], config: Config):
        self.model, self.words, self.stops, self.config = model, words, tuple(stops), config
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        self.keeps = all("lora_" in name for name in trained)
        self.decoder: Decoder | None = None

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int] | None,
        told: Callable[[int], None] = lambda done: None,
    ) -> list[Answer]:
        """An answer to each prompt, by chance with these seeds, or the likeliest one without. `told` hears how many are
        written."""
        done = 0

        def count(number: int, answer: Answer) -> None:
            nonlocal done
            done += 1
            told(done)

        wishes = [self._wish(None if seeds is None else seeds[i]) for i in range(len(prompts))]
        return answers(
            self.model,
            self.words.decode,
            prompts,
            wishes,
            count,
            self.words.pad_id or 0,
            rows=self._rows(len(prompts), max(map(len, prompts))),
            decoder=self._ready(),
        )

    def _wish(self, seed: int | None) -> Sampling:
        config = self.config
        ends: dict[str, Any] = {"max_tokens": config.max_new_tokens, "stop_ids": self.stops}
        if seed is None:
            return Sampling(**ends)
        return Sampling(
            **ends,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            repetition_penalty=config.repetition_penalty,
            seed=seed,
        )

    def _ready(self) -> Decoder:
        if self.decoder is None or not self.keeps:
            self.decoder = Decoder(self.model, self.words.pad_id or 0)
        self.decoder.changed()
        return self.decoder

    def _rows(self, wanted: int, longest: int) -> int:
        """How many are written side by side: on a GPU all whose keys and values take no more than a quarter of what is
        free."""
        device = torch.device(self.model.device)
        if device.type != "cuda":
            return min(wanted, SIDE_BY_SIDE)
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        columns = longest + self.config.max_new_tokens
        held = 0 if self.decoder is None else self.decoder.held
        return max(8, min(wanted, int((free / 4 + held) / (columns * _column(self.model)))))


def _column(model: Any) -> int:
    """Bytes of the keys and values of one token."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = next(model.parameters()).element_size()
    return int(2 * config.num_hidden_layers * heads * size * width)


def completions(rows: Sequence[Row], found: Sequence[Answer], words: Tokenizer) -> list[Completion]:
    """Answers as rewards see them."""
    return [_completion(row, answer, words) for row, answer in zip(rows, found, strict=True)]


def _completion(row: Row, answer: Answer, words: Tokenizer) -> Completion:
    asked = row["asked"]
    messages = tuple(asked["messages"])
    spoken = [m["content"] for m in messages if m["role"] == "user"]
    return Completion(
        prompt=str(spoken[-1] if spoken else messages[-1]["content"] if messages else ""),
        messages=messages,
        text=answer.text,
        label=asked["label"],
        tokens=len(answer.ids),
        finished=answer.finish == "stop",
        tools=tuple(asked.get("tools", ())),
        columns=asked["columns"],
        whole=words.decode([*row["prompt_ids"], *answer.ids]),
    )


def shared_rollouts(
    writer: Writer,
    rows: Sequence[Row],
    seeds: Sequence[int] | None,
    rewards: Sequence[Reward],
    told: Callable[[int], None] = lambda done: None,
    each: int = 1,
) -> Rollouts:
    """What `rollouts` gives, written and scored by all processes of the run, each its share; all get all of it. `told`
    hears of this process's share as of the whole. The `each` answers of a prompt stay together, for a reward may compare
    them."""
    prompts = group.own_part(len(rows) // each)
    own = slice(prompts.start * each, prompts.stop * each)
    asked = None if seeds is None else seeds[own]
    made = rollouts(writer, rows[own], asked, rewards, lambda done: told(min(done * group.size(), len(rows))))
    return Rollouts.together(group.gathered(made))


def rollouts(
    writer: Writer,
    rows: Sequence[Row],
    seeds: Sequence[int] | None,
    rewards: Sequence[Reward],
    told: Callable[[int], None] = lambda done: None,
) -> Rollouts:
    """An answer to each of these rows (a row stands as often as it is to be answered), and what it got."""
    if not rows:
        return Rollouts([], [], [])  # a process with nothing to write
    found = writer.answers([row["prompt_ids"] for row in rows], seeds, told)
    made = completions(rows, found, writer.words)
    ids = [np.array(answer.ids, np.int32) for answer in found]
    return Rollouts(made, ids, score_all(rewards, made))
