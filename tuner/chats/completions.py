"""A client of /v1/chat/completions: one answer as it is written, which can be stopped, every failure one sentence.

The standard library does it: http.client over a loopback socket. Shutting that socket down is what frees the server.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from tuner.text.lookup import tr

SILENT = 300.0
"""Seconds without a word from the server after which an answer is given up: a long prompt takes its time on a CPU."""
LONGEST_ERROR = 64_000


class Place(Protocol):
    """Where a server listens, and the key that it asks for; the url is that of the host, or ends in /v1."""

    @property
    def url(self) -> str: ...
    @property
    def key(self) -> str: ...


class Unanswered(Exception):  # noqa: N818  what happened, as Refused
    """The server gave no whole answer; the text is one sentence that says why and what to do."""


class Stopped(Exception):  # noqa: N818  no error, but the end that was asked for
    """The answer was stopped by whoever asked for it."""


@dataclass(frozen=True)
class Piece:
    """What came in one chunk. `calls` are pieces of tool calls by their place; `tokens` the answer's, where it is told."""

    text: str = ""
    thoughts: str = ""
    calls: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    finish: str = ""
    checksum: str = ""
    tokens: int = 0


class Completion:
    """One answer. Iterating it reads the server's pieces, once; `stop`, from any thread, ends that."""

    def __init__(self, place: Place, request: Mapping[str, Any], silent: float = SILENT):
        self._place, self._request, self._silent = place, request, silent
        self._socket: socket.socket | None = None
        self._stopped = False

    def stop(self) -> None:
        """Close the request: the server stops writing, the reader gets Stopped."""
        self._stopped = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def __iter__(self) -> Iterator[Piece]:
        """Raises Unanswered, or Stopped."""
        try:
            yield from self._read()
        except (OSError, http.client.HTTPException, ValueError, Unanswered) as error:
            if self._stopped:  # whatever a socket says that was shut down
                raise Stopped from error
            if isinstance(error, Unanswered):
                raise
            raise Unanswered(_in_words(error, self._silent)) from error
        if self._stopped:
            raise Stopped

    def _read(self) -> Iterator[Piece]:
        parts = urlsplit(self._place.url)
        connection = http.client.HTTPConnection(
            parts.hostname or "127.0.0.1", parts.port, timeout=self._silent
        )
        try:
            connection.connect()
            self._socket = connection.sock
            self._must_go_on()
            connection.request(
                "POST", f"{parts.path.removesuffix('/v1')}/v1/chat/completions", self._body(), self._headers()
            )
            response = connection.getresponse()
            self._must_go_on()
            if response.status != 200:
                raise Unanswered(
                    refusal(response.status, response.read(LONGEST_ERROR), response.getheader("Retry-After"))
                )
            yield from _pieces(response)
        finally:
            self.close(connection)

    def close(self, connection: http.client.HTTPConnection) -> None:
        """Hang up, whoever reads no further: an answer that nobody reads is not to be written."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _must_go_on(self) -> None:
        if self._stopped:  # before there was a socket to shut down
            raise Stopped

    def _body(self) -> bytes:
        whole = {**self._request, "stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(whole, ensure_ascii=False).encode()

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self._place.key}"} if self._place.key else {}
        return {"Content-Type": "application/json", "Accept": "text/event-stream", **key}


def _pieces(response: http.client.HTTPResponse) -> Iterator[Piece]:
    ended = False
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        told = json.loads(data)
        if error := told.get("error"):
            raise Unanswered(_said(error) or tr("The server ended the answer early; ask again."))
        piece = _piece(told)
        ended = ended or bool(piece.finish)
        yield piece
    if not ended:
        raise Unanswered(tr("The server stopped during the answer; start it again."))


def _piece(told: Mapping[str, Any]) -> Piece:
    choice: Mapping[str, Any] = next(iter(told.get("choices") or ()), {})
    delta = choice.get("delta") or {}
    usage = told.get("usage") or {}
    return Piece(
        text=delta.get("content") or "",
        thoughts=delta.get("reasoning_content") or delta.get("reasoning") or "",
        calls={int(call.get("index") or 0): _call(call) for call in delta.get("tool_calls") or ()},
        finish=choice.get("finish_reason") or "",
        checksum=told.get("system_fingerprint") or "",
        tokens=int(usage.get("completion_tokens") or 0),
    )


def _call(piece: Mapping[str, Any]) -> tuple[str, str]:
    """A piece of a tool call: its function's name and a part of the arguments' JSON."""
    function = piece.get("function") or {}
    return function.get("name") or "", function.get("arguments") or ""


def refusal(status: int, body: bytes, wait: str | None = None) -> str:
    """What the server said when it refused, in one sentence."""
    said = ""
    with suppress(ValueError, AttributeError):
        said = _said(json.loads(body).get("error"))
    if status == 429:
        return tr("The server is busy; try again in {wait} seconds.", wait=wait or tr("a few"))
    if status in (401, 403):
        return tr("The server does not take the studio's key; stop it and start it again.")
    return said or tr("The server refused with status {status}; its run's log says why.", status=status)


def _said(error: Any) -> str:
    said = str(error.get("message") or "") if isinstance(error, Mapping) else str(error or "")
    said = " ".join(said.split())
    return said if not said or said.endswith((".", "!", "?")) else f"{said}."


def _in_words(error: Exception, silent: float) -> str:
    if isinstance(error, TimeoutError):
        return tr(
            "The server said nothing for {silent:.0f} s; look at its run's log, or start it again.",
            silent=silent,
        )
    if isinstance(error, ConnectionRefusedError):
        return tr("The server does not answer; start it again.")
    if isinstance(error, ValueError):
        return tr("The server's answer cannot be read; look at its run's log.")
    return tr("The server stopped during the answer; start it again.")


def ask(place: Place, request: Mapping[str, Any]) -> Iterator[str]:
    """The text of one answer as it comes. Raises Unanswered."""
    for piece in Completion(place, request):
        if piece.text:
            yield piece.text
