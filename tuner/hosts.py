"""Who may talk to a server of the studio: an ASGI guard around everything it serves, HTTP and websocket alike.

A page of any website can make its own name resolve to 127.0.0.1 (DNS rebinding), and then asks this server for
everything with that name in `Host`; a page of another local port names that port in `Origin`. So both headers must name
this server: 127.0.0.1, localhost or [::1] with the port that it listens on, or a name that the person configured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from tuner.text.lookup import tr

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

VARIABLE = "TUNER_ALLOWED_HOSTS"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_AUTHORITY = re.compile(
    r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]+)")
_FRAMES = ("iframe", "frame", "embed", "object")


@dataclass(frozen=True)
class Authority:
    """A name with its port, as in `Host`; no port in a configured one means any port."""

    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Authority | None:
        """Read `name` or `name:port`; None for anything else."""
        found = _AUTHORITY.fullmatch(text.lower())
        if found is None:
            return None
        port = int(found["port"]) if found["port"] else None
        return cls(found["name"], port) if port is None or port < 2**16 else None


def configured(names: Iterable[str] = ()) -> tuple[Authority, ...]:
    """The further names this server may be asked by: those given, and those in TUNER_ALLOWED_HOSTS, comma-separated.

    Raises ValueError with one sentence for what is no host name.
    """
    listed = [*names, *os.environ.get(VARIABLE, "").split(",")]
    return tuple(configured_name(name.strip()) for name in listed if name.strip())


def configured_name(text: str) -> Authority:
    """One further name. Raises ValueError as `configured` does."""
    authority = Authority.parse(text)
    if authority is None:
        raise ValueError(
            tr(
                "{text!r} is no host name; write it as a browser's address line has it, without http://, for example"
                " studio.example.org or localhost:9000.",
                text=text,
            )
        )
    if authority.port is None and authority.name in LOOPBACK:
        raise ValueError(
            tr(
                "{text} needs the port that the browser uses, for example {text}:9000: without one every page that any"
                " program on this machine serves could drive the studio.",
                text=text,
            )
        )
    return authority


class HostGuard:
    """ASGI middleware that answers 403 to requests of foreign hosts and origins, and forbids pages to load from elsewhere.

    `app` is what it guards, `allowed` the configured names. The server's own port is read from the socket that a request
    came in by, so the guard needs no other setting. `page_policy` is sent as Content-Security-Policy; `{host}` in it
    is the host that was asked.
    """

    def __init__(self, app: Asgi, allowed: Iterable[Authority] = (), page_policy: str = "") -> None:
        self.app = app
        self.allowed = tuple(allowed)
        self.page_policy = page_policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif wrong := refusal(scope, self.allowed):
            await _forbid(scope, send, wrong)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, self._with_policy(scope, send))

    def _with_policy(self, scope: Scope, send: Send) -> Send:
        host = _values(scope["headers"], b"host")[0]
        policy = self.page_policy.format(host=host) or "frame-ancestors 'self'"
        own = [
            (b"content-security-policy", policy.encode("latin-1")),
            (b"referrer-policy", b"same-origin"),
        ]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        return sending


def refusal(scope: Scope, allowed: Iterable[Authority] = ()) -> str:
    """Why a request is refused, in one sentence; empty for one that is not."""
    headers: Headers = scope["headers"]
    secure = scope.get("scheme") in ("https", "wss")
    mine = _own(scope, tuple(allowed))
    hosts = _values(headers, b"host")
    if len(hosts) != 1 or not _named(hosts[0], secure, mine):
        said = ascii(hosts[0][:100]) if hosts else tr("no name")
        return tr(
            "tuner was asked for by {said}, which is not a name of this server. If you opened it by that name"
            " yourself, start it with --allow-host NAME (or {variable}=NAME), port included where it is not its own.",
            said=said,
            variable=VARIABLE,
        )
    origins = _values(headers, b"origin")
    if scope["type"] == "websocket" and not origins:
        return tr("tuner's pages say where they come from (Origin), this request does not.")
    if len(origins) > 1 or any(not _origin_named(origin, mine) for origin in origins):
        return tr(
            "tuner answers its own pages only, not those of {ascii}. If that is your way to it,"
            " start it with --allow-host NAME (or {variable}=NAME).",
            ascii=ascii(origins[0][:100]),
            variable=VARIABLE,
        )
    return tr("tuner's pages are shown in no frame of another page.") if _framed(headers) else ""


def _own(scope: Scope, allowed: tuple[Authority, ...]) -> tuple[Authority, ...]:
    server = scope.get("server") or ("", None)  # a Unix socket has no port
    port = server[1]
    return (*(Authority(name, port) for name in LOOPBACK if port), *allowed)


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]


def _named(text: str, secure: bool, mine: tuple[Authority, ...]) -> bool:
    asked = Authority.parse(text)
    if asked is None:
        return False
    port = asked.port or (443 if secure else 80)
    return any(asked.name == own.name and own.port in (None, port) for own in mine)


def _origin_named(text: str, mine: tuple[Authority, ...]) -> bool:
    origin = _ORIGIN.fullmatch(text.lower())
    return origin is not None and _named(origin["authority"], origin["scheme"] == "https", mine)


def _framed(headers: Headers) -> bool:
    """Whether another site's page wants to show this one in a frame, where its visitor clicks without seeing it."""
    site, into = (_values(headers, b"sec-fetch-site"), _values(headers, b"sec-fetch-dest"))
    return bool(into) and into[0] in _FRAMES and site != ["same-origin"]


async def _forbid(scope: Scope, send: Send, sentence: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})  # before it was accepted: a 403
        return
    body = f"{sentence}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})
