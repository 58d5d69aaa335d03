"""A word to an address of the owner's choice when a run ends or its loss runs away: settings.yaml, `webhook`.

One POST of JSON, from the supervisor, so that it comes without a page. Best effort: it is tried once, never waited for, and
a run knows nothing of it. Only https, or http on this machine's loopback; a redirect is not followed.
"""

from __future__ import annotations

import http.client
import json
import logging
import threading
import urllib.request
from typing import Any

from tuner.config.knobs import ConfigError
from tuner.config.settings import settings
from tuner.redact import redact
from tuner.runs.run import Run
from tuner.runs.status import Status
from tuner.text.lookup import tr

LIMIT = 10.0
"""Seconds for one word; then it is given up."""
DIVERGING = "diverging"
log = logging.getLogger(__name__)


def announce(run: Run, status: Status, event: str = "") -> threading.Thread | None:
    """Say that a run has ended, or the `event`; None where nobody wants to hear of it."""
    try:
        address = settings().webhook_address
    except (ConfigError, ValueError) as error:
        log.warning("No word is sent: %s", redact(str(error)))
        return None
    if not address:
        return None
    body = json.dumps(told(run, status, event or status.state)).encode()
    sender = threading.Thread(target=_post, args=(address, body), daemon=True, name="webhook")
    sender.start()
    return sender


def told(run: Run, status: Status, event: str) -> dict[str, Any]:
    """What is sent: `text` for chats that show it, the rest for programs. Nothing of the config but the stage."""
    why = redact(status.reason) if event != DIVERGING else "The loss is above where it began."
    name = redact(run.name)
    sentence = f"{name}: {event}. {why}".strip()
    return {
        "text": sentence,
        "event": event,
        "run": run.id,
        "name": name,
        "stage": str(run.values().get("stage") or ""),
        "step": status.step,
        "total_steps": status.total_steps,
        "seconds": round(status.elapsed or 0.0, 1),
        "reason": why,
    }


def test() -> bool:
    """Send a word as a run would; whether it was taken. Raises ValueError where no address is set or it is none."""
    address = settings().webhook_address
    if not address:
        raise ValueError(tr("No webhook is set; write one into settings.yaml."))
    return _post(address, json.dumps({"text": "tuner: test", "event": "test"}).encode())


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the address that was allowed is the one that is told."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _post(address: str, body: bytes) -> bool:
    """Post it; whether it was taken."""
    wanted = urllib.request.Request(  # noqa: S310  the settings allow https and this machine only
        address, data=body, headers={"Content-Type": "application/json", "User-Agent": "tuner"}
    )
    here = [urllib.request.ProxyHandler({})] if address.startswith("http:") else []
    try:
        with urllib.request.build_opener(_Stay, *here).open(wanted, timeout=LIMIT):
            return True
    except (OSError, ValueError, http.client.HTTPException) as error:  # its text may be secret
        log.warning("The webhook did not take a word: %s", type(error).__name__)
        return False
