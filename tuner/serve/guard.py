"""Who may ask: whoever brings one of the keys. And what is noted of each request: that there was one, and how it ended."""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence

from starlette.responses import JSONResponse

from tuner.hosts import Asgi, Message, Receive, Scope, Send
from tuner.serve import errors
from tuner.serve.metrics import Metrics

OPEN = ("/health",)
"""Paths that tell nothing, and that watchers ask without a key."""


class KeyGuard:
    """ASGI middleware that answers 401 to requests without one of the keys; none asked for where there are no keys."""

    def __init__(self, app: Asgi, keys: Sequence[str]):
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN and not self._allowed(scope):
            said = (
                "Bring the key as `Authorization: Bearer KEY`."
                if not _bearer(scope)
                else "That key is not known here."
            )
            headers = {"WWW-Authenticate": "Bearer"}
            await JSONResponse(errors.body(401, said, code="invalid_api_key"), 401, headers)(
                scope, receive, send
            )
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        given = _bearer(scope)
        return not self.keys or any(hmac.compare_digest(given, key) for key in self.keys)


def _bearer(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name.lower() == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:].strip())
    return b""


class Noted:
    """ASGI middleware that counts requests and knows when the last one was there."""

    def __init__(self, app: Asgi, metrics: Metrics):
        self.app, self.metrics = app, metrics
        self.open = self.answered = 0
        self.last = time.monotonic()

    @property
    def idle(self) -> float:
        """Seconds since a request was there."""
        return 0.0 if self.open else time.monotonic() - self.last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ("/health", "/metrics"):
            await self.app(scope, receive, send)
            return
        self.open += 1

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answered(_known(scope), int(message["status"]))
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            self.open -= 1
            self.answered += 1
            self.last = time.monotonic()


def _known(scope: Scope) -> str:
    """The route of a request: a path that somebody made up would make a counter of its own."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))
