"""Requests given to the generator and their pieces taken back in a coroutine; whoever goes away frees their rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from starlette.requests import Request as HttpRequest

from tuner.generate.request import Grammar, Piece, Request, Sampling
from tuner.serve import errors
from tuner.serve.errors import ApiError
from tuner.serve.loaded import Loaded
from tuner.serve.models import Choice
from tuner.text.lookup import tr

LOOK = 0.2
"""Seconds between two looks whether a caller that waits for a whole answer is still there."""


@dataclass(frozen=True)
class Prompted:
    """One answer to be made."""

    prompt: Sequence[int]
    sampling: Sampling
    grammar: Grammar | None = None
    pictures: tuple[str, ...] = ()


@dataclass
class Answers:
    """Several answers on their way: `pieces` as they come, each with its answer's number."""

    requests: list[Request]
    queue: asyncio.Queue[tuple[int, Piece]] = field(default_factory=asyncio.Queue)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Every piece until all have ended. Raises ApiError for one that failed."""
        left = len(self.requests)
        while left:
            number, piece = await self.queue.get()
            if piece.error is not None:
                raise errors.of(piece.error) from piece.error
            if piece.finish == "cancelled":
                raise ApiError(503, tr("The server is ending; ask again when it is back."), code="ending")
            left -= bool(piece.finish)
            yield number, piece

    async def whole(self, caller: HttpRequest) -> list[list[Piece]]:
        """All pieces of each answer, once all have ended. Raises CallerGoneError when nobody waits for them any more."""
        found: list[list[Piece]] = [[] for _ in self.requests]
        watch = asyncio.create_task(_gone(caller))
        collect = asyncio.create_task(self._collect(found))
        try:
            await asyncio.wait({watch, collect}, return_when=asyncio.FIRST_COMPLETED)
            if not collect.done():
                raise CallerGoneError
            collect.result()
            return found
        finally:
            watch.cancel()
            collect.cancel()

    async def _collect(self, found: list[list[Piece]]) -> None:
        async for number, piece in self.pieces():
            found[number].append(piece)

    def cancel(self) -> None:
        """Let go of those that have not ended."""
        for request in self.requests:
            if not request.finish:
                request.cancel()


class CallerGoneError(Exception):
    """Nobody waits for the answer any more."""


async def _gone(caller: HttpRequest) -> None:
    while not await caller.is_disconnected():
        await asyncio.sleep(LOOK)


def _there_is_room(loaded: Loaded, wanted: int) -> None:
    """Those that find a free row do not wait; of the others as many may wait as the run's config says."""
    scheduler, most = loaded.scheduler, loaded.config.api_waiting
    if wanted > scheduler.most + most:
        raise ApiError(
            400,
            tr(
                "{wanted} answers are asked for at once; ask for at most {most}.",
                wanted=wanted,
                most=scheduler.most + most,
            ),
        )
    waiting = len(scheduler.waiting)
    if waiting + wanted - max(0, scheduler.most - scheduler.running) > most:
        raise ApiError(429, f"{waiting} answers wait already; ask again later.", code="busy")


@asynccontextmanager
async def answering(loaded: Loaded, choice: Choice, wanted: Sequence[Prompted]) -> AsyncIterator[Answers]:
    """Ask the generator, and let go of what has not ended when the block ends. Raises ApiError 429 where too many wait."""
    _there_is_room(loaded, len(wanted))
    if choice.folder is not None:
        loaded.adapters.know(choice.adapter, choice.folder)
    loop = asyncio.get_running_loop()
    answers = Answers([])

    def told(number: int, piece: Piece) -> None:
        with suppress(RuntimeError):  # the server ended meanwhile
            loop.call_soon_threadsafe(answers.queue.put_nowait, (number, piece))

    for number, one in enumerate(wanted):
        request = Request(
            one.prompt,
            one.sampling,
            choice.adapter,
            partial(told, number),
            one.grammar,
            pictures=one.pictures,
        )
        answers.requests.append(loaded.service.submit(request))
    try:
        yield answers
    finally:
        answers.cancel()


def now() -> int:
    """Seconds since the epoch, as OpenAI's `created`."""
    return int(time.time())
