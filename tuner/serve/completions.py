"""POST /v1/completions: text that goes on from a prompt, with the prompt's own log probabilities where asked for."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from tuner.generate.request import Piece, Request, Sampling, Token
from tuner.serve.answering import Prompted, answering, now
from tuner.serve.errors import ApiError
from tuner.serve.loaded import Loaded
from tuner.serve.models import Choice
from tuner.serve.protocol import TextAsked, refuse_unsupported
from tuner.serve.token_text import TokenTexts
from tuner.serve.usage import usage

USUAL_TOKENS = 16  # OpenAI's own


@dataclass(frozen=True)
class Text:
    """A request, ready to be asked: `n` answers for each prompt, those of one prompt beside each other."""

    asked: TextAsked
    choice: Choice
    wanted: list[Prompted]
    texts: TokenTexts
    id: str
    created: int

    def head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.choice.id,
            "system_fingerprint": self.choice.fingerprint,
        }

    def echo(self, number: int) -> str:
        """The prompt's text, where it is to stand before the answer."""
        return self.texts.tokenizer.decode(self.wanted[number].prompt) if self.asked.echo else ""


async def prepare(loaded: Loaded, asked: TextAsked, texts: TokenTexts) -> Text:
    """Find the model, turn prompts into ids. Raises ApiError."""
    return await run_in_threadpool(_prepare, loaded, asked, texts)


def _prepare(loaded: Loaded, asked: TextAsked, texts: TokenTexts) -> Text:
    refuse_unsupported(asked)
    loaded.must(score=False)
    choice = loaded.models.named(asked.model)
    wanted = []
    for prompt in _prompts(loaded, asked):
        sampling = _sampling(loaded, choice, asked, prompt)
        wanted += [Prompted(prompt, replace(sampling, seed=loaded.seed(asked, i))) for i in range(asked.n)]
    return Text(asked, choice, wanted, texts, f"cmpl-{uuid.uuid4().hex}", now())


def _sampling(loaded: Loaded, choice: Choice, asked: TextAsked, prompt: Sequence[int]) -> Sampling:
    tokens = USUAL_TOKENS if asked.max_tokens is None else asked.max_tokens
    if tokens == 0 and not asked.echo:
        raise ApiError(400, "max_tokens 0 answers nothing; with echo it measures the prompt.", "max_tokens")
    told = asked.echo and asked.logprobs is not None
    return loaded.sampling(asked, choice, prompt, tokens, logprobs=asked.logprobs, prompt_logprobs=told)


def _prompts(loaded: Loaded, asked: TextAsked) -> list[list[int]]:
    """Ids of each prompt: a text, a list of texts, ids, or a list of ids."""
    given: Any = asked.prompt
    listed = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    found = [loaded.tokenizer.encode(one) if isinstance(one, str) else list(one) for one in listed]
    size = loaded.scheduler.decoder.vocabulary
    for ids in found:
        if not ids:
            raise ApiError(400, "A prompt is empty.", "prompt")
        if min(ids) < 0 or max(ids) >= size:
            raise ApiError(400, f"A prompt has ids outside the vocabulary, 0 to {size - 1}.", "prompt")
    return found


async def whole(loaded: Loaded, text: Text, caller: HttpRequest) -> dict[str, Any]:
    """The whole answer as one object."""
    async with answering(loaded, text.choice, text.wanted) as answers:
        found = await answers.whole(caller)
        return {
            **text.head(),
            "choices": [_choice(text, i, answers.requests[i], pieces) for i, pieces in enumerate(found)],
            "usage": _usage(text, answers.requests),
        }


def _choice(text: Text, number: int, request: Request, pieces: Sequence[Piece]) -> dict[str, Any]:
    echo = text.echo(number)
    answered = "".join(piece.text for piece in pieces)
    return {
        "index": number,
        "text": echo + answered,
        "logprobs": _logprobs(text, request, pieces, echo),
        "finish_reason": pieces[-1].finish,
    }


def _logprobs(text: Text, request: Request, pieces: Sequence[Piece], echo: str) -> dict[str, Any] | None:
    """The tokens of what is shown. One that ends an answer is told too where the prompt is measured: whoever measures
    counts on one token behind it."""
    if text.asked.logprobs is None:
        return None
    made = [token for piece in pieces for token in piece.tokens]
    if not text.asked.echo:
        return text.texts.listed(made, 0)
    if request.last is not None and not made:
        made = [request.last]
    return text.texts.listed([*request.prompt_tokens, *made], 0)


def _usage(text: Text, requests: Sequence[Request]) -> dict[str, int]:
    return usage(requests, [len(one.prompt) for one in text.wanted[:: text.asked.n]])


async def chunks(loaded: Loaded, text: Text) -> AsyncIterator[dict[str, Any]]:
    """The answer's chunks: the prompt first where it is echoed, then what is new."""
    head = text.head() | ({"usage": None} if text.asked.tells_usage else {})
    async with answering(loaded, text.choice, text.wanted) as answers:
        told, at = [not text.asked.echo] * len(text.wanted), [0] * len(text.wanted)
        async for number, piece in answers.pieces():
            echo = "" if told[number] else text.echo(number)
            before = [] if told[number] else list(answers.requests[number].prompt_tokens)
            told[number] = True
            tokens = [*before, *piece.tokens]
            yield {
                **head,
                "choices": [_part(text, number, echo + piece.text, tokens, piece.finish, at[number])],
            }
            at[number] += text.texts.length(tokens)
        if text.asked.tells_usage:
            yield {**head, "choices": [], "usage": _usage(text, answers.requests)}


def _part(text: Text, number: int, said: str, tokens: list[Token], finish: str, start: int) -> dict[str, Any]:
    told = text.texts.listed(tokens, start) if text.asked.logprobs is not None else None
    return {"index": number, "text": said, "logprobs": told, "finish_reason": finish or None}
