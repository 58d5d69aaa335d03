"""Adapters: what runs trained, as versions of registered models with all that is behind them."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tuner import paths
from tuner.redact import refuse_secret
from tuner.runs.weights import BrokenWeights
from tuner.text.lookup import tr
from tuner.tracking.adapter_rows import (
    ALIAS,
    AdapterRow,
    Word,
    check,
    find_adapters,
    get_adapter,
    list_adapters,
)
from tuner.tracking.reader import reader
from tuner.tracking.registration import register
from tuner.tracking.store import as_default, changing, explained, open_store

VERSION = re.compile(r"(?P<name>[^@]+)(?:@(?P<alias>[\w-]+)|/(?P<number>\d+))")
"""How the registry's versions are named in commands and configs."""

MOST_TURNS = 50
"""How often an alias that came and went is told of."""

__all__ = [
    "VERSION",
    "AdapterRow",
    "BrokenWeights",
    "Word",
    "adapter_folder",
    "are_there_any",
    "check",
    "delete_adapter",
    "delete_alias",
    "folder_of",
    "named_version",
    "find_adapters",
    "get_adapter",
    "list_adapters",
    "register",
    "set_alias",
    "set_note",
]


def are_there_any() -> bool:
    """Whether an adapter was ever registered. Raises TrackerError while the tracker is away."""
    return reader().has_adapters()


def named_version(word: str) -> AdapterRow | None:
    """The version that a word names as the registry does, `name@alias` or `name/3`; None for a word of another form.

    Raises ValueError with one sentence where there is none of that name, TrackerError while the tracker is away.
    """
    found = VERSION.fullmatch(word)
    return _version(found["name"], found["alias"] or found["number"]) if found else None


def adapter_folder(name: str, version: int | str) -> Path:
    """The folder that PEFT loads, of a version or an alias. Raises ValueError with one sentence."""
    return folder_of(_version(name, version))


def _version(name: str, version: int | str) -> AdapterRow:
    rows = list_adapters(name)
    if not rows:
        raise ValueError(tr("There is no adapter {name}; `tuner adapters` lists what there is.", name=name))
    row = next((r for r in rows if str(r.version) == str(version) or version in r.aliases), None)
    if row is None:
        raise ValueError(
            tr(
                "{name} has no version or alias {version}; it has {version_2}.",
                name=name,
                version=version,
                version_2=", ".join(str(r.version) for r in rows),
            )
        )
    return row


def folder_of(row: AdapterRow) -> Path:
    """The folder that PEFT loads; what lies on a server is brought here. Raises ValueError with one sentence."""
    if row.state != "ok":
        raise ValueError(
            tr(
                "The files of {name} version {version} are {state}; register its run's output again.",
                name=row.name,
                version=row.version,
                state=row.state,
            )
        )
    return row.folder or _fetched(row)


def _fetched(row: AdapterRow) -> Path:
    """A remote adapter's files, brought here once."""
    target = paths.mlruns() / "fetched" / paths.slug(f"{row.name}-{row.version}-{row.sha256[:8]}", 120)
    if not target.is_dir():
        with explained():
            open_store(create=False)
            import mlflow.artifacts

            with as_default():
                mlflow.artifacts.download_artifacts(f"models:/{row.name}/{row.version}", dst_path=str(target))
    return target / "artifacts" / "adapter"


# --- changing; each raises TrackerError where MLflow cannot be written now


def set_alias(name: str, version: int, alias: str) -> None:
    """Give a version an alias, taking it from the one that had it. Raises ValueError where it cannot be one."""
    if not re.fullmatch(r"[\w-]{1,250}", alias) or re.fullmatch(r"[vV]\d+|latest", alias):
        raise ValueError(
            tr(
                "{alias!r} cannot be an alias; use letters, digits, _ and -, but not v1 or latest.",
                alias=alias,
            )
        )
    before = _holder(name, alias)
    if before == version:
        return
    with changing():
        open_store(create=False).set_registered_model_alias(name, alias, str(version))
        _note_alias(name, before, alias, "-")
        _note_alias(name, version, alias, "+")


def delete_alias(name: str, alias: str) -> None:
    """Take an alias away; one that is not there is no error."""
    before = _holder(name, alias)
    with changing():
        open_store(create=False).delete_registered_model_alias(name, alias)
        _note_alias(name, before, alias, "-")


def _holder(name: str, alias: str) -> int | None:
    """The version that has an alias now."""
    return next((row.version for row in list_adapters(name) if alias in row.aliases), None)


def _note_alias(name: str, version: int | None, alias: str, sign: str) -> None:
    """Write down at a version that it got an alias or lost it, and when."""
    if version is None:
        return
    client = open_store(create=False)
    told = client.get_model_version(name, str(version)).tags.get(ALIAS + alias, "")
    entries = [*filter(None, told.split(",")), f"{sign}{time.time():.0f}"]
    client.set_model_version_tag(name, str(version), ALIAS + alias, ",".join(entries[-MOST_TURNS:]))


def set_note(name: str, version: int, text: str) -> None:
    """A version's description, as MLflow's own page shows it. Raises ValueError for a secret in it."""
    refuse_secret("note", text)
    with changing():
        open_store(create=False).update_model_version(name, str(version), description=text[:5000])


def delete_adapter(name: str, version: int) -> None:
    """Remove a version from the registry; the last one takes the name with it. The run keeps its own output."""
    with changing():
        client = open_store(create=False)
        client.delete_model_version(name, str(version))
        if not client.search_model_versions(f"name = '{name}'", max_results=1):
            client.delete_registered_model(name)
