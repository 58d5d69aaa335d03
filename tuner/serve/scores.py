"""POST /v1/score/evaluation, LLaMA-Factory's path for reward models: one number a text, at its last token."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch

from tuner.serve.loaded import Loaded
from tuner.serve.models import Choice
from tuner.serve.protocol import ScoreAsked

T = TypeVar("T")


async def whole(loaded: Loaded, asked: ScoreAsked) -> dict[str, Any]:
    """The scores of texts. Raises ApiError."""
    loaded.must(score=True)
    choice = loaded.models.named(asked.model)
    longest = min(asked.max_length or loaded.longest, loaded.longest)
    rows = [loaded.tokenizer.encode(text)[:longest] for text in asked.messages]
    found = await between(loaded, lambda: _scored(loaded, choice, rows))
    return {
        "id": f"scoreeval-{uuid.uuid4().hex}",
        "object": "score.evaluation",
        "model": choice.id,
        "scores": found,
        "system_fingerprint": choice.fingerprint,
    }


def _scored(loaded: Loaded, choice: Choice, rows: Sequence[Sequence[int]]) -> list[float]:
    """One row at a time: what a score is must not depend on padding."""
    if choice.folder is not None:
        loaded.adapters.know(choice.adapter, choice.folder)
    loaded.adapters.use(choice.adapter)
    model = loaded.adapters.base
    return [float(model(torch.tensor([list(ids)], device=model.device)).logits[0, 0]) for ids in rows]


async def between(loaded: Loaded, work: Callable[[], list[T]]) -> list[T]:
    """Do it in the thread that the model belongs to."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[T]] = loop.create_future()

    def settle(result: list[T] | None, error: Exception | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(result or [])

    def errand() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as failed:
            error = failed
        with suppress(RuntimeError):  # the server ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    loaded.service.between(errand)
    return await done
