"""Charts: one table says which a stage has; figures grow in place and look alike in both modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from tuner.ui.series import Floats, smooth, thin
from tuner.ui.theme import DASHES, Palette, palette
from tuner.ui.words import number

Axis = Literal["step", "minutes"]
Tone = Literal["first", "second", "third", "good", "bad", "quiet"]
Series = Mapping[str, tuple[Floats, Floats, Floats]]
POINTS = 900
"""Points of a line on the screen: more than there are pixels, few enough to redraw every two seconds."""


@dataclass(frozen=True)
class Line:
    """One metric in a chart. `tone` is its part: good and bad keep their colours in every chart."""

    metric: str
    label: str
    tone: Tone = "first"


@dataclass(frozen=True)
class Chart:
    """What a chart shows and how to read it."""

    key: str
    title: str
    lines: tuple[Line, ...]
    help: str
    unit: str = ""
    smoothed: bool = True
    log: bool = False
    percent: bool = False
    span: tuple[float, float] | None = None


LOSS = Chart(
    "loss",
    "Loss",
    (Line("loss", "train"), Line("eval_loss", "evaluation", "second")),
    "What training makes small. It should fall fast at first and then level off. "
    "When the evaluation's line turns up while train's goes down, the model learns by heart: stop there.",
    log=True,
)
PREFERENCE_LOSS = Chart(
    "loss",
    "Loss",
    (Line("loss", "train"), Line("eval_loss", "evaluation", "second")),
    "Starts at 0.693, a coin's toss between the two answers, and falls as the model learns to prefer the better one. "
    "Near zero within a few steps means that the pairs are too easy or the learning rate is too high.",
    log=True,
)
REWARDS = Chart(
    "rewards",
    "Rewards",
    (Line("rewards/chosen", "chosen", "good"), Line("rewards/rejected", "rejected", "bad")),
    "How much likelier each answer has become than it was at the start, times beta. The better answer's line should end "
    "above the other's. Both may fall: that is usual, as long as they part.",
)
MARGIN = Chart(
    "margin",
    "Reward margin",
    (Line("rewards/margins", "chosen over rejected"),),
    "The better answer's reward minus the other's. It should climb; a margin that explodes while the loss is near "
    "zero means the model has gone too far: lower the learning rate or raise beta.",
)
ACCURACY = Chart(
    "accuracy",
    "Accuracy",
    (Line("rewards/accuracies", "train"), Line("eval_rewards/accuracies", "evaluation", "second")),
    "The share of pairs in which the better answer is also the likelier one. 50% is chance; 65 to 80% is what real "
    "preferences give; 100% is learning by heart.",
    unit="%",
    percent=True,
    span=(0, 100),
)
TOKEN_ACCURACY = Chart(
    "accuracy",
    "Token accuracy",
    (Line("mean_token_accuracy", "train"), Line("eval_mean_token_accuracy", "evaluation", "second")),
    "The share of answer tokens that the model would have written itself.",
    unit="%",
    percent=True,
    span=(0, 100),
)
REWARD_ACCURACY = Chart(
    "accuracy",
    "Accuracy",
    (Line("accuracy", "train"), Line("eval_accuracy", "evaluation", "second")),
    "The share of pairs in which the better answer gets the higher score. 50% is chance.",
    unit="%",
    percent=True,
    span=(0, 100),
)
SCORES = Chart(
    "margin",
    "Score margin",
    (Line("margin", "chosen over rejected"),),
    "The better answer's score minus the other's. It should climb above zero.",
)
KL = Chart(
    "kl",
    "Distance from the start",
    (Line("kl", "KL"),),
    "How far the answers have moved from the model you started with. Slow growth is learning; a jump is forgetting.",
    unit="nats",
)
RATE = Chart(
    "rate",
    "Learning rate",
    (Line("learning_rate", "learning rate"),),
    "The size of the steps, as planned by the schedule: a climb during warm-up, then down to zero.",
    smoothed=False,
)
GRADIENT = Chart(
    "gradient",
    "Gradient norm",
    (Line("grad_norm", "norm"),),
    "How hard each step pulls. Steady is healthy; single spikes are cut by max_grad_norm; growth without end comes "
    "before a divergence: lower the learning rate.",
    log=True,
)
SPEED = Chart(
    "speed",
    "Speed",
    (Line("tokens_per_second", "tokens"),),
    "Tokens read each second. Long rows make it rise and fall.",
    unit="tokens/s",
)
LOAD = Chart(
    "load",
    "Processor load",
    (Line("system/cpu_percent", "CPU"), Line("system/gpu_percent", "GPU", "second")),
    "How busy the machine is. A GPU well below 90% waits for data or for a larger batch.",
    unit="%",
    smoothed=False,
    span=(0, 100),
)
MEMORY = Chart(
    "memory",
    "Memory",
    (Line("system/memory_gib", "RAM"), Line("system/gpu_memory_gib", "GPU", "second")),
    "Memory in use on the whole machine. Steady after the first steps; a slow climb is a leak.",
    unit="GiB",
    smoothed=False,
)

_PLAIN = (RATE, GRADIENT, SPEED, LOAD, MEMORY)
BY_STAGE: dict[str, tuple[Chart, ...]] = {
    "pt": (LOSS, TOKEN_ACCURACY, *_PLAIN),
    "sft": (LOSS, TOKEN_ACCURACY, *_PLAIN),
    "rm": (PREFERENCE_LOSS, REWARD_ACCURACY, SCORES, *_PLAIN),
    "dpo": (PREFERENCE_LOSS, REWARDS, MARGIN, ACCURACY, *_PLAIN),
    "kto": (LOSS, REWARDS, MARGIN, KL, *_PLAIN),
}
"""Which charts a run's page has, by stage; a new stage is one row."""


def charts_of(stage: str) -> tuple[Chart, ...]:
    return BY_STAGE.get(stage, (LOSS, *_PLAIN))


def shown(charts: Sequence[Chart], series: Series) -> list[Chart]:
    """The charts that have at least one point, and always the first."""
    return [c for i, c in enumerate(charts) if i == 0 or any(line.metric in series for line in c.lines)]


def latest(chart: Chart, series: Series) -> str:
    """The newest value of a chart's main line, with its unit."""
    for line in chart.lines:
        if line.metric in series and len(series[line.metric][2]):
            value = float(series[line.metric][2][-1]) * (100 if chart.percent else 1)
            figure = f"{value:.1f}" if chart.percent else number(value)
            return f"{figure} {chart.unit}".strip()
    return ""


# --- figures -------------------------------------------------------------------------------------------------------


def figure(
    chart: Chart, series: Series, *, smoothing: float = 0.0, log: bool = False, axis: Axis = "step"
) -> go.Figure:
    """One run's chart: raw lines pale, smoothed ones over them."""
    colours = palette()
    drawn = go.Figure(layout=_layout(colours, chart, log, axis))
    for line in chart.lines:
        if line.metric not in series:
            continue
        x, y = _points(series[line.metric], axis, chart.percent)
        colour = _tone(colours, line.tone)
        weight = smoothing if chart.smoothed and len(y) > 3 else 0.0
        if weight:
            drawn.add_trace(_trace(*thin(x, y, POINTS), line.label, colour, width=1, opacity=0.28))
        drawn.add_trace(
            _trace(*thin(x, smooth(y, weight), POINTS), line.label, colour, width=2.2, hover=True)
        )
    drawn.update_layout(showlegend=sum(line.metric in series for line in chart.lines) > 1)
    return drawn


def overlay(
    curves: Mapping[str, tuple[Floats, Floats]],
    names: Mapping[str, str],
    *,
    smoothing: float,
    log: bool,
    key: str,
) -> go.Figure:
    """One metric of several runs: a colour and a dash each, aligned by step. `curves` and `names` go by run id."""
    colours = palette()
    chart = Chart(key, "", (), "")
    drawn = go.Figure(layout=_layout(colours, chart, log, "step"))
    for place, (run_id, (x, y)) in enumerate(curves.items()):
        colour = colours.series[place % len(colours.series)]
        dash = DASHES[place % len(DASHES)]
        if smoothing and len(y) > 3:
            drawn.add_trace(_trace(*thin(x, y, POINTS), names[run_id], colour, width=1, opacity=0.2))
        line = _trace(*thin(x, smooth(y, smoothing), POINTS), names[run_id], colour, width=2.2, hover=True)
        line.line.dash = dash
        drawn.add_trace(line)
    drawn.update_layout(height=340, showlegend=len(curves) > 1)
    return drawn


def histogram(values: Floats, *, cutoff: float | None = None, unit: str = "tokens") -> go.Figure:
    """How often each length occurs, and where the cutoff falls. `values` are lengths in `unit`."""
    colours = palette()
    heights, edges = np.histogram(values, bins=min(60, max(10, len(values) // 4)))
    centres = (edges[:-1] + edges[1:]) / 2
    past = cutoff is not None
    fill = [colours.bad if past and edge >= (cutoff or 0) else colours.good for edge in edges[:-1]]
    drawn = go.Figure(layout=_layout(colours, Chart("lengths", "", (), "", unit="rows"), False, "step"))
    drawn.add_trace(
        go.Bar(
            x=centres,
            y=heights,
            marker={"color": fill, "line": {"width": 0}},
            hovertemplate=f"%{{x:.0f}} {unit}: %{{y}} rows<extra></extra>",
        )
    )
    if cutoff is not None and cutoff <= float(edges[-1]) * 1.5:
        drawn.add_vline(x=cutoff, line={"color": colours.ink, "dash": "dash", "width": 1.4})
    drawn.update_layout(bargap=0.06, hovermode="closest", showlegend=False)
    drawn.update_xaxes(title={"text": unit, "font": {"size": 11, "color": colours.quiet}})
    return drawn


def draw(drawn: go.Figure, key: str) -> None:
    """Put a figure on the page. The key is what lets it grow in place and keep its zoom."""
    drawn.update_layout(uirevision=key)
    st.plotly_chart(
        drawn, key=f"chart-{key}", theme=None, config={"displayModeBar": False, "scrollZoom": False}
    )


def _points(values: tuple[Floats, Floats, Floats], axis: Axis, percent: bool) -> tuple[Floats, Floats]:
    steps, times, y = values
    x = steps if axis == "step" else (times - times[0]) / 60 if len(times) else times
    return x, y * 100 if percent else y


def _trace(
    x: Floats, y: Floats, label: str, colour: str, *, width: float, opacity: float = 1.0, hover: bool = False
) -> go.Scatter:
    lone = len(x) < 3
    return go.Scatter(
        x=x,
        y=y,
        name=label,
        mode="lines+markers" if lone else "lines",
        marker={"size": 6, "color": colour},
        line={"color": colour, "width": width},
        opacity=opacity,
        showlegend=hover,
        hoverinfo="all" if hover else "skip",
        hovertemplate=f"{label} %{{y:.4~g}}<extra></extra>" if hover else None,
    )


def _tone(colours: Palette, tone: Tone) -> str:
    named = {
        "good": colours.good,
        "bad": colours.bad,
        "quiet": colours.quiet,
        "first": colours.series[0],
        "second": colours.series[1],
    }
    return named.get(tone, colours.series[2])


def _layout(colours: Palette, chart: Chart, log: bool, axis: Axis) -> dict[str, Any]:
    small = {"size": 11, "color": colours.quiet}
    line: dict[str, Any] = {
        "gridcolor": colours.grid,
        "zeroline": False,
        "tickfont": small,
        "automargin": True,
        "fixedrange": False,
    }
    y: dict[str, Any] = {**line, "nticks": 5, "tickformat": "~g" if not log else ".2~g", "title": None}
    if log and chart.log:
        y |= {"type": "log", "dtick": None}
    if chart.span and not log:
        y |= {"range": list(chart.span)}
    return {
        "height": 230,
        "margin": {"l": 4, "r": 10, "t": 6, "b": 4},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "Inter, system-ui, sans-serif", "color": colours.ink, "size": 12},
        "hovermode": "x unified",
        "hoverlabel": {
            "bgcolor": colours.surface,
            "bordercolor": colours.grid,
            "font": {"color": colours.ink},
        },
        "legend": {
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "font": small,
            "bgcolor": "rgba(0,0,0,0)",
        },
        "dragmode": "zoom",
        "xaxis": {
            **line,
            "showgrid": False,
            "nticks": 6,
            "title": {"text": axis, "font": small, "standoff": 4},
            "hoverformat": ",.0f" if axis == "step" else ".1f",
            "rangemode": "tozero",
        },
        "yaxis": y,
    }
