"""A reward that a server gives: LLaMA-Factory's form, POST {"model", "messages"} and {"scores"} back.

The key comes from the environment and goes to the address that was named and nowhere else.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from tuner.config.knobs import Section, knob
from tuner.hosts import LOOPBACK
from tuner.redact import redact
from tuner.rewards.reward import Completion, Scores, wrong
from tuner.text.lookup import tr

KEY = "REWARD_API_KEY"
LARGEST = 2**24
"""Bytes of a reply that are read."""
HERE = (*LOOPBACK, "::1")
PAUSES = (0.5, 2.0)
"""Seconds before each further try."""


class Http(Section):
    title = "A server's score"

    url: str = knob(
        "",
        "The address that scores answers. It is sent POST {model, messages}, messages being the texts of prompt and "
        "answer, and replies {scores}, a number each; its key comes from REWARD_API_KEY.",
        usual="http://127.0.0.1:8001/score",
    )
    model: str = knob("model", "The model to ask there.", advanced=True)
    timeout: float = knob(60, "The time limit for a reply.", gt=0, le=3600, unit="seconds", advanced=True)


def check_http(settings: Http) -> str:
    """What is wrong with the settings; empty for nothing."""
    try:
        parts = urlsplit(settings.url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        named = False
    if not named:
        if not settings.url:
            return tr("has no url; write http://host:port/path")
        return tr("has url {redact}; write http://host:port/path", redact=redact(settings.url))
    if os.environ.get(KEY) and parts.scheme == "http" and parts.hostname not in HERE:
        return tr(
            "would send {key} to {hostname} unencrypted; use https, or a server on this machine",
            key=KEY,
            hostname=parts.hostname,
        )
    return ""


class _Direct(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: urllib would take the key along to whatever host a reply names."""

    def redirect_request(self, *asked: object) -> None:
        return None


def _proxies(url: str) -> list[urllib.request.ProxyHandler]:
    """No proxy to this machine itself, whatever the environment says: what goes there has no other cover for the key."""
    return [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in HERE else []


def http(settings: Http) -> Callable[[Sequence[Completion]], Scores]:
    """The server's score of each answer. Raises ConfigError where it gives none after three tries."""
    opener = urllib.request.build_opener(_Direct, *_proxies(settings.url))

    def scores(completions: Sequence[Completion]) -> Scores:
        if not completions:
            return []
        texts = [one.whole or written(one) for one in completions]
        reply = _asked(opener, settings, {"model": settings.model, "messages": texts})
        found = reply.get("scores") if isinstance(reply, dict) else None
        if not isinstance(found, list) or len(found) != len(texts):
            raise _failed(
                settings.url, tr('did not reply {{"scores": [...]}} with {number} numbers', number=len(texts))
            )
        return [_number(settings.url, value) for value in found]

    return scores


def written(one: Completion) -> str:
    """Prompt and answer as text, where how the model reads them is not known."""
    return "\n".join([*(str(turn.get("content") or "") for turn in one.messages), one.text])


def _number(url: str, value: Any) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise _failed(url, tr("gave {value!r:.80} for a score", value=value))


def _asked(opener: urllib.request.OpenerDirector, settings: Http, body: dict[str, Any]) -> Any:
    """The reply's JSON. A server that is busy or away is asked again."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    for pause in (*PAUSES, None):
        request = urllib.request.Request(settings.url, json.dumps(body).encode(), headers)  # noqa: S310  http or https
        try:
            with opener.open(request, timeout=settings.timeout) as reply:
                return _read(reply.read(LARGEST + 1))
        except urllib.error.HTTPError as error:
            if pause is None or error.code not in (408, 429) and error.code < 500:
                raise _failed(
                    settings.url, tr("replied {code} {reason}", code=error.code, reason=error.reason)
                ) from error
        except (urllib.error.URLError, OSError) as error:
            if pause is None:
                raise _failed(settings.url, tr("gave no reply ({error})", error=error)) from error
        except ValueError as error:
            raise _failed(settings.url, tr("replied what is no JSON ({error})", error=error)) from error
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _read(reply: bytes) -> Any:
    if len(reply) > LARGEST:
        raise ValueError(tr("more than {largest} MiB", largest=LARGEST // 2**20))
    return json.loads(reply)


def _failed(url: str, said: str) -> Exception:
    return wrong(
        redact(
            tr(
                "The reward server at {url} {said}; look at its url, and at {key} where it wants a key.",
                url=url,
                said=said,
                key=KEY,
            )
        )
    )
