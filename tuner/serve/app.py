"""The application: OpenAI's paths over one loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response

from tuner import hosts
from tuner.serve import chat, completions, errors, scores, sse
from tuner.serve.answering import CallerGoneError
from tuner.serve.decisions import Decider
from tuner.serve.guard import KeyGuard, Noted
from tuner.serve.loaded import Loaded
from tuner.serve.metrics import Metrics
from tuner.serve.protocol import ChatAsked, DecisionAsked, ScoreAsked, TextAsked
from tuner.serve.token_text import TokenTexts

GONE = 499
"""The status for nobody: its caller has hung up."""


def application(
    loaded: Loaded, keys: Sequence[str], allowed: Sequence[hosts.Authority] = ()
) -> tuple[hosts.Asgi, Noted]:
    """The guarded app, and what knows when it was last asked."""
    metrics, texts, decider = Metrics(), TokenTexts(loaded.tokenizer), Decider(loaded)

    # No pages of its own: they would load from elsewhere.
    app = FastAPI(title="tuner", docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def told() -> Response:
        return PlainTextResponse(metrics.text(loaded.scheduler), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def listed() -> dict[str, Any]:
        return {"object": "list", "data": await run_in_threadpool(loaded.models.listed)}

    @app.get("/v1/models/{name:path}")
    async def one(name: str) -> dict[str, Any]:
        choice = await run_in_threadpool(loaded.models.named, name)
        return {"id": choice.id, "object": "model", "created": 0, "owned_by": "tuner"}

    @app.post("/v1/chat/completions")
    async def chatted(asked: ChatAsked, request: Request) -> Any:
        ready = await chat.prepare(loaded, asked, texts)
        if asked.stream:
            return await sse.streamed(chat.chunks(loaded, ready))
        return await _unless_gone(chat.whole(loaded, ready, request))

    @app.post("/v1/completions")
    async def completed(asked: TextAsked, request: Request) -> Any:
        ready = await completions.prepare(loaded, asked, texts)
        if asked.stream:
            return await sse.streamed(completions.chunks(loaded, ready))
        return await _unless_gone(completions.whole(loaded, ready, request))

    @app.post("/v1/score/evaluation")
    async def scored(asked: ScoreAsked) -> dict[str, Any]:
        return await scores.whole(loaded, asked)

    @app.post("/v1/systemone")
    async def decided(asked: DecisionAsked) -> dict[str, Any]:
        return await decider.whole(asked)

    noted = Noted(app, metrics)
    return hosts.HostGuard(KeyGuard(noted, keys), allowed), noted


async def _unless_gone(answer: Any) -> Any:
    try:
        return await answer
    except CallerGoneError:
        return Response(status_code=GONE)
