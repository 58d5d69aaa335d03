"""Data sets of the hubs, through `datasets`, and what to say when they cannot be reached."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tuner import private
from tuner.config.knobs import ConfigError, Problem
from tuner.data.entries import CATALOG, Entry
from tuner.data.tables import A_TIME, WITH_BYTES, table_rows
from tuner.redact import redact
from tuner.text.lookup import tr

PATIENCE = 5.0
"""Seconds to wait for a hub to answer at all."""


def catalog_text(repository: str) -> str:
    """dataset_info.json of a hub data set repository. Raises ConfigError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        with (
            _cache_only_when_away(),
            open(hf_hub_download(repository, CATALOG, repo_type="dataset"), encoding="utf-8") as file,
        ):
            return file.read()
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _away(f"REMOTE:{repository}", error) from error


def hub_records(entry: Entry, streaming: bool = False) -> Iterator[tuple[int, Any]]:
    """The rows of a set that is not on this machine, numbered from 1. Raises ConfigError."""
    if entry.origin not in ("hub", "modelscope", "openmind"):
        sentence = tr(
            "{name} comes from {origin} storage; copy it here and give its file_name.",
            name=entry.name,
            origin=entry.origin,
        )
        raise ConfigError([Problem("dataset", sentence)])
    try:
        # As arrow, so that rows are made here as those of files are: `datasets` itself leaves in what pads a table.
        step = WITH_BYTES if entry.pictures else A_TIME
        tables = _load(entry, streaming).with_format("arrow").iter(batch_size=step)
        yield from enumerate((row for table in tables for row in table_rows(table)), start=1)
    except ConfigError:
        raise
    except Exception as error:  # datasets lets through whatever its network, parsers and scripts raise
        raise _away(entry.source, error) from error


def _load(entry: Entry, streaming: bool) -> Any:
    with private.as_the_person():  # several people may share the cache
        return _modelscope(entry) if entry.origin != "hub" else _hugging_face(entry, streaming)


def _hugging_face(entry: Entry, streaming: bool) -> Any:
    import datasets

    with _cache_only_when_away():
        return datasets.load_dataset(
            entry.location, name=entry.subset, data_dir=entry.folder, split=entry.split, streaming=streaming
        )


def _modelscope(entry: Entry) -> Any:
    try:
        from modelscope import MsDataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        sentence = tr(
            "{name} is on {origin}; install its library, or give an hf_hub_url.",
            name=entry.name,
            origin=entry.origin,
        )
        raise ConfigError([Problem("dataset", sentence)]) from error
    return MsDataset.load(
        dataset_name=entry.location,
        subset_name=entry.subset,
        data_dir=entry.folder,
        split=entry.split,
        token=os.environ.get("MODELSCOPE_API_TOKEN"),
    ).to_hf_dataset()


def cached(entry: Entry) -> bool:
    """Whether some of a hub set was fetched to this machine before."""
    import huggingface_hub.constants as constants

    flat = entry.location.replace("/", "--")
    home = Path(constants.HF_HOME)
    made = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    places = (Path(constants.HF_HUB_CACHE) / f"datasets--{flat}", made / flat.replace("--", "___").lower())
    return any(place.is_dir() for place in places)


def reachable() -> bool:
    """Whether the hub's machine answers; behind a proxy that is taken for granted."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


@contextmanager
def _cache_only_when_away() -> Iterator[None]:
    """Look in the cache only while the hub cannot be reached; its library would try again for half a minute."""
    import huggingface_hub.constants as constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _away(source: str, error: Exception) -> ConfigError:
    said = str(error).strip().splitlines()
    why = redact(said[0])[:120] if said else type(error).__name__
    sentence = tr(
        "{source} cannot be fetched from its hub ({why}); check the network and the name, "
        "or download it and give its file_name.",
        source=source,
        why=why,
    )
    return ConfigError([Problem("dataset", sentence)])
