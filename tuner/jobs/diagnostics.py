"""What somebody who helps with a fault needs to see, in one zip: versions, machine, settings and the last words of runs that
failed. No data, no model, no secret: every text is masked as in a log."""

from __future__ import annotations

import io
import json
import platform
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tuner import __version__, hardware, paths
from tuner.config import libraries, settings
from tuner.config.knobs import ConfigError
from tuner.redact import MASK, redact
from tuner.runs.run import Run
from tuner.tracking.rows import RunFilter
from tuner.tracking.runs import first_runs
from tuner.tracking.store import TrackerError, shown_uri

FAILED = 5
"""Runs that failed last, of which the record and the log's end are taken."""
_ADDRESS = re.compile(r"https?://[^\s\"',}]+")
LOG_END, SUPERVISOR_END = 30_000, 60_000
"""Bytes."""


def versions() -> dict[str, str]:
    """The studio's own version, Python's, and those of the libraries that decide what a run does."""
    return {"tuner": __version__, "Python": platform.python_version(), **libraries.versions()}


def bundle() -> bytes:
    """The zip."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in _texts():
            archive.writestr(name, redact(text))
    return made.getvalue()


def _texts() -> Iterator[tuple[str, str]]:
    usage = hardware.usage(paths.home())
    yield (
        "machine.json",
        json.dumps(
            {
                "versions": versions(),
                "system": f"{platform.system()} {platform.release()} {platform.machine()}",
                "machine": hardware.describe(),
                "disk_free_gib": round(usage.disk_free / hardware.GIB, 1),
                "bf16": hardware.bf16(),
                "tracker": shown_uri(),
            },
            indent=1,
        ),
    )
    for name, text in _file("settings.yaml", settings.path(), LOG_END):
        yield name, _masked(text)
    yield from _file("supervisor.log", paths.mlruns() / "supervisor.log", SUPERVISOR_END)
    with suppress(TrackerError):
        for row in first_runs(FAILED, RunFilter(states=("failed",))):
            run = Run(row.id)
            yield from _file(f"runs/{row.id}/status.json", run.folder / "status.json", LOG_END)
            yield from _file(f"runs/{row.id}/config.yaml", run.folder / "config.yaml", LOG_END)
            yield from _file(f"runs/{row.id}/log.txt", run.log_path, LOG_END)


def _masked(text: str) -> str:
    """The settings without the webhook's address, a secret by itself, however YAML may have it. Other addresses stay where
    the file can be read."""
    try:
        known = settings.settings()
    except ConfigError:
        return _ADDRESS.sub(MASK, text)
    hook = known.webhook
    if not hook or hook.startswith("$") or hook in text:
        return text.replace(hook, MASK) if hook and not hook.startswith("$") else text
    return _ADDRESS.sub(MASK, text)


def _file(name: str, path: Path, end: int) -> Iterator[tuple[str, str]]:
    """A file's last whole lines: of half a secret nobody can tell what it is."""
    with suppress(OSError):
        held = path.read_bytes()
        whole = held if len(held) <= end else held[-end:].partition(b"\n")[2]
        yield name, whole.decode("utf-8", "replace")
