"""Which model a caller means by its name, and the list of those that there are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError
from tuner.config.serving import ServeConfig
from tuner.generate.adapters import BASE
from tuner.jobs.serving import same_base
from tuner.models.adapter_loading import WEIGHTS, adapter_folder
from tuner.models.loading import Source, fingerprint
from tuner.serve.errors import ApiError
from tuner.text.lookup import tr
from tuner.tracking.adapter_rows import AdapterRow, list_adapters
from tuner.tracking.adapters import VERSION
from tuner.tracking.store import TrackerError

SHORT = 12
"""Characters of a checksum that are shown."""


@dataclass(frozen=True)
class Choice:
    """The model of one request. `adapter` is its name for the generator, BASE without one; `fingerprint` its checksum.
    `template` is the chat template that the request names."""

    id: str
    adapter: str
    fingerprint: str
    folder: Path | None = None
    template: str | None = None


class Models:
    """The base and the adapters that fit it, by every name that a caller may use.

    Raises ConfigError where the adapter that is to answer by default is not there.
    """

    def __init__(self, config: ServeConfig, source: Source):
        self.config, self.source = config, source
        self.loading: Config = config.loading()
        self.base = Choice(Path(source.base).name, BASE, fingerprint(source)[:SHORT])
        names = {"base", self.base.id, source.base, str(config.model_name_or_path), str(source.folder)}
        self.base_names = frozenset(names)
        self.given = config.adapter_name_or_path
        self.default = self._choice(self.given[0]) if self.given else self.base

    def named(self, name: str) -> Choice:
        """The model that a caller means, under the name that they use. Raises ApiError 404 for one that says nothing here.

        Where any name will do, one that says nothing is answered by the default under its own name.
        """
        found = self._named(name) if name else None
        return replace(found, id=name) if found else self.default

    def _named(self, name: str) -> Choice | None:
        if name == self.config.api_model_name:
            return self.default
        if name in self.base_names:
            return self.base
        if name in self.given or VERSION.fullmatch(name) or _is_adapter(name):
            return self._adapter(name)
        if self.config.api_open:
            return None
        raise _unknown(name)

    def _adapter(self, name: str) -> Choice:
        try:
            return self._choice(name)
        except (ConfigError, TrackerError) as error:
            raise _unknown(name, str(error)) from error

    def _choice(self, name: str) -> Choice:
        """An adapter by folder or version. Raises ConfigError, TrackerError."""
        folder = adapter_folder(self.loading, name)
        checksum = _checksum(folder / WEIGHTS, (folder / WEIGHTS).stat().st_mtime_ns)
        return Choice(name, checksum, checksum[:SHORT], folder)

    def listed(self) -> list[dict[str, Any]]:
        """GET /v1/models: the base, what was named at the start, and every version and alias that fits the base."""
        names = dict.fromkeys([self.base.id, *filter(None, [self.config.api_model_name]), *self.given])
        found = {name: {"id": name, "object": "model", "created": 0, "owned_by": "tuner"} for name in names}
        for row, name in self._registered():
            found[name] = {"id": name, "object": "model", "created": int(row.created), "owned_by": "tuner"}
        return list(found.values())

    def _registered(self) -> Iterator[tuple[AdapterRow, str]]:
        try:
            rows = list_adapters()
        except TrackerError:  # the tracker is away: what was named still answers
            return
        for row in rows:
            if same_base(row.base, self.source.base):
                yield from ((row, f"{row.name}@{alias}") for alias in row.aliases)
                yield row, f"{row.name}/{row.version}"


def _is_adapter(name: str) -> bool:
    return (paths.home() / name / WEIGHTS).is_file()


def _unknown(name: str, why: str = "") -> ApiError:
    said = why or tr("GET /v1/models lists what there is.")
    return ApiError(
        404, tr("There is no model {name!r} here. {why}", name=name, why=said), "model", "model_not_found"
    )


@lru_cache(maxsize=64)
def _checksum(file: Path, _written: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
