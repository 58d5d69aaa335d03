"""POST /v1/systemone: typed questions about a state, a probability for every allowed answer, in transformers' shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from tuner.data.decision_rows import Prompts, label_ids, unread
from tuner.data.decisions import SETTINGS, Question, QuestionError
from tuner.data.template_choice import template_of
from tuner.data.templates import RefusedError
from tuner.models.questions import parsed_by_transformers
from tuner.serve.errors import ApiError
from tuner.serve.loaded import Loaded, tokenizer_in
from tuner.serve.models import Choice
from tuner.serve.protocol import DecisionAsked
from tuner.serve.scores import between
from tuner.text.lookup import tr

SIDE_BY_SIDE = 16
"""Prompts that are read at once."""
OWN_PROMPT = "decision_template.jinja"


@dataclass
class Decider:
    """Answers questions with a loaded model and its adapters; what it knows of each stays."""

    loaded: Loaded
    prompts: dict[Path | None, Prompts] = field(default_factory=dict)

    async def whole(self, asked: DecisionAsked) -> dict[str, Any]:
        """Every question's answer. Raises ApiError."""
        self.loaded.must(score=False)
        if asked.assets:
            raise ApiError(
                422,
                tr("Pictures are not supported here; leave assets out."),
                "assets",
                "unsupported_parameter",
            )
        try:
            questions = parsed_by_transformers(asked.questions)
        except QuestionError as error:
            raise ApiError(422, f"{error}.", "questions", "value_error") from error
        choice = self.loaded.models.named(asked.model)
        heat = self._temperature(choice)
        rows = [self._ids(choice, asked.state, question) for question in questions]
        logits = await between(self.loaded, lambda: self._read(choice, rows))
        answers = {
            question.name: question.answer(shares(question, own, heat))
            for question, own in zip(questions, logits, strict=True)
        }
        usage = {"input_tokens": sum(map(len, rows)), "output_tokens": 0}
        return {"model": choice.id, "answers": answers, "usage": usage}

    def _ids(self, choice: Choice, state: Any, question: Question) -> list[int]:
        if bad := unread(question, label_ids(self.loaded.tokenizer)):
            sentence = tr(
                "Question {name!r}: {labels} is not one token of this model.",
                name=question.name,
                labels=", ".join(bad),
            )
            raise ApiError(400, sentence, "questions")
        prompts = self._prompts(choice)
        try:
            ids = prompts.ids(prompts.text(state, question))
        except RefusedError as error:
            raise ApiError(
                400, tr("The model's template cannot write this question: {error}", error=error), "questions"
            ) from error
        if len(ids) > self.loaded.longest:
            sentence = tr(
                "Question {name!r} has {tokens} tokens with its state, and the model reads {longest}.",
                name=question.name,
                tokens=len(ids),
                longest=self.loaded.longest,
            )
            raise ApiError(400, sentence, "state", "context_length_exceeded")
        return ids

    def _prompts(self, choice: Choice) -> Prompts:
        """How a model is asked: without thoughts and without a system prompt of the run's, as it was taught."""
        if choice.folder not in self.prompts:
            loaded = self.loaded
            tokenizer = tokenizer_in(choice.folder) or loaded.tokenizer
            named = loaded.config.template if choice.folder is None or tokenizer is loaded.tokenizer else None
            update = {"template": named, "enable_thinking": False, "default_system": None}
            config = loaded.config.loading().model_copy(update=update)
            self.prompts[choice.folder] = Prompts(config, template_of(config, tokenizer), tokenizer)
        return self.prompts[choice.folder]

    def _temperature(self, choice: Choice) -> Mapping[str, float]:
        """The temperatures of what answers. Raises ApiError where it is asked in a way of its own."""
        folder = choice.folder or self.loaded.models.source.folder
        if (folder / OWN_PROMPT).is_file():
            raise ApiError(
                400,
                tr(
                    "This model has a prompt of its own ({file}), which is not supported here.",
                    file=OWN_PROMPT,
                ),
                "model",
            )
        file = folder / SETTINGS
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        heat: Mapping[str, float] = found.get("temperature") or {}
        return heat

    def _read(self, choice: Choice, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """The logits of all labels behind each prompt."""
        loaded = self.loaded
        if choice.folder is not None:
            loaded.adapters.know(choice.adapter, choice.folder)
        loaded.adapters.use(choice.adapter)
        model = loaded.adapters.base
        wanted = torch.tensor([max(i, 0) for i in label_ids(loaded.tokenizer)], device=model.device)
        found: list[list[float]] = []
        for at in range(0, len(rows), SIDE_BY_SIDE):
            texts = [torch.tensor(list(row)) for row in rows[at : at + SIDE_BY_SIDE]]
            ids = pad_sequence(
                texts, batch_first=True, padding_value=loaded.tokenizer.pad_id or 0, padding_side="left"
            )
            mask = pad_sequence([torch.ones_like(t) for t in texts], batch_first=True, padding_side="left")
            given = {
                "input_ids": ids,
                "attention_mask": mask,
                "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            }
            on_it = {name: value.to(model.device) for name, value in given.items()}
            logits = model(**on_it, use_cache=False, logits_to_keep=1).logits[:, -1]
            found += logits.index_select(1, wanted).float().tolist()
        return found


def shares(question: Question, logits: Sequence[float], heat: Mapping[str, float]) -> list[float]:
    """The probability of each option at its type's temperature; `logits` are those of all labels."""
    own = torch.tensor(logits[question.first : question.first + len(question.options)])
    found: list[float] = (own / heat.get(question.type, 1.0)).softmax(-1).tolist()
    return found
