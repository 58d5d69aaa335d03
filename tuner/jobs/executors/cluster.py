"""A Ray cluster as its job API tells of it: submit a job, ask how it is, stop it. Plain HTTP, without Ray.

Ray's own JobSubmissionClient speaks the same API, but loads all of Ray and waits for an answer without a limit of time.
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tuner import redact
from tuner.text.message import Message, message

ASK, SUBMIT = 10.0, 120.0
"""Seconds to wait for an answer. A cluster without an agent looks for one for a while before it refuses a job."""
OVER = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
NO_AGENT = ("No available agent", "ClientConnectorError", "ClientOSError")
"""What Ray 2.60 answers, with status 500, while its dashboard is up and the head's agent, which takes jobs, is not."""


class AwayError(Exception):
    """The cluster cannot be asked, or takes no job; `said` is why, for people."""

    def __init__(self, said: Message):
        super().__init__(str(said))
        self.said = said


class ExistsError(Exception):
    """There is a job of that name already."""


@dataclass(frozen=True)
class Job:
    """How a job is: PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED; empty for one that the cluster does not know."""

    state: str = ""
    said: str = ""
    node: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing of it is left running, as far as the cluster knows."""
        return not self.state or self.state in OVER


@dataclass(frozen=True)
class Cluster:
    """One cluster by its dashboard's address."""

    address: str

    def submit(self, job: str, entrypoint: str, cpus: float, gpus: float, env: Mapping[str, str]) -> None:
        """Raises ExistsError where it was submitted before, AwayError."""
        asked = {
            "submission_id": job,
            "entrypoint": entrypoint,
            "entrypoint_num_cpus": cpus,
            "entrypoint_num_gpus": gpus,
            "runtime_env": {"env_vars": dict(env)},
        }
        self._call("POST", "jobs/", asked, SUBMIT)

    def job(self, job: str) -> Job:
        """Raises AwayError."""
        raw = self._call("GET", f"jobs/{quote(job)}")
        if raw is None:
            return Job()
        return Job(
            str(raw.get("status") or ""),
            redact.redact(str(raw.get("message") or "")),
            str(raw.get("driver_node_id") or ""),
        )

    def stop(self, job: str) -> None:
        """End a job; nothing where there is none. Raises AwayError."""
        self._call("POST", f"jobs/{quote(job)}/stop", {})

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, wait: float = ASK
    ) -> dict[str, Any] | None:
        """The answer; None for 404."""
        asked = urllib.request.Request(  # noqa: S310  an http address, see Settings
            f"{self.address.rstrip('/')}/api/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", **_authorization()},
            method=method,
        )
        try:
            with _OPENER.open(asked, timeout=wait) as answer:
                raw = json.loads(answer.read() or b"{}")
                return raw if isinstance(raw, dict) else {}
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise self._refused(error) from None
        except (OSError, HTTPException, ValueError) as error:
            why = redact.redact(str(getattr(error, "reason", error)) or type(error).__name__)
            raise AwayError(message("cluster.away", address=self.address, why=why)) from None

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        text = ""
        with suppress(OSError, HTTPException):
            text = error.read(4000).decode("utf-8", "replace")
        if "already exists" in text:
            return ExistsError()
        if error.code in (401, 403):
            return AwayError(message("cluster.token", address=self.address))
        if any(said in text for said in NO_AGENT):
            return AwayError(message("cluster.no_agent", address=self.address))
        line = redact.redact((text.strip().splitlines() or [str(error)])[-1])[:300]
        return AwayError(message("cluster.refused", address=self.address, status=error.code, why=line))


class _Stay(urllib.request.HTTPRedirectHandler):
    """No answer leads elsewhere: urllib takes the token along to any machine, and makes a question of what it sends."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)
"""No proxy: a cluster is in the same network, and a proxy would read the token."""


def _authorization() -> dict[str, str]:
    token = _token()
    if not token:
        return {}
    redact.remember([token])
    return {"Authorization": f"Bearer {token}"}


def _token() -> str:
    """The cluster's token where Ray itself looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    with suppress(OSError, RuntimeError):
        return (Path(named) if named else Path.home() / ".ray" / "auth_token").read_text().strip()
    return ""
