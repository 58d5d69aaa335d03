"""A reward model of the studio's own as a reward: an adapter on the model that learns, or a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data.encode import Encoder
from tuner.data.formats import Dropped
from tuner.data.template_choice import template_of
from tuner.data.templates import Template
from tuner.data.tokens import Tokenizer, load_tokenizer
from tuner.engine.setup import Start
from tuner.models import loading
from tuner.models.adapter_loading import adapter_folder, put_on
from tuner.models.loading import Source
from tuner.rewards import registry
from tuner.rewards.reward import Completion, Reward, Scores
from tuner.runs.checkpoints import output_of
from tuner.runs.run import Run

TOGETHER = 16
"""Answers that are scored at once."""


class RewardModel:
    """Scores answers by the number that a sequence classifier gives at their last token."""

    name = registry.MODEL

    def __init__(self, model: Any, config: Config, template: Template, words: Tokenizer, weight: float = 1.0):
        self.model, self.template, self.words, self.weight = (
            model.eval().requires_grad_(False),
            template,
            words,
            weight,
        )
        self.encoder = Encoder(config, template, words)
        self.encoder.rows = "labelled"  # single answers, rendered as the pairs are by which it was taught
        self.encoder.cutoff += (
            config.max_new_tokens
        )  # the cutoff is the prompt's, and the answer comes on top
        self.pad = int(model.config.pad_token_id or 0)

    def score(self, completions: Sequence[Completion]) -> Scores:
        """A number an answer; None for one that the template cannot write."""
        found: Scores = [None] * len(completions)
        encoded = [(i, ids) for i, one in enumerate(completions) if (ids := self._ids(one))]
        encoded.sort(key=lambda pair: len(pair[1]))
        for at in range(0, len(encoded), TOGETHER):
            part = encoded[at : at + TOGETHER]
            for (i, _), value in zip(part, self.of([ids for _, ids in part]), strict=True):
                found[i] = value
        return found

    @torch.no_grad()
    def of(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The scores of texts as ids."""
        device = self.model.device
        texts = [torch.tensor(list(ids), device=device) for ids in rows]
        ids = pad_sequence(texts, batch_first=True, padding_value=self.pad)
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        scores = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.squeeze(-1)
        return [float(value) for value in scores.float().tolist()]

    def _ids(self, one: Completion) -> list[int]:
        answer = {"role": "assistant", "content": one.text}
        row = {"messages": list(one.messages), "completion": answer, "label": True}
        if one.tools:
            row["tools"] = list(one.tools)
        draft = self.encoder.draft(row)
        if isinstance(draft, Dropped):
            return []
        texts = self.words.encode_batch(draft.texts, self.encoder.continues(draft.texts))
        made = self.encoder.fit(draft, texts)
        return [] if isinstance(made, Dropped) else [*made.row["prompt_ids"], *made.row["completion_ids"]]


def rewards_of(config: Config, start: Start, words: Tokenizer) -> tuple[Reward, ...]:
    """All that scores a run's answers. Raises ConfigError where one of them cannot be had."""
    named = registry.of(config)
    if not config.reward_model or config.reward_model_type == "api":
        return named
    return (*named, _loaded(config, start, words))


def _loaded(config: Config, start: Start, words: Tokenizer) -> RewardModel:
    name = str(config.reward_model)
    template = start.rows.template or template_of(config, words)
    if config.reward_model_type == "lora":
        source, adapters = start.source, [_adapter(config, name)]
    else:
        source = _source(config, name)
        adapters = [_adapter(config, adapter) for adapter in config.reward_model_adapters]
        words = load_tokenizer(source.folder)
        template = template_of(config, words)
    model: Any = loading.load(
        config,
        source,
        bits=config.reward_model_quantization_bit,
        whole=False,
        kind=AutoModelForSequenceClassification,
        num_labels=1,
    )
    for folder in adapters:
        model = put_on(model, folder)
        model = model.merge_and_unload() if folder is not adapters[-1] else model
    model.config.pad_token_id = words.pad_id
    return RewardModel(
        model.to(loading.device(config)), config, template, words, registry.model_weight(config)
    )


def _output(name: str) -> Path | None:
    """What a run of the studio left; None where there is no run of that name."""
    run = Run(name) if name and "/" not in name else None
    return output_of(run, run.config()) if run is not None and run.exists else None


def _adapter(config: Config, name: str) -> Path:
    folder = paths.home() / name
    if not folder.is_dir() and (left := _output(name)):
        name = str(left)
    try:
        return adapter_folder(config.with_values(adapter_folder=None), name)
    except ConfigError as error:
        said = [p.sentence.replace("--adapter_name_or_path", "--reward_model") for p in error.problems]
        raise ConfigError([Problem("reward_model", sentence) for sentence in said]) from error


def _source(config: Config, name: str) -> Source:
    folder = paths.home() / name
    if not folder.is_dir() and (left := _output(name)):
        name = str(left)
    return loading.find(config, name)
