"""Curves: from MLflow where it has them all, from the run's folder where it does not have them yet."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from tuner.tracking.ledger import is_mirrored, mlflow_id
from tuner.tracking.points import Series, tail, thinned
from tuner.tracking.reader import reader
from tuner.tracking.run import ENDED, Run
from tuner.tracking.store import TrackerError


def history(run_ids: Iterable[str], metric: str, max_points: int = 2000) -> dict[str, Series]:
    """Steps and values of one metric for each run that has it, thinned to `max_points` with its spikes kept."""
    found = {}
    for run_id in run_ids:
        steps, values = _series(run_id, metric)
        if len(steps):
            found[run_id] = thinned((steps, values), max_points)
    return found


def _series(run_id: str, metric: str) -> Series:
    run = Run(run_id)
    if _from_folder(run):
        return tail(run).series(metric)
    with suppress(TrackerError):
        return reader().history(mlflow_id(run_id), metric)
    return tail(run).series(metric)


def _from_folder(run: Run) -> bool:
    return run.exists and (run.status().state not in ENDED or not is_mirrored(run))


def metric_names(run_ids: Iterable[str]) -> list[str]:
    """Every metric that any of these runs has, sorted."""
    names: set[str] = set()
    settled = []
    for run_id in run_ids:
        run = Run(run_id)
        if _from_folder(run):
            names |= set(tail(run).names())
        else:
            settled.append(mlflow_id(run_id))
    if settled:
        with suppress(TrackerError):
            names |= set(reader().metric_names(settled))
    return sorted(names)
