"""A base with its tokenizer, template and generator: what requests are answered with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification

from tuner.config.serving import ServeConfig
from tuner.data.encode import Encoder
from tuner.data.pictures.opening import PictureError
from tuner.data.pictures.places import Keep
from tuner.data.template_choice import template_of, unknown
from tuner.data.templates import RefusedError, stop_ids
from tuner.data.tokens import Tokenizer, load_tokenizer
from tuner.generate.adapters import Adapters
from tuner.generate.decoder import Decoder
from tuner.generate.request import Sampling
from tuner.generate.scheduler import Scheduler
from tuner.generate.service import Service
from tuner.models import loading
from tuner.models.vision import sight_of
from tuner.serve.errors import ApiError
from tuner.serve.models import Choice, Models
from tuner.serve.protocol import Asked
from tuner.text.lookup import mark, tr

COLD = 1e-4
"""A temperature at which only the likeliest token is left."""


@dataclass(frozen=True)
class Voice:
    """How a model is asked, and the ids at which its answers end."""

    encoder: Encoder
    stops: tuple[int, ...]


@dataclass(frozen=True)
class Loaded:
    """What one served run holds. `scores` says that it ends in one number instead of the next token's logits, `keep` where
    pictures of requests go."""

    config: ServeConfig
    tokenizer: Tokenizer
    models: Models
    adapters: Adapters
    service: Service
    scores: bool
    keep: Keep | None = None
    voices: dict[tuple[Path | None, str | None], Voice] = field(default_factory=dict)

    @property
    def scheduler(self) -> Scheduler:
        return self.service.scheduler

    @property
    def sees(self) -> bool:
        """Whether the model takes pictures."""
        return self.scheduler.decoder.sight is not None

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self.scheduler.decoder.longest

    def voice(self, choice: Choice) -> Voice:
        """The template of a model: the one that the request or the run names, else the one that an adapter brings, else the
        base's. Raises ConfigError for a name that is not known."""
        named = choice.template or self.config.template
        own = choice.folder if named is None else None
        if (own, named) not in self.voices:
            tokenizer = tokenizer_in(own) or self.tokenizer
            config = self.config.loading().model_copy(update={"template": named})
            template = template_of(config, tokenizer)
            encoder = Encoder(config, template, self.tokenizer)
            if encoder.pictures:  # what a caller sends is no path of this machine
                encoder.pictures = replace(encoder.pictures, folder=None, keep=self.keep)
            self.voices[own, named] = Voice(encoder, tuple(stop_ids(template, self.tokenizer)))
        return self.voices[own, named]

    def must(self, score: bool) -> None:
        """Raises ApiError where the model is not of the kind that is asked for."""
        if score != self.scores:
            way = "/v1/score/evaluation" if self.scores else "/v1/chat/completions"
            writes = mark("This model writes texts and scores none; ask POST {way}.")
            scores = mark("This model scores texts and writes none; ask POST {way}.")
            said = tr(scores if self.scores else writes, way=way)
            raise ApiError(400, said, "model", "unsupported_model")

    def seed(self, asked: Asked, number: int) -> int | None:
        """The seed of a request's n-th answer: its own, else the run's; None draws one."""
        seed = self.config.seed if asked.seed is None else asked.seed
        return None if seed is None else seed + number

    def sampling(
        self, asked: Asked, choice: Choice, prompt: Sequence[int], tokens: int | None, **more: Any
    ) -> Sampling:
        """How a request's answer is made: its own words, and the run's settings where it says nothing.

        `tokens` is the longest answer that it asks for. Raises ApiError for a prompt that fills the context.
        """
        room = self.longest - len(prompt)
        if room < 1:
            sentence = tr(
                "The prompt has {tokens} tokens and the model reads {longest} with its answer.",
                tokens=len(prompt),
                longest=self.longest,
            )
            raise ApiError(400, sentence, "messages", "context_length_exceeded")
        config = self.config
        for name, ids in (("stop_token_ids", asked.stop_token_ids), ("logit_bias", asked.logit_bias)):
            if any(not 0 <= i < self.scheduler.decoder.vocabulary for i in ids):
                raise ApiError(400, tr("{name} has ids outside the vocabulary.", name=name), name)
        temperature = config.temperature if asked.temperature is None else asked.temperature
        samples = config.do_sample if asked.temperature is None else True
        samples = samples if asked.do_sample is None else asked.do_sample
        top_k = config.top_k if asked.top_k is None else asked.top_k
        penalty = asked.repetition_penalty
        return Sampling(
            max_tokens=min(room, tokens if tokens is not None else config.max_new_tokens or room),
            min_tokens=asked.min_tokens,
            temperature=temperature if samples and temperature > COLD else 0.0,
            top_p=max(1e-9, config.top_p if asked.top_p is None else asked.top_p),
            top_k=max(0, top_k),
            repetition_penalty=config.repetition_penalty if penalty is None else penalty,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            bias=tuple(asked.logit_bias.items()),
            stop=asked.stops,
            stop_ids=tuple(sorted({*self.voice(choice).stops, *asked.stop_token_ids})),
            skip_special=config.skip_special_tokens,
            **more,
        )

    def prompt(
        self,
        choice: Choice,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[Any] = (),
        begun: str = "",
        pictures: Sequence[str] = (),
    ) -> tuple[list[int], tuple[str, ...]]:
        """The ids that ask for an answer to a chat, which begins as `begun`, and the files of its `pictures`, which are data:
        URLs. Raises ApiError where the template is not known or cannot write it, or for what is no picture."""
        if choice.template and (found := unknown(choice.template)):
            raise ApiError(400, found.sentence.replace("--template", "template"), "template")
        try:
            return self.voice(choice).encoder.prompt(messages, pictures, tools, begun)
        except PictureError as error:
            raise ApiError(
                400, tr("The picture cannot be used: {error}", error=error), "messages", "invalid_image"
            ) from error
        except RefusedError as error:
            raise ApiError(
                400, tr("The model's template cannot write this chat: {error}", error=error), "messages"
            ) from error


def load(config: ServeConfig, keep: Keep | None = None) -> Loaded:
    """Load a config's base; pictures that callers send go to `keep`. Raises ConfigError."""
    asked = config.loading()
    source = loading.find(asked)
    models = Models(config, source)
    scores = _scores(models)
    how: dict[str, Any] = {"kind": AutoModelForSequenceClassification, "num_labels": 1} if scores else {}
    model = loading.load(asked, source, bits=config.quantization_bit, whole=False, **how)
    model = model.to(loading.device(asked)) if not config.quantization_bit else model
    tokenizer = load_tokenizer(source.folder)
    model.eval().config.pad_token_id = tokenizer.pad_id
    adapters = Adapters(model)
    decoder = Decoder(model, tokenizer.pad_id or 0, sight=sight_of(model, source.folder, asked))
    scheduler = Scheduler(decoder, tokenizer.decode, adapters, most=config.api_rows)
    made = Loaded(config, tokenizer, models, adapters, Service(scheduler), scores, keep)
    made.voice(models.default)  # a template that is not known is told now
    return made


def _scores(models: Models) -> bool:
    """Whether the model that is asked by default is one that scores, as its files say."""
    folder = models.default.folder
    if folder is not None:
        return bool(_read(folder / "adapter_config.json").get("task_type") == "SEQ_CLS")
    made = _read(models.source.folder / "config.json").get("architectures") or [""]
    return str(made[0]).endswith("ForSequenceClassification")


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def tokenizer_in(folder: Path | None) -> Tokenizer | None:
    """The tokenizer that was saved beside an adapter, with the template that it was taught in."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    found = load_tokenizer(folder)
    return found if found.chat_template else None
