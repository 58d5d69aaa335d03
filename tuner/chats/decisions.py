"""A client of /v1/systemone: typed questions about a state, answered at once."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tuner.chats.completions import LONGEST_ERROR, Place, Unanswered, refusal
from tuner.text.lookup import tr

SILENT = 120.0
"""Seconds after which an answer is given up: an adapter may have to be read first."""


def decide(place: Place, model: str, state: Any, questions: Mapping[str, Any]) -> dict[str, Any]:
    """The answers by their questions' names. Raises Unanswered."""
    parts = urlsplit(place.url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=SILENT)
    body = json.dumps({"model": model, "state": state, "questions": questions}, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {place.key}"}
    try:
        connection.request("POST", f"{parts.path.removesuffix('/v1')}/v1/systemone", body, headers)
        response = connection.getresponse()
        if response.status != 200:
            said = refusal(response.status, response.read(LONGEST_ERROR), response.getheader("Retry-After"))
            raise Unanswered(said)
        found: dict[str, Any] = json.loads(response.read())["answers"]
        return found
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        said = tr(
            "The server gave no answer ({error}); ask again, or look at its run.", error=type(error).__name__
        )
        raise Unanswered(said) from error
    finally:
        connection.close()
