"""What the x axis of charts counts: steps, or what a step comes to on the run's mean in epochs, tokens or time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import streamlit as st

from tuner.runs.curve import Series
from tuner.runs.run import Run
from tuner.runs.status import Status
from tuner.text.lookup import mark, tr
from tuner.ui import state
from tuner.ui.chart import Chart

SMOOTHING = {mark("Off"): 0.0, mark("Light"): 0.6, mark("Strong"): 0.9}
STEP, EPOCH, TOKENS, TIME = mark("Step"), mark("Epoch"), mark("Tokens"), mark("Time")
AXES = (STEP, EPOCH, TOKENS, TIME)
MINUTES = mark("minutes")


class Options(NamedTuple):
    """What all charts of a page follow."""

    smoothing: float = 0.0
    log: bool = False
    axis: str = STEP
    clip: bool = False


@dataclass(frozen=True)
class Scale:
    """What a run's step comes to on an axis: None where it is not known, and steps are shown."""

    epoch: float | None = None
    tokens: float | None = None
    minutes: float | None = None

    def of(self, axis: str) -> float | None:
        return {EPOCH: self.epoch, TOKENS: self.tokens, TIME: self.minutes}.get(axis, 1.0)


def scale_of(status: Status) -> Scale:
    """Means over the run so far. Seconds are those since the first step, tokens those that were read."""
    done = status.step - status.first_step
    return Scale(
        status.epoch / status.step if status.epoch and status.step else None,
        status.tokens / status.step if status.tokens and status.step else None,
        status.trained_seconds / done / 60 if status.trained_seconds and done > 0 else None,
    )


def scale_of_run(run_id: str) -> Scale:
    """The same of a run by its id; unknown for one without a folder here."""
    try:
        run = Run(run_id)
        return scale_of(run.status()) if run.exists else Scale()
    except ValueError:
        return Scale()


def stretched(curves: Mapping[str, Series], factor: float) -> dict[str, Series]:
    """Curves with their steps multiplied."""
    if factor == 1.0:
        return dict(curves)
    return {name: (steps * factor, values) for name, (steps, values) in curves.items()}  # type: ignore[misc]


def titled(chart: Chart, axis: str) -> Chart:
    """The chart with what its axis counts; steps keep the chart's own word."""
    words = {EPOCH: tr(EPOCH).lower(), TOKENS: tr(TOKENS).lower(), TIME: tr(MINUTES)}
    return replace(chart, axis=words[axis], fine=axis in (EPOCH, TIME)) if axis in words else chart


def options() -> None:
    """The controls; outside the piece that redraws itself, so that nothing chosen is lost."""
    state.reword("smoothing", SMOOTHING)
    state.reword("axis", AXES)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="chart-options"):
        with _pair():
            st.markdown(tr(":small[**Smoothing**]"), width="content")
            st.segmented_control(
                tr("Smoothing"),
                list(SMOOTHING),
                format_func=tr,
                default="Light",
                required=True,
                key="smoothing",
                bind="query-params",
                label_visibility="collapsed",
                help=tr("Moving average. The raw points stay visible."),
            )
        with _pair():
            st.markdown(tr(":small[**X axis**]"), width="content")
            st.segmented_control(
                tr("X axis"),
                list(AXES),
                format_func=tr,
                default=STEP,
                required=True,
                key="axis",
                bind="query-params",
                label_visibility="collapsed",
                help=tr("Epochs, tokens and time are steps times the run's mean."),
            )
        st.toggle(tr("Log scale"), key="log", bind="query-params", help=tr("For loss and gradient norm."))
        st.toggle(
            tr("Clip outliers"),
            key="clip",
            bind="query-params",
            help=tr("The y axis leaves out the highest and the lowest 1% of points."),
        )


def _pair() -> AbstractContextManager[Any]:
    """A word and its control, which stay together where the window is narrow."""
    return st.container(horizontal=True, vertical_alignment="center", gap="small", width="content")


def chosen() -> Options:
    """What the controls say."""
    smoothing = SMOOTHING.get(str(st.session_state.get("smoothing")), SMOOTHING["Light"])
    axis = str(st.session_state.get("axis"))
    return Options(
        smoothing,
        bool(st.session_state.get("log")),
        axis if axis in AXES else STEP,
        bool(st.session_state.get("clip")),
    )
