"""A base with its tokenizer, template and generator: what requests are answered with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuner.config.serving import ServeConfig
from tuner.data.template_choice import template_of
from tuner.data.templates import RefusedError, Template, stop_ids
from tuner.data.tokens import Tokenizer, load_tokenizer
from tuner.generate.adapters import Adapters
from tuner.generate.decoder import Decoder
from tuner.generate.request import Sampling
from tuner.generate.scheduler import Scheduler
from tuner.generate.service import Service
from tuner.models import loading
from tuner.serve.errors import ApiError
from tuner.serve.models import Models
from tuner.serve.protocol import Asked


@dataclass(frozen=True)
class Loaded:
    """What one served run holds."""

    config: ServeConfig
    tokenizer: Tokenizer
    template: Template
    stops: tuple[int, ...]
    models: Models
    adapters: Adapters
    service: Service

    @property
    def scheduler(self) -> Scheduler:
        return self.service.scheduler

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self.scheduler.decoder.longest

    def sampling(self, asked: Asked, prompt: Sequence[int], tokens: int | None, **more: Any) -> Sampling:
        """How a request's answer is made: its own words, and the run's settings where it says nothing.

        `tokens` is the longest answer that it asks for. Raises ApiError for a prompt that fills the context.
        """
        room = self.longest - len(prompt)
        if room < 1:
            sentence = (
                f"The prompt has {len(prompt)} tokens and the model reads {self.longest} with its answer."
            )
            raise ApiError(400, sentence, "messages", "context_length_exceeded")
        config = self.config
        temperature = config.temperature if asked.temperature is None else asked.temperature
        samples = config.do_sample if asked.temperature is None else True
        samples = samples if asked.do_sample is None else asked.do_sample
        top_k = config.top_k if asked.top_k is None else asked.top_k
        penalty = asked.repetition_penalty
        return Sampling(
            max_tokens=min(room, tokens if tokens is not None else config.max_new_tokens or room),
            min_tokens=asked.min_tokens,
            temperature=temperature if samples else 0.0,
            top_p=max(1e-9, config.top_p if asked.top_p is None else asked.top_p),
            top_k=max(0, top_k),
            repetition_penalty=config.repetition_penalty if penalty is None else penalty,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            stop=asked.stops,
            stop_ids=tuple(sorted({*self.stops, *asked.stop_token_ids})),
            skip_special=config.skip_special_tokens,
            **more,
        )

    def prompt(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any] = ()) -> list[int]:
        """The ids that ask for an answer to a chat. Raises ApiError where the template cannot write it."""
        try:
            return self.tokenizer.encode(self.template.prompt(messages, tools))
        except RefusedError as error:
            raise ApiError(
                400, f"The model's template cannot write this chat: {error}", "messages"
            ) from error


def load(config: ServeConfig) -> Loaded:
    """Load a config's base. Raises ConfigError."""
    asked = config.loading()
    source = loading.find(asked)
    model = loading.load(asked, source, bits=config.quantization_bit, whole=False)
    model = model.to(loading.device(asked)) if not config.quantization_bit else model
    model.eval()
    tokenizer = load_tokenizer(source.folder)
    template = template_of(asked, tokenizer)
    adapters = Adapters(model)
    decoder = Decoder(model, tokenizer.pad_id or 0)
    scheduler = Scheduler(decoder, tokenizer.decode, adapters, most=config.api_rows)
    stops = tuple(stop_ids(template, tokenizer))
    return Loaded(config, tokenizer, template, stops, Models(config, source), adapters, Service(scheduler))
