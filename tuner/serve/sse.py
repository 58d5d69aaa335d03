"""Server-sent events as OpenAI's clients read them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import StreamingResponse

from tuner.serve import errors

DONE = "data: [DONE]\n\n"


def event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def ended(chunks: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[str]:
    """Chunks as events, the end marked; an error in mid-stream is an event too, for the status was sent already."""
    try:
        async for chunk in chunks:
            yield event(chunk)
    except Exception as error:
        told = errors.of(error)
        yield event(errors.body(told.status, str(told), told.param, told.code))
    yield DONE


async def streamed(chunks: AsyncIterator[Mapping[str, Any]]) -> StreamingResponse:
    """The response; what is refused before the first chunk is raised here, so that it has a status of its own."""
    first = await anext(chunks)

    async def all_of_them() -> AsyncIterator[Mapping[str, Any]]:
        try:
            yield first
            async for chunk in chunks:
                yield chunk
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()

    return StreamingResponse(
        ended(all_of_them()), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )
