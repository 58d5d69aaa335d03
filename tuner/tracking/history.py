"""Curves: from the run's folder, which is the truth; from the tracker, of a run or a metric that no folder here has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tuner import paths
from tuner.runs.curve import Curve, Series, thinned
from tuner.runs.points import keep, recall, remember, remembered, tail
from tuner.runs.run import Run
from tuner.runs.status import ENDED
from tuner.tracking.reader import Reader, reader
from tuner.tracking.store import TrackerError, tracking_uri
from tuner.tracking.sync_state import is_mirrored, mlflow_id

WORTH_KEEPING = 20_000
"""Points that take longer to ask for again than to keep what came of them."""


def history(run_ids: Iterable[str], metric: str, max_points: int = 2000) -> dict[str, Series]:
    """Steps and values of one metric for each run that has it, thinned to `max_points` with its spikes kept."""
    found = {}
    for run_id in run_ids:
        steps, values = _curve(run_id, metric).series()
        if len(steps):
            found[run_id] = thinned((steps, values), max_points)
    return found


def means(run_ids: Iterable[str], metric: str) -> dict[str, Series]:
    """As `history`, but of each stretch of a long curve the mean: what is to be smoothed."""
    curves = {run_id: _curve(run_id, metric).means() for run_id in run_ids}
    return {run_id: curve for run_id, curve in curves.items() if len(curve[0])}


def _curve(run_id: str, metric: str) -> Curve:
    run = Run(run_id)
    if run.exists and (own := tail(run).curve(metric)):
        return own
    with suppress(TrackerError):
        return _recorded(mlflow_id(run_id), metric)
    return Curve()


class Recorded(NamedTuple):
    """A curve as the tracker has it."""

    stamp: str
    curve: Curve

    @property
    def size(self) -> int:
        return self.curve.rows.nbytes + 4096


def _recorded(id: str, metric: str) -> Curve:
    """Out of the tracker, once for as long as it has no other points. `id` is MLflow's. Raises TrackerError."""
    source = reader()
    stamp, key = source.stamp(id, metric), ("tracker", tracking_uri(), id, metric)
    known = remembered(key)
    if not (isinstance(known, Recorded) and stamp and known.stamp == stamp):
        known = Recorded(stamp, _kept(source, stamp, key))
        remember(key, known)
    return known.curve


def _kept(source: Reader, stamp: str, key: tuple[str, ...]) -> Curve:
    file, (_, _, id, metric) = _file(key), key
    if stamp and (found := recall(file, stamp)) and metric in found:
        return found[metric]
    curve, count = Curve(), 0
    for steps, values in source.history(id, metric):
        curve.add(steps, values)
        count += len(steps)
    if stamp and count >= WORTH_KEEPING:
        with suppress(OSError):
            file.parent.mkdir(exist_ok=True)
        keep(file, stamp, {metric: curve})
    return curve


def _file(key: tuple[str, ...]) -> Path:
    return paths.mlruns() / "curves" / hashlib.sha256("\0".join(key).encode()).hexdigest()[:32]


def metric_names(run_ids: Iterable[str]) -> list[str]:
    """Every metric that any of these runs has, sorted."""
    names: set[str] = set()
    settled = []
    for run_id in run_ids:
        run = Run(run_id)
        if run.exists and (run.status().state not in ENDED or not is_mirrored(run)):
            names |= set(tail(run).names())
        else:
            settled.append(mlflow_id(run_id))
    if settled:
        with suppress(TrackerError):
            names |= set(reader().metric_names(settled))
    return sorted(names)
