"""Whole answers to many prompts, from whoever holds a model: samples, predictions, evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from tuner.generate.decoder import Decoder
from tuner.generate.request import Answer, Piece, Request, Sampling
from tuner.generate.scheduler import Scheduler
from tuner.generate.text import Decodes
from tuner.models.vision import Sight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Collected:
    """A request's pieces, put together."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling, adapter: str = ""):
        self.pieces: list[Piece] = []
        self.request = Request(prompt, sampling, adapter, self.pieces.append)

    @property
    def answer(self) -> Answer:
        """What it has come to. Raises the error that ended it."""
        if self.pieces and self.pieces[-1].error:
            raise self.pieces[-1].error
        text = "".join(piece.text for piece in self.pieces)
        tokens = tuple(token for piece in self.pieces for token in piece.tokens)
        return Answer(text, tokens, tuple(self.request.ids), self.request.finish)


def answers(
    model: PreTrainedModel,
    decode: Decodes,
    prompts: Sequence[Sequence[int]],
    wishes: Sampling | Sequence[Sampling],
    told: Callable[[int, Answer], None] = lambda number, answer: None,
    pad: int = 0,
    rows: int = 32,
    decoder: Decoder | None = None,
    pictures: Sequence[Sequence[str]] = (),
    sight: Sight | None = None,
) -> list[Answer]:
    """An answer to each prompt, from the model as it stands. `told` hears each with its number when it ends.

    `rows` are answered side by side; a row that ends makes room for the next. A `decoder` that is kept from one call to the
    next keeps what it has set up. `pictures` are the files of each prompt's, which a model sees by its `sight`.
    """
    each = [wishes] * len(prompts) if isinstance(wishes, Sampling) else wishes
    asked = [Collected(prompt, wish) for prompt, wish in zip(prompts, each, strict=True)]
    for one, files in zip(asked, pictures, strict=False):
        one.request.pictures = tuple(files)
    ended: list[int] = []
    for number, one in enumerate(asked):
        one.request.told = partial(_heard, ended, number, one)
        one.request.reads_along = bool(one.request.sampling.stop)
    scheduler = Scheduler(decoder or Decoder(model, pad, sight=sight), decode, most=rows)
    for one in sorted(asked, key=lambda one: len(one.request.prompt)):
        scheduler.submit(one.request)
    with undisturbed(model):
        while scheduler.busy:
            scheduler.step()
            for number in ended:
                told(number, asked[number].answer)
            ended.clear()
    return [one.answer for one in asked]


def _heard(ended: list[int], number: int, one: Collected, piece: Piece) -> None:
    one.pieces.append(piece)
    if piece.finish:
        ended.append(number)


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """No gradients, no dropout, and training's random numbers left as they were: a look must not change the run."""
    training, state = model.training, torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        torch.set_rng_state(state)
