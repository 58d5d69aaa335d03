"""Data sets of the hubs, through `datasets`, and what to say when they cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuner.config.knobs import ConfigError, Problem
from tuner.data.catalog import CATALOG, Entry


def catalog_text(repository: str) -> str:
    """dataset_info.json of a hub data set repository. Raises ConfigError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        with open(hf_hub_download(repository, CATALOG, repo_type="dataset"), encoding="utf-8") as file:
            return file.read()
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _away(f"REMOTE:{repository}", error) from error


def hub_records(entry: Entry, streaming: bool = False) -> Iterator[tuple[int, Any]]:
    """The rows of a set that is not on this machine, numbered from 1. Raises ConfigError."""
    if entry.origin not in ("hub", "modelscope", "openmind"):
        raise ConfigError(
            [
                Problem(
                    "dataset",
                    f"{entry.name} comes from {entry.origin} storage; copy it here and give its file_name.",
                )
            ]
        )
    yield from enumerate(_stream(entry, streaming), start=1)


def _stream(entry: Entry, streaming: bool) -> Iterator[dict[str, Any]]:
    try:
        yield from _load(entry, streaming)
    except ConfigError:
        raise
    except Exception as error:  # datasets lets through whatever its network, parsers and scripts raise
        raise _away(entry.source, error) from error


def _load(entry: Entry, streaming: bool) -> Any:
    if entry.origin != "hub":
        return _modelscope(entry)
    import datasets

    return datasets.load_dataset(
        entry.location, name=entry.subset, data_dir=entry.folder, split=entry.split, streaming=streaming
    )


def _modelscope(entry: Entry) -> Any:
    try:
        from modelscope import MsDataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ConfigError(
            [
                Problem(
                    "dataset",
                    f"{entry.name} is on {entry.origin}; install its library, or give an hf_hub_url.",
                )
            ]
        ) from error
    return MsDataset.load(
        dataset_name=entry.location, subset_name=entry.subset, data_dir=entry.folder, split=entry.split
    ).to_hf_dataset()


def _away(source: str, error: Exception) -> ConfigError:
    said = str(error).strip().splitlines()
    why = said[0][:200] if said else type(error).__name__
    return ConfigError(
        [
            Problem(
                "dataset",
                f"{source} cannot be fetched from its hub ({why}); check the network and the name, "
                "or download it and give its file_name.",
            )
        ]
    )
