"""What is asked of a model, and what it answers piece by piece."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Finish = Literal["", "stop", "length", "cancelled", "error"]


class Grammar(Protocol):
    """What an answer must look like, followed token by token."""

    def mask(self, scores: Any) -> Any:
        """Scores [vocabulary] with minus infinity where the next token is not allowed."""

    def take(self, token: int) -> None:
        """A token was chosen."""

    @property
    def ended(self) -> bool:
        """Whether the answer is complete, so that nothing may follow."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when an answer ends. The words and meanings are transformers' and OpenAI's.

    temperature 0 takes the likeliest token. top_k 0 and top_p 1 leave nothing out. `logprobs` is how many of the likeliest
    tokens are told beside the chosen one; None tells none. A request without a seed draws one.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    bias: tuple[tuple[int, float], ...] = ()
    """Tokens and what is added to their logits."""
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    skip_special: bool = True


@dataclass(frozen=True)
class Token:
    """One token with its natural logarithms of probability, before temperature and penalties."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What is new in an answer: text, the tokens that made it, and why it ended if it did."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: Finish = ""
    error: BaseException | None = None


def _nobody(piece: Piece) -> None:
    """Nobody listens."""


@dataclass(eq=False)
class Request:
    """A prompt and what has become of it. `adapter` is a name that was added to the model; empty is the model as it is.

    `pictures` are the files of what stands as pictures in the prompt, in their order.

    `told` hears each piece, in the thread that generates; it must be quick and raise nothing. It `reads_along`, or hears
    all at the end, which may not have stop strings and is much less work.
    """

    prompt: Sequence[int]
    sampling: Sampling = Sampling()
    adapter: str = ""
    told: Callable[[Piece], None] = _nobody
    grammar: Grammar | None = None
    reads_along: bool = True
    pictures: tuple[str, ...] = ()
    ids: list[int] = field(default_factory=list)
    prompt_tokens: tuple[Token, ...] = ()
    last: Token | None = None
    finish: Finish = ""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.sampling.seed)

    def cancel(self) -> None:
        """Let go of it: the next step leaves it out."""
        self.cancelled.set()


@dataclass(frozen=True)
class Answer:
    """A whole answer. `tokens` are those that `text` shows; `ids` all that were made, the one that ended it too."""

    text: str
    tokens: tuple[Token, ...]
    ids: tuple[int, ...]
    finish: Finish
