"""What evaluations measured, kept in MLflow at the versions that were measured: a tag a data set, the newest one counts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuner.data.decisions import MEASURED, REPORT
from tuner.runs.metrics import metric_name
from tuner.runs.run import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "evaluation/"
"""What the tags' names begin with; the data sets follow."""
RESULTS = "evaluation.json"
LONGEST_TAG = 5000


@dataclass(frozen=True)
class Measured:
    """A version's metrics on `dataset`, beside those of its base where that was measured in the same run.

    `rows` were asked, `at` is in seconds since the epoch.
    """

    dataset: str
    run_id: str = ""
    rows: int = 0
    at: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    base: Mapping[str, float] = field(default_factory=dict)


def results(run: Run) -> Mapping[str, Any]:
    """What an evaluation wrote about its versions; empty for another run, or one that has not got that far."""
    with suppress(OSError, ValueError):
        found = json.loads((run.folder / "output" / RESULTS).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def tell_versions(client: MlflowClient, run: Run) -> None:
    """Write an ended evaluation's metrics at the registered versions that it measured. Repeating it changes nothing."""
    found = results(run)
    key = TAG + metric_name(_dataset(found).replace("/", "-"))  # MLflow takes no comma in it
    for name, version, told in _told(found, run):
        if _exists(client, name, version):
            client.set_model_version_tag(name, version, key, told)


def _told(found: Mapping[str, Any], run: Run) -> Iterator[tuple[str, str, str]]:
    versions = found.get("versions", ())
    base: Mapping[str, float] = next((one["metrics"] for one in versions if one["label"] == "base"), {})
    for one in versions:
        if one.get("name"):
            told = {
                "dataset": _dataset(found),
                "run_id": run.id,
                "rows": found.get("rows", 0),
                "at": run.status().ended,
            }
            told |= {"metrics": one["metrics"], "base": base}
            while len(text := json.dumps(told)) > LONGEST_TAG:  # the run has all of them
                told["metrics"] = dict(list(told["metrics"].items())[:-1])
                told["base"] = {name: value for name, value in base.items() if name in told["metrics"]}
            yield one["name"], str(one["version"]), text


def of_decisions(run: Run) -> dict[str, str]:
    """The tag of a version that learnt decisions, with what its own run measured; none for another version."""
    file = run.folder / REPORT
    with suppress(OSError, ValueError):
        report = json.loads(file.read_text(encoding="utf-8"))
        values = run.values()
        dataset = ",".join(values.get("eval_dataset") or values.get("dataset") or ())[:200]
        told = {
            "dataset": dataset,
            "run_id": run.id,
            "rows": report["records"],
            "at": file.stat().st_mtime,
            "metrics": {
                f"decisions/{name}": value for name, value in report["after"].items() if name in MEASURED
            },
        }
        return {TAG + metric_name(dataset.replace("/", "-")): json.dumps(told)[:LONGEST_TAG]}
    return {}


def _dataset(found: Mapping[str, Any]) -> str:
    return ",".join([*found.get("dataset", ()), *found.get("tasks", ())])[:200]


def _exists(client: MlflowClient, name: str, version: str) -> bool:
    """Whether the version is still there: it may have been deleted since."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def of_tags(tags: Mapping[str, str]) -> tuple[Measured, ...]:
    """A version's evaluations, the newest first; what a later studio wrote is left out as far as it is unknown."""
    found = [_read(key.removeprefix(TAG), text) for key, text in tags.items() if key.startswith(TAG)]
    return tuple(sorted((one for one in found if one), key=lambda one: -one.at))


def _read(dataset: str, text: str) -> Measured | None:
    with suppress(ValueError, TypeError, AttributeError):
        given = json.loads(text)
        return Measured(
            str(given.get("dataset") or dataset),
            str(given.get("run_id") or ""),
            int(given.get("rows") or 0),
            float(given.get("at") or 0),
            _numbers(given.get("metrics")),
            _numbers(given.get("base")),
        )
    return None


def _numbers(given: Any) -> dict[str, float]:
    return {str(name): float(value) for name, value in (given or {}).items()}
