"""A run's page, piece by piece: where it stands, its charts, log, config and checkpoints."""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import streamlit as st

from tuner.config.config import KNOBS
from tuner.config.kinds import KINDS, default_of, trains
from tuner.config.knobs import ConfigError
from tuner.config.reading import stored
from tuner.config.spelling import word
from tuner.config.writing import command, to_yaml
from tuner.jobs import planning, queue, watch
from tuner.runs import checkpoints, diverging, events
from tuner.runs.points import Tail, tail
from tuner.runs.run import Run
from tuner.runs.status import ENDED, Status
from tuner.text.lookup import language, mark, tr
from tuner.text.message import render, term
from tuner.tracking import store
from tuner.tracking.duration_estimate import time_left
from tuner.tracking.runs import get_row
from tuner.tracking.store import TrackerError
from tuner.ui import axis, chart_table, charts, history, live, plan_view, rollouts, run_actions, theme, writes
from tuner.ui.chart import Chart, Measured
from tuner.ui.words import (
    NONE,
    ago,
    count,
    date,
    duration,
    look,
    number,
    safe,
    sentence,
    size,
    value,
)
from tuner.ui.words import (
    stage as stage_word,
)

LOG_LINES = 400
AS_NEW = 2.5
"""Seconds for which charts that were made for one session serve the others too, whatever was measured since."""
MOST_SHARED = 32
_sharing = threading.Lock()
FEW_ROWS = 15
"""A table up to this long is shown whole."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # a terminal's, meaningless on a page


def lead(values: Mapping[str, Any]) -> str:
    """What the run does, to what, with what; `values` are its config's."""
    model = safe(value(values.get("model_name_or_path")))
    stage = str(values.get("stage"))
    if not trains(stage):
        return (
            tr("{label} of {model}", label=stage_word(stage), model=model)
            if values.get("model_name_or_path")
            else stage_word(stage)
        )
    if values.get("do_train"):
        return tr(
            "{stage} of {model} on {values}",
            stage=stage_word(stage) if stage in KINDS else tr("Training"),
            model=model,
            values=safe(value(values.get("dataset"))),
        )
    what = tr("Answers") if values.get("do_predict") else tr("Evaluation")
    return tr(
        "{what} of {model} on {values}",
        what=what,
        model=model,
        values=safe(value(values.get("eval_dataset") or values.get("dataset"))),
    )


# --- where it stands -----------------------------------------------------------------------------------------------


def standing(run: Run) -> None:
    """The state in words, progress, and the figures that matter while it runs."""
    status = run.status()
    seen = look(status.state)
    before = st.session_state.get("watched")
    st.session_state["watched"] = (run.id, status.state)
    if before and before != (run.id, status.state) and before[0] == run.id:
        st.rerun()  # the whole page once more: other buttons belong to this state, and an ended run stops redrawing
    with theme.card("standing"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.badge(seen.word, icon=seen.icon, color=seen.colour)
            st.markdown(safe(sentence(status, _place(run, status))))
        if status.total_steps or status.part:
            st.progress(*_progress(status))
        _figures(run, status)
        _notices(run, status)


def _place(run: Run, status: Status) -> int | None:
    if status.state != "queued":
        return None
    return next((row.position for row in queue.queue() if row.id == run.id), None)


def _progress(status: Status) -> tuple[float, str]:
    if status.total_steps:
        return status.share, tr(
            "Step {step} of {total_steps}", step=count(status.step), total_steps=count(status.total_steps)
        )
    return status.part, safe(render(status.doing) or term("phase", status.phase))


def _figures(run: Run, status: Status) -> None:
    last = tail(run).last()
    figures = {
        **({"Reward": number(last["reward"])} if "reward" in last else {}),
        "Loss": number(last.get("loss")),
        "Elapsed": duration(status.elapsed),
        "Time left": _about(time_left(run, status)),
        "Epoch": number(round(status.epoch, 2)) if status.epoch else number(None),
        "Tokens": count(status.tokens) if status.tokens else number(None),
        "Tokens per second": number(status.tokens_per_second or None),
    }
    if peak := status.memory_peak:
        figures[mark("Peak memory")] = size(peak)
    if status.state in ENDED or not trains(
        str(run.values().get("stage"))
    ):  # what has no figure by now will never have one
        figures = {name: figure for name, figure in figures.items() if figure != NONE}
    with st.container(key="figures-standing"), st.grid("auto", min_column_width=130, gap="small") as grid:
        for name, figure in figures.items():
            grid.metric(tr(name), safe(figure), help=_estimated(run) if name == "Peak memory" else None)


def _about(seconds: float | None) -> str:
    """A guess, told as one: of the first minutes' pace nobody knows the seconds of an hour."""
    return duration(seconds) if seconds is None else f"≈ {duration(seconds)}"


def _estimated(run: Run) -> str:
    plan = planning.of(run)
    expected = plan.memory.total if plan and plan.memory else 0
    told = tr(" Planned: {expected}.", expected=size(expected)) if expected else ""
    return tr(
        "Peak memory: allocated on a GPU, or of the whole process on a CPU.{told}",
        told=told,
    )


def _notices(run: Run, status: Status) -> None:
    if name := status.adapter:
        version = (
            tr(", version {adapter_version}", adapter_version=status.adapter_version)
            if status.adapter_version
            else ""
        )
        st.page_link(
            "pages/adapters.py",
            label=tr("Adapter {name}{version}", name=safe(name), version=version),
            icon=":material/layers:",
        )
    if said := watch.stalled(run):
        st.warning(safe(said), icon=":material/hourglass_disabled:")
    rollouts.notice(run)
    if diverging.noted(run):
        st.warning(tr(live.DIVERGING), icon=":material/trending_up:")
    if status.tracking:
        st.caption(f":material/cloud_off: {safe(status.tracking)}")
    for note in status.notes:
        st.caption(f":material/info: {safe(note)}")


# --- charts --------------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """A chart of a run as every session shows it."""

    chart: Chart
    latest: str
    picture: charts.Picture


def curves(run: Run) -> None:
    """The charts of the run's stage, growing in place."""
    stage = str(run.values().get("stage") or KNOBS["stage"].default)
    ended = run.status().state in ENDED
    drawn = _drawn(run, stage, ended, axis.chosen())
    if not drawn:
        theme.empty("show_chart", tr("No data"), tr("The run ended before its first logging step."))
    with st.grid(3, min_column_width=265, gap="small"):
        for one in drawn:
            with theme.card(f"chart-{one.chart.key}", gap="xsmall"):
                _heading(one)
                charts.show(one.picture)


def _heading(one: Drawn) -> None:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{one.chart.title}**", help=one.chart.help, width="content")
        st.markdown(f":gray[{one.latest}]", width="content")


_shared: OrderedDict[tuple[object, ...], tuple[object, float, tuple[Drawn, ...]]] = OrderedDict()


def _drawn(run: Run, *how: Any) -> tuple[Drawn, ...]:
    """The charts as they are now, or were a moment ago: made once, however many sessions look at them."""
    key, points = (str(run.folder), language(), *how), tail(run)
    with _sharing:
        mark, till, drawn = _shared.get(key, (None, 0.0, ()))
        if mark != points.mark and time.monotonic() >= till:
            drawn = _made(run, points, *how)
            _shared[key] = points.mark, time.monotonic() + AS_NEW, drawn
        _shared.move_to_end(key)
        while len(_shared) > MOST_SHARED:
            _shared.popitem(last=False)
    return drawn


def _made(run: Run, points: Tail, stage: str, ended: bool, how: axis.Options) -> tuple[Drawn, ...]:
    found = {name: curve for name in points.names() if (curve := points.curve(name))}
    known = axis.scale_of(run.status()).of(how.axis)
    along = how.axis if known else axis.STEP
    measured = {name: curve.series() for name, curve in found.items()}
    means = {name: curve.means() for name, curve in found.items()}
    by = known or 1.0
    every = chart_table.charts_of(stage, measured)
    # While it runs each chart has its place from the start; what never got a point is left out in the end.
    return tuple(
        Drawn(
            chart,
            chart_table.latest(chart, measured),
            _picture(run, chart, measured, means, how)
            if chart.axis != tr("step")  # the machine is measured by the clock
            else _picture(
                run, axis.titled(chart, along), axis.stretched(measured, by), axis.stretched(means, by), how
            ),
        )
        for chart in chart_table.shown(every, measured, ended=ended)
    )


def _picture(
    run: Run, chart: Chart, measured: Measured, means: Measured, how: axis.Options
) -> charts.Picture:
    figure = charts.figure(chart, measured, means, smoothing=how.smoothing, log=how.log, clip=how.clip)
    lines = {line.label: measured[line.metric] for line in chart.lines if line.metric in measured}
    told = charts.in_words(tr("{title} by {axis}", title=chart.title, axis=chart.axis), lines, chart.scale)
    return charts.picture(figure, f"{run.id}-{chart.key}", told, group=f"{run.id} {chart.axis}")


# --- log -----------------------------------------------------------------------------------------------------------


def log(run: Run) -> None:
    """The log's last lines, filtered by the word in the search field."""
    wanted = str(st.session_state.get("log-search") or "").lower()
    text = _COLOURS.sub("", run.log_tail())
    lines = [line for line in text.splitlines() if wanted in line.lower()][-LOG_LINES:]
    if not lines:
        said = tr("No matching line.") if wanted else tr("The log is empty so far.")
        theme.empty("article", tr("No log lines"), said)
        return
    with st.container(height=460, autoscroll=True, border=False, key="log"):
        st.code("\n".join(lines), language=None, wrap_lines=True)


# --- config --------------------------------------------------------------------------------------------------------


def config(run: Run) -> None:
    """The frozen config: what it sets, in words, as a command and as YAML."""
    try:
        values = stored(run.folder / "config.yaml")
    except ConfigError as error:
        st.error(safe(error))
        return
    stage = values.get("stage")
    changed = {
        n: v
        for n, v in values.items()
        if n not in KNOBS or word(v) != word(default_of(stage, n, KNOBS[n].default))
    }
    every = st.toggle(tr("Show defaults"), key="config-all")
    rows = [
        {
            "Section": tr(KNOBS[n].section) if n in KNOBS else "",
            "Parameter": n,
            "Value": word(v) or tr("empty"),
            "What it does": tr(KNOBS[n].help) if n in KNOBS else "",
        }
        for n, v in (values if every else changed).items()
    ]
    theme.frame(
        rows,
        hide_index=True,
        height=560 if len(rows) > FEW_ROWS else "content",
        column_config={"What it does": {"width": "large"}},
    )
    shell, yaml = st.tabs([tr("Command"), "YAML"])
    with suppress(ConfigError):
        shell.code(command(run.config()), language="bash", wrap_lines=True)
    yaml.code(to_yaml(changed), language="yaml")


# --- checkpoints ---------------------------------------------------------------------------------------------------


def saved(run: Run) -> None:
    """The checkpoints: step, size, age, and a way to go on from each."""
    found = checkpoints.of(run)
    if not found:
        every = word(run.values().get("save_steps"))
        theme.empty(
            "save",
            tr("No checkpoint yet"),
            tr("One is saved every {every} steps, at the end, and at Stop.", every=safe(every)),
        )
        return
    why = run_actions.why_not_resumed(run)
    for path in reversed(found):
        wrong = checkpoints.valid(path, deep=False)
        with st.container(horizontal=True, vertical_alignment="center", gap="medium", key=f"row-{path.name}"):
            st.markdown(tr("**Step {step_of}**", step_of=count(checkpoints.step_of(path))), width=120)
            weight = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            st.markdown(f":gray[{size(weight)}]", width=90)
            st.markdown(f":gray[{ago(path.stat().st_mtime)}]", width=110)
            if wrong:
                st.markdown(f":orange[:material/warning: {safe(wrong)}]", width="stretch")
            st.space("stretch")
            st.button(
                tr("Resume from here"),
                key=f"from-{run.id}-{path.name}",
                on_click=run_actions.resume,
                args=(run, path.name),
                **writes.locked(help=why or None, disabled=bool(why or wrong)),
            )


# --- facts ---------------------------------------------------------------------------------------------------------


def facts(run: Run) -> None:
    """When it ran, how long each phase took, where it lies, and what was planned beside what came true."""
    status = run.status()
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown(tr("**Time**"))
        times = {
            "Created": date(status.created),
            "Started": date(status.started),
            "Ended": date(status.ended),
        }
        phases = {
            term("phase", name).capitalize(): duration(seconds) for name, seconds in status.seconds.items()
        }
        theme.frame(
            [{"What": tr(n), "Value": v} for n, v in (times | phases).items()],
            hide_index=True,
            height="content",
        )
    with right:
        st.markdown(tr("**Where**"))
        st.caption(tr("The run's folder: config, log, metrics and checkpoints."))
        st.code(str(run.folder), language=None, wrap_lines=True)
        st.caption(tr("The run's id, for the shell and MLflow."))
        st.code(run.id, language=None)
        plan_view.planned(run)
    _notes(run)
    _doings(run)


def _notes(run: Run) -> None:
    """The run's name, note and tags, and where MLflow shows it; nothing while the tracker is away."""
    with suppress(TrackerError):
        if row := get_row(run.id):
            st.markdown(f"**{tr('Name, note and tags')}**")
            history.words(row)
    st.markdown("**MLflow**")
    if address := store.page_of(run.id):
        st.link_button(tr("Open in MLflow"), address, icon=":material/open_in_new:")
        return
    st.caption(tr("Start MLflow's own pages in a shell:"))
    st.code(
        f"mlflow ui --backend-store-uri {shlex.quote(store.shown_uri())}", language="bash", wrap_lines=True
    )


def launched_by(run: Run) -> str:
    """Who launched it, behind what it does; empty where nobody logs in."""
    by = run.status().tags.get(events.BY)
    return tr(" · launched by {by}", by=safe(by)) if by else ""


def _doings(run: Run) -> None:
    """Who did what to it; nothing where nobody logs in."""
    done = events.of(run)
    if not done:
        return
    st.markdown(tr("**Activity**"))
    theme.frame(
        [{"When": date(e.time), "Who": e.by, "What": tr(e.what), "About": e.about} for e in reversed(done)],
        hide_index=True,
        height="content" if len(done) <= FEW_ROWS else 560,
    )
