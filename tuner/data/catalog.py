"""The catalog: dataset_info.json as LLaMA-Factory reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem, nearest
from tuner.data.entries import CATALOG, COLUMNS, NOWHERE, TAGS, Entry
from tuner.text.lookup import ended, tr

FORMATTINGS = ("alpaca", "sharegpt", "openai", "decisions")
SOURCES = {
    "hf_hub_url": "hub",
    "ms_hub_url": "modelscope",
    "om_hub_url": "openmind",
    "script_url": "script",
    "cloud_file_name": "cloud",
    "file_name": "file",
}


def catalog_folder(dataset_dir: str | Path) -> Path:
    """The folder of a catalog; relative ones are relative to the studio's."""
    folder = Path(dataset_dir).expanduser()
    return folder if folder.is_absolute() else paths.home() / folder


def read_catalog(dataset_dir: str | Path) -> dict[str, Entry]:
    """Every entry of dataset_info.json, by name. Raises ConfigError with one sentence."""
    text = str(dataset_dir)
    if text == "ONLINE":
        return {}
    if text.startswith("REMOTE:"):
        from tuner.data.hub import catalog_text

        return _entries(
            catalog_text(text.removeprefix("REMOTE:")),
            NOWHERE,
            tr("{catalog} of {text}", catalog=CATALOG, text=text),
        )
    path = catalog_folder(dataset_dir) / CATALOG
    try:
        # An entry keeps what it has found out of its rows, which change without the catalog: everybody gets new ones.
        return {name: copy(one) for name, one in _of_file(path, paths.stamp(path)).items()}
    except FileNotFoundError as error:
        raise ConfigError(
            [
                Problem(
                    "dataset_dir",
                    tr("There is no {path}; point --dataset_dir at the folder that holds it.", path=path),
                )
            ]
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            [Problem("dataset_dir", tr("{path} cannot be read: {error}.", path=path, error=error))]
        ) from error


@lru_cache(maxsize=32)
def _of_file(path: Path, changed: paths.Stamp) -> Mapping[str, Entry]:
    """The entries of a catalog; kept until it is `changed`. Raises ConfigError and OSError."""
    return _entries(path.read_text(encoding="utf-8-sig"), path.parent, str(path))


def _entries(text: str, folder: Path, where: str) -> dict[str, Entry]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        said = getattr(error, "msg", "nested too deeply")
        raise ConfigError(
            [
                Problem(
                    "dataset_dir",
                    tr("{where} is not JSON: line {line}, {said}.", where=where, line=line, said=said),
                )
            ]
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(
            [Problem("dataset_dir", tr("{where} must hold one object, a data set a name.", where=where))]
        )
    return {name: entry(name, attributes, folder) for name, attributes in raw.items()}


def entry(name: str, attributes: Any, folder: Path) -> Entry:
    """One entry from its attributes. Raises ConfigError naming the data set and the key."""
    if not isinstance(attributes, dict):
        raise _wrong(name, tr("must be an object with a file_name or hf_hub_url"))
    source = next((key for key in SOURCES if attributes.get(key)), None)
    if source is None:
        raise _wrong(name, tr("names no source; give one of {sources}", sources=", ".join(SOURCES)))
    formatting = attributes.get("formatting", "alpaca")
    if formatting not in FORMATTINGS:
        raise _wrong(
            name,
            tr(
                "has formatting {formatting!r}, but it is one of {formattings}",
                formatting=formatting,
                formattings=", ".join(FORMATTINGS),
            ),
        )
    columns = _mapping(name, attributes, "columns", COLUMNS)
    tags = _mapping(name, attributes, "tags", TAGS)
    samples = attributes.get("num_samples")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise _wrong(
            name, tr("has num_samples {samples!r}, but it is a count of at least 1", samples=samples)
        )
    return Entry(
        name=name,
        dataset_dir=folder,
        origin=SOURCES[source],
        location=str(attributes[source]),
        formatting=formatting,
        ranking=bool(attributes.get("ranking", False)),
        subset=attributes.get("subset"),
        split=attributes.get("split") or "train",
        folder=attributes.get("folder"),
        num_samples=samples,
        columns=_columns(
            {"chosen": "chosen", "rejected": "rejected", **columns} if attributes.get("ranking") else columns
        ),
        tags={**TAGS, **{k: v for k, v in tags.items() if v}},
        named=frozenset(k for k, v in columns.items() if v),
    )


def _columns(named: Mapping[str, str | None]) -> dict[str, str | None]:
    """Defaults for the columns not named, except those whose default column has been given another meaning."""
    taken = set(named.values())
    return {k: named.get(k, None if v in taken else v) for k, v in COLUMNS.items()}


def _mapping(name: str, attributes: Mapping[str, Any], key: str, known: Iterable[str]) -> dict[str, Any]:
    given = attributes.get(key) or {}
    if not isinstance(given, dict):
        raise _wrong(name, tr("has {key} that are not an object", key=key))
    for part, value in given.items():
        if part not in known:
            like = nearest(part, known)
            raise _wrong(
                name,
                tr(
                    "has {key}.{part}, which is not known; did you mean {like}?",
                    key=key,
                    part=part,
                    like=like,
                )
                if like
                else tr("has {key}.{part}, which is not known", key=key, part=part),
            )
        if value is not None and not isinstance(value, str):
            raise _wrong(
                name, tr("has {key}.{part} {value!r}, but it is a name", key=key, part=part, value=value)
            )
    return dict(given)


def _wrong(name: str, said: str) -> ConfigError:
    return ConfigError(
        [Problem("dataset", ended(tr("{name} in {catalog} {said}", name=name, catalog=CATALOG, said=said)))]
    )


def pick(config: Config) -> list[Entry]:
    """The entries that a config trains on, in its order. Raises ConfigError."""
    return named(config.dataset, config.dataset_dir)


def pick_eval(config: Config) -> list[Entry]:
    """The entries that a config measures on besides rows kept aside."""
    return named(config.eval_dataset, config.dataset_dir) if config.eval_dataset else []


def named(names: Iterable[str], dataset_dir: str | Path) -> list[Entry]:
    """Entries by their names. Raises ConfigError with the nearest known name for each that is unknown."""
    if str(dataset_dir) == "ONLINE":
        return [Entry(name, NOWHERE, origin="hub", location=name) for name in names]
    known = read_catalog(dataset_dir)
    problems = [Problem("dataset", _unknown(name, known)) for name in names if name not in known]
    if problems:
        raise ConfigError(problems)
    return [known[name] for name in names]


def _unknown(name: str, known: Mapping[str, Entry]) -> str:
    if not known:
        return tr("The data set {name} is not in {catalog}, which holds none.", name=name, catalog=CATALOG)
    like = nearest(name, known)
    hint = (
        tr("did you mean {like}?", like=like)
        if like
        else tr("it holds {list}.", list=", ".join(list(known)[:8]))
    )
    return tr("The data set {name} is not in {catalog}; {hint}", name=name, catalog=CATALOG, hint=hint)
