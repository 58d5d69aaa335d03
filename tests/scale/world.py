"""A studio with years of work in it, written by SQL and plain files in a minute: runs, curves, adapters, data sets.

What the product would have left behind, row by row, so that only the reading is measured. It uses nothing of the product
but its schema and its config, and so fills a studio for any version of it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

from tuner.config.config import make
from tuner.config.writing import params, to_yaml
from tuner.tracking import store

STAGES = ("sft", "dpo", "kto")
ENDS = ("finished",) * 14 + ("failed",) * 3 + ("stopped",) * 2 + ("interrupted",)
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "interrupted": "KILLED"}
METRICS = ("loss", "grad_norm", "learning_rate", *(f"rewards/m{n}" for n in range(17)))
BEGAN = 1_700_000_000
"""Seconds since the epoch at which the first run was made; the others follow a minute apart."""


def run_id(number: int) -> str:
    return f"{(number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"


def name(number: int) -> str:
    """Fifteen of the first hundred runs and of the others every 40th are called beta something, and nothing else is."""
    every = 6 if number < 96 else 40
    return f"{'beta' if number % every == every - 1 else 'alpha'} run {number}"


def end(number: int) -> str:
    return ENDS[number * 7 % len(ENDS)]


def fill_runs(count: int, begin: int = 0) -> list[str]:
    """Ended runs with a folder each, all that the tracker has to know of them told: 20 last metrics, 40 params, a dozen
    tags. The ids, oldest first. Needs TUNER_HOME."""
    file = store.database()
    assert file is not None
    if not file.exists():
        store.new_database(file)
    wanted = range(begin, begin + count)
    told, texts = _configs()
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("PRAGMA synchronous=OFF")
        db.executemany(
            "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, "
            "artifact_uri, source_type, user_id) VALUES (?, ?, ?, ?, ?, 'active', 1, '/none', 'LOCAL', 'me')",
            ((run_id(i), name(i), STATUS[end(i)], _at(i), _at(i) + 50_000) for i in wanted),
        )
        db.executemany(
            "INSERT INTO params VALUES (?, ?, ?)",
            ((k, v, run_id(i)) for i in wanted for k, v in told[i % 21].items()),
        )
        db.executemany(
            "INSERT INTO tags VALUES (?, ?, ?)",
            ((k, v, run_id(i)) for i in wanted for k, v in _tags(i).items()),
        )
        db.executemany(
            "INSERT INTO latest_metrics VALUES (?, ?, ?, 100, 0, ?)",
            ((n, _value(i, place), _at(i), run_id(i)) for i in wanted for place, n in enumerate(METRICS)),
        )
    for i in wanted:
        _folder(i, texts[i % 21])
    return [run_id(i) for i in wanted]


@cache
def _configs() -> tuple[list[dict[str, str]], list[str]]:
    """The params and the text of each of 21 configs."""
    configs = [
        make(
            {
                "stage": STAGES[i % 3],
                "model_name_or_path": f"models/m{i % 7}",
                "dataset": f"set{i % 11},set{i % 3}",
            }
        )
        for i in range(21)
    ]
    return [_some(params(config)) for config in configs], [to_yaml(config.plain()) for config in configs]


def _some(every: dict[str, str]) -> dict[str, str]:
    """Forty of a config's params, those that lists ask for among them."""
    asked = ("stage", "model_name_or_path", "dataset", "finetuning_type")
    return {name: every[name] for name in dict.fromkeys([*asked, *sorted(every)[:36]])}


def _at(number: int) -> int:
    return (BEGAN + 60 * number) * 1000


def _value(number: int, place: int) -> float:
    return (number * 7919 + place * 104_729) % 10_007 / 10_007


def _tags(number: int) -> dict[str, str]:
    tags = {
        "state": end(number),
        "tuner.home": "here",
        "tuner.spark": json.dumps([_value(number, place) for place in range(32)]),
        "mlflow.source.name": "tuner",
        "mlflow.runName": name(number),
        "seconds/total": "48.5",
        "seconds/training": "40.5",
        "version/torch": "2.13.0",
        "version/transformers": "5.23.0",
        "tokens": str(1000 + number),
        "hardware": "2 cores",
    }
    if end(number) != "finished":
        tags |= {"reason": f"Ended at step {number % 100}.", "reason_code": "error"}
    if number % 25 == 3:
        tags |= {
            "mlflow.note.content": f"what was tried in {number}",
            "purpose": ("baseline", "try")[number % 2],
        }
    return tags


def _folder(number: int, config: str) -> None:
    """A run's folder as it stands after the tracker was told all."""
    from tuner import paths

    folder = paths.runs() / run_id(number)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    points = "".join(json.dumps({"step": step, "time": 0, "loss": 1 / step}) + "\n" for step in range(1, 6))
    (folder / "metrics.jsonl").write_text(points)
    began = BEGAN + 60 * number
    status = {
        "state": end(number),
        "step": 100,
        "total_steps": 100,
        "reason": "" if end(number) == "finished" else f"Ended at step {number % 100}.",
        "created": began,
        "started": began + 1,
        "ended": began + 50,
        "worked": 48.5,
        "seconds": {"training": 40.5},
        "extra": {"name": name(number), "tags": {}, "gpus": [], "use_cpu": True},
    }
    (folder / "status.json").write_text(json.dumps(status))
    ledger = {
        "mlflow_id": run_id(number),
        "described": True,
        "offset": len(points),
        "steps": {"loss": 5},
        "state": f"{end(number)}@{began + 50}",
        "facts": True,
    }
    (folder / "tracking.json").write_text(json.dumps(ledger))


def fill_curve(id: str, points: int, metric: str = "loss") -> None:
    """`points` points of one metric of one run, a spike among them, a step and a second apart: in the tracker, and in the
    run's folder where it has one."""
    spike = points // 3

    def value(step: int) -> float:
        return 9.5 if step == spike else (step * 7919 % 10_007) / 10_007

    def rows() -> Iterator[tuple[str, float, int, str, int]]:
        for step in range(points):
            yield metric, value(step), BEGAN * 1000 + step * 1000, id, step

    _lines(id, ({"step": step, "time": BEGAN + step, metric: value(step)} for step in range(points)))

    with closing(sqlite3.connect(store.database())) as db, db:  # type: ignore[arg-type]
        db.execute("PRAGMA synchronous=OFF")
        db.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, 0)", rows())
        db.execute("DELETE FROM latest_metrics WHERE run_uuid = ? AND key = ?", (id, metric))
        db.execute(
            "INSERT INTO latest_metrics VALUES (?, ?, ?, ?, 0, ?)",
            (metric, 0.5, (BEGAN + points) * 1000, points - 1, id),
        )


def _lines(id: str, rows: Iterable[dict[str, float]]) -> None:
    """What a run measured, as its worker wrote it, and the note that the tracker has all of it."""
    from tuner import paths

    folder = paths.runs() / id
    if folder.is_dir():
        with (folder / "metrics.jsonl").open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        ledger = json.loads((folder / "tracking.json").read_text())
        ledger["offset"] = (folder / "metrics.jsonl").stat().st_size
        (folder / "tracking.json").write_text(json.dumps(ledger))


def fill_adapters(versions: int, names: int = 20, files: Path | None = None) -> None:
    """Registered versions, spread over `names` models, each with a small file of weights."""
    from tuner import paths

    folder = files or paths.mlruns() / "artifacts" / "filled"
    now = int(time.time() * 1000)
    file = store.database()
    assert file is not None
    if not file.exists():
        store.new_database(file)
    with closing(sqlite3.connect(file)) as db, db:
        for n in range(names):
            _insert(db, "registered_models", name=f"adapter-{n}", creation_time=now, last_updated_time=now)
        for number in range(versions):
            model, version = f"adapter-{number % names}", number // names + 1
            place = folder / f"{model}-{version}"
            weights = place / "artifacts" / "adapter" / "adapter_model.safetensors"
            weights.parent.mkdir(parents=True)
            weights.write_bytes(b"0" * 64)
            _insert(
                db,
                "model_versions",
                name=model,
                version=version,
                creation_time=now + number,
                last_updated_time=now + number,
                source=f"models:/m-{number}",
                storage_location=str(place),
                run_id=run_id(number),
                current_stage="None",
                status="READY",
            )
            tags = {
                "base": f"models/m{number % 3}",
                "method": "lora",
                "stage": STAGES[number % 3],
                "rank": "8",
                "targets": "q_proj,v_proj",
                "size": "64",
                "sha256": f"{number:064x}",
                "datasets": f"set{number % 11}",
                "files": json.dumps({"adapter_model.safetensors": [64, "0" * 64]}),
            }
            for key, value in tags.items():
                _insert(db, "model_version_tags", name=model, version=version, key=key, value=value)


def _insert(db: sqlite3.Connection, table: str, **values: object) -> None:
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", list(values.values()))


def fill_datasets(folder: Path, sets: int, rows: int = 20, big: int = 0) -> None:
    """A catalog of `sets` small sets, and one of `big` rows where that is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, str]] = {}
    for number in range(sets):
        lines = ({"instruction": f"say {i}", "input": "", "output": f"{number} {i}"} for i in range(rows))
        _write(folder / f"set{number}.jsonl", lines)
        entries[f"set{number}"] = {"file_name": f"set{number}.jsonl"}
    if big:
        lines = ({"instruction": f"say {i}", "input": "", "output": "yes"} for i in range(big))
        _write(folder / "big.jsonl", lines)
        entries["big"] = {"file_name": "big.jsonl"}
    (folder / "dataset_info.json").write_text(json.dumps(entries))


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
