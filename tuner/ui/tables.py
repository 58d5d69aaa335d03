"""Rows for tables: runs in the history, figures and knobs of runs that are compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tuner.config.config import KNOBS
from tuner.config.writing import differing
from tuner.jobs import room
from tuner.runs import inputs
from tuner.runs.curve import Series
from tuner.runs.events import BY
from tuner.text.lookup import mark, tr
from tuner.text.message import plain, render
from tuner.tracking.rows import RunRow
from tuner.ui.chart import Chart
from tuner.ui.chart_table import is_scored, of_metric
from tuner.ui.picking import Column
from tuner.ui.words import NONE, count, date, duration, english_label, look, number, share, size, staged

Table = list[dict[str, Any]]
_MARKS = {
    "queued": "◷",
    "preparing": "◔",
    "running": "▶",
    "stopping": "◼",
    "finished": "✓",
    "failed": "✕",
    "stopped": "◼",
    "interrupted": "◇",
}


def history(rows: Sequence[RunRow], scored: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """A row a run, by id, with the columns of `history_columns`; `scored` is what evaluations found, by run id."""
    return {
        row.id: {
            "Name": row.name,
            "State": f"{_MARKS.get(row.state, '')} {look(row.state).word}".strip(),
            "Curve": list(row.spark),
            "Reward": number(row.metrics.get("reward")),
            "Last loss": number(row.metrics.get("loss")),
            "Score": scored.get(row.id) or _held_out(row),
            "Stage": staged(row.stage),
            "Model": row.model.rsplit("/", 1)[-1],
            "Data sets": ", ".join(row.datasets),
            "Duration": duration(row.duration),
            "Disk": size(room.of_run(row.run).total) if row.local else NONE,
            "Created": date(row.created),
            "By": row.facts.get(BY, ""),
            **{english_label(name): row.params.get(name, NONE) for name in PARAMETERS},
            "Tags": [f"{k}: {v}" if v else k for k, v in row.tags.items()],
            "Note or reason": row.note or row.reason,
        }
        for row in rows
    }


PARAMETERS = ("learning_rate", "lora_rank", "num_train_epochs", "per_device_train_batch_size", "cutoff_len")
"""Knobs that the history can have as columns."""
HISTORY = (
    Column(mark("Name"), "link"),
    Column(mark("State")),
    Column(mark("Curve"), "spark"),
    Column(mark("Last loss"), "figure"),
    Column(mark("Stage")),
    Column(mark("Model")),
    Column(mark("Data sets")),
    Column(mark("Duration"), "figure"),
    Column(mark("Disk"), "figure"),
    Column(mark("Created")),
    Column(mark("Tags"), "tags"),
    Column(mark("Note or reason"), width=260),
)
"""The history's columns."""


def history_columns(rows: Sequence[RunRow], scored: Mapping[str, str]) -> tuple[Column, ...]:
    """Those of `HISTORY`; the reward, where a run has one; what evaluations found, where one did; and who launched each
    run, where people log in."""
    found = list(HISTORY)

    def before(name: str, column: Column) -> None:
        found.insert([one.name for one in found].index(name), column)

    if any("reward" in row.metrics for row in rows):
        before("Last loss", Column("Reward", "figure"))
    if any(row.facts.get(BY) for row in rows):
        before("Tags", Column("By"))
    if scored or any(_held_out(row) != NONE for row in rows):
        before("Stage", Column("Score"))
    return tuple(found)


def _held_out(row: RunRow) -> str:
    """The score on held-out questions after training; exact match is none."""
    after = row.metrics.get("score/after")
    return share(after) if after is not None and is_scored(row.metrics) else NONE


def every_column(shown: Sequence[Column]) -> tuple[Column, ...]:
    """Those of a list, and parameters that a person may ask for as well."""
    return (*shown[:-2], *(Column(english_label(name), "figure") for name in PARAMETERS), *shown[-2:])


def lower_is_better(metric: str) -> bool:
    """Which way a metric improves, by its name."""
    lower = ("loss", "zero_std", "clipped_ratio", "step_time")
    return any(part in metric for part in lower) or metric in ("grad_norm", "kl", "entropy")


def outcomes(
    histories: Mapping[str, Mapping[str, Series]],
    names: Mapping[str, str],
    baseline: str,
    charts: Mapping[str, Chart] = MappingProxyType({}),
    judged: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Table:
    """Last and best of each metric, a column a run, each held against the baseline's.

    `histories` goes metric -> run id -> (steps, values); `names` run id -> name; `charts` are those of metrics that are
    not shown as usual; `judged` the ids that are held against the baseline, for metrics where not all can be.
    """
    table = []
    for metric, runs in histories.items():
        chart = charts.get(metric) or of_metric(metric)
        low = lower_is_better(metric)
        ends = {i: (float(v[-1]), float(v.min() if low else v.max())) for i, (_, v) in runs.items()}
        for place, said in enumerate((tr("last"), tr("best"))):
            row = {"Metric": chart.title, "": said}
            for run_id, name in names.items():
                head = tr("{name} (baseline)", name=name) if run_id == baseline else name
                own = ends.get(run_id)
                origin = ends.get(baseline) if run_id in judged.get(metric, names) else None
                row[head] = _held(own and own[place], origin and origin[place], low, chart)
            table.append(row)
    return table


def _held(value: float | None, origin: float | None, low: bool, chart: Chart) -> str:
    """A figure with its unit, and how far it is from the baseline's; the triangle points to better or worse."""
    if value is None:
        return NONE
    said = (
        f"{value * chart.scale:.1f}%"
        if chart.unit == "%"
        else f"{number(value * chart.scale)} {chart.unit}".strip()
    )
    if origin is None or value == origin:
        return said
    mark = tr("▲ better by") if (value < origin) == low else tr("▼ worse by")
    return f"{said}   {mark} {number(abs(value - origin) * chart.scale)}"


def knobs(rows: Sequence[RunRow], names: Mapping[str, str]) -> Table:
    """The knobs in which the runs differ, a column a run."""
    params = {row.id: dict(row.params) for row in rows}
    own = {"run_name", "output_dir"}
    return [
        {
            "Parameter": name,
            **{names[run_id]: params[run_id].get(name) or tr("empty") for run_id in params},
            "What it does": tr(KNOBS[name].help) if name in KNOBS else "",
        }
        for name in differing(params.values())
        if name not in own
    ]


def data(rows: Sequence[RunRow], names: Mapping[str, str]) -> Table:
    """What each run read of each data set: rows, and the beginning of the files' hash. Only where runs differ in it."""
    read = {row.id: {one.name: one for one in inputs.recorded(row.run)} for row in rows if row.local}
    every = dict.fromkeys(name for found in read.values() for name in found)
    table = []
    for name in every:
        told = {i: _input(read.get(i, {}).get(name)) for i in names}
        if len(set(told.values())) > 1:
            table.append({"Data set": name, **{names[i]: said for i, said in told.items()}})
    return table


def _input(one: inputs.InputRow | None) -> str:
    return f"{count(one.rows, 'row')} · {one.digest[:8]}" if one else NONE


def costs(rows: Sequence[RunRow], names: Mapping[str, str]) -> Table:
    """What each run took."""
    return [
        {
            "Run": names[row.id],
            "State": look(row.state).word,
            "Duration": duration(row.duration),
            "Tokens": f"{int(float(row.facts['tokens'])):,}" if row.facts.get("tokens") else NONE,
            "Data sets": ", ".join(row.datasets),
            "Machine": render(plain(row.facts.get("hardware", NONE))),
        }
        for row in rows
    ]
