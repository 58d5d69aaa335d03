"""Tokenised rows on disk (`tokenized_path`), laid out as `datasets` saves them, so that either tool reads the other's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner import paths
from tuner.config.config import Config
from tuner.config.kinds import DECIDING, LABELLED, REWARDED, TOKENS, named
from tuner.config.knobs import ConfigError, Problem
from tuner.data.encode import MASKED
from tuner.data.rows import Rows
from tuner.data.tables import table_batches
from tuner.text.lookup import tr

ABOUT = "tuner.json"
STAGES_OF = {
    "labels": TOKENS,
    "chosen_ids": named(where=lambda kind: kind.rows == "pairs"),
    "completion_ids": LABELLED,
    "question_ids": DECIDING,
    "asked": REWARDED,
}
"""Whose rows have such a column; the first that a row has says it."""


def folder_of(config: Config) -> Path | None:
    """The folder of a config's tokenised rows; relative ones are relative to the studio's."""
    if not config.tokenized_path:
        return None
    folder = Path(config.tokenized_path).expanduser()
    return folder if folder.is_absolute() else paths.home() / folder


def holds_rows(folder: Path) -> bool:
    """Whether there are tokenised rows to read."""
    return folder.is_dir() and any(folder.rglob("*.arrow"))


def ours(folder: Path) -> bool:
    """Whether this studio wrote the folder, and may replace it."""
    return (folder / ABOUT).is_file()


def claim(folder: Path) -> None:
    """Raise ConfigError unless rows may be written here: nothing lies here yet, or only what this studio wrote."""
    if folder.exists() and not folder.is_dir():
        raise _unfit(folder, tr("is a file"))
    if folder.is_dir() and any(folder.iterdir()) and not ours(folder):
        raise _unfit(folder, tr("holds files that this studio did not write, which are left alone"))


def write(folder: Path, parts: Mapping[str, Sequence[dict[str, Any]]], about: Mapping[str, Any]) -> None:
    """Write rows by part ("train", "validation", ...); the folder appears whole or not at all, in place of an older one."""
    import shutil

    claim(folder)
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, rows in parts.items():
        _write_part(aside / name, rows)
    (aside / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}), encoding="utf-8")
    (aside / ABOUT).write_text(json.dumps(dict(about)), encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.is_dir():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _written(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a table holds it: what was asked is text, for no two rows' tools and columns need to be alike."""
    return row | {"asked": json.dumps(row["asked"], default=str)} if "asked" in row else row


def _write_part(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa

    folder.mkdir()
    schema = None
    writer = None
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink:
        for start in range(0, len(rows), 1000):
            part = [_written(row) for row in rows[start : start + 1000]]
            if schema is None:
                schema = _schema(pa, part)
            table = pa.Table.from_pylist(part, schema=schema)
            writer = writer or pa.ipc.new_stream(sink, schema)
            writer.write_table(table)
        if writer:
            writer.close()
    (folder / "dataset_info.json").write_text("{}", encoding="utf-8")
    state: dict[str, Any] = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
        "_fingerprint": hashlib.sha256(str(folder).encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")


def _schema(pa: Any, part: Sequence[dict[str, Any]]) -> Any:
    """The columns of rows; pictures are paths, also where the first rows have none."""
    found = pa.Table.from_pylist(part).schema
    at = found.get_field_index("images")
    return found if at < 0 else found.set(at, pa.field("images", pa.list_(pa.string())))


def read(folder: Path, config: Config) -> tuple[Rows, dict[str, Rows], dict[str, Any]]:
    """The rows to train on, those to measure on, and what was written down of them.

    Raises ConfigError when they were made for another stage.
    """
    names = sorted(p.parent.relative_to(folder).as_posix() for p in folder.rglob("*.arrow"))
    parts = {name: _read_part(folder / name) for name in dict.fromkeys(names)}
    train = parts.pop("train", None) or parts.pop(".", None)
    if train is None or not len(train):
        raise _unfit(folder, tr("holds no part called train"))
    stages = next((stages for key, stages in STAGES_OF.items() if key in train.keys), (config.stage,))
    if config.stage not in stages:
        raise _unfit(
            folder,
            tr(
                "holds rows for stage {stages}, and this run is {stage}",
                stages=tr(" or ").join(stages),
                stage=config.stage,
            ),
        )
    evaluation = {"" if name in ("validation", "test") else name: rows for name, rows in parts.items()}
    about = folder / ABOUT
    return train, evaluation, json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}


def _unfit(folder: Path, said: str) -> ConfigError:
    return ConfigError(
        [
            Problem(
                "tokenized_path",
                tr(
                    "{folder} {said}; give an empty folder, or leave --tokenized_path empty.",
                    folder=folder,
                    said=said,
                ),
            )
        ]
    )


def _read_part(folder: Path) -> Rows:
    rows = Rows()
    for path in sorted(folder.glob("*.arrow")):
        for record in _records(path):
            rows.append(_ours(record))
    return rows


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for batch, _ in table_batches(path, "arrow"):
        yield from batch


def _ours(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row under our names, also when LLaMA-Factory wrote it."""
    row = _named(record)
    return row | ({"images": tuple(record["images"] or ())} if "images" in record else {})


def _named(record: Mapping[str, Any]) -> dict[str, Any]:
    if "chosen_input_ids" in record:
        prompt, chosen = _apart(record["chosen_input_ids"], record["chosen_labels"])
        _, rejected = _apart(record["rejected_input_ids"], record["rejected_labels"])
        return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    if "kto_tags" in record:
        prompt, answer = _apart(record["input_ids"], record["labels"])
        return {"prompt_ids": prompt, "completion_ids": answer, "label": bool(record["kto_tags"])}
    if "asked" in record:
        return {**record, "asked": json.loads(record["asked"])}
    if "prompt_ids" in record:
        return dict(record)
    ids = record["input_ids"]
    row = {"input_ids": ids, "labels": record.get("labels") or ids}
    return row | ({"seq_lengths": record["seq_lengths"]} if record.get("seq_lengths") else {})


def _apart(ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Prompt and answer, parted where the labels begin."""
    cut = next((i for i, label in enumerate(labels) if label != MASKED), len(labels))
    return list(ids[:cut]), list(ids[cut:])
