"""Charts: one table says which a stage has; figures grow in place and look alike in both modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from numpy.typing import NDArray

from tuner.tracking.points import Series, thinned
from tuner.ui.theme import DASHES, Palette, palette
from tuner.ui.words import number

Tone = Literal["first", "second", "third", "good", "bad"]
Floats = NDArray[np.float64]
Measured = Mapping[str, Series]
"""Steps and values of each metric a run has logged."""
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
    scale: float = 1.0
    span: tuple[float, float] | None = None
    axis: str = "step"
    optional: bool = False


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
    scale=100,
    span=(0, 100),
)
TOKEN_ACCURACY = Chart(
    "accuracy",
    "Token accuracy",
    (Line("mean_token_accuracy", "train"), Line("eval_mean_token_accuracy", "evaluation", "second")),
    "The share of answer tokens that the model would have written itself.",
    unit="%",
    scale=100,
    span=(0, 100),
)
REWARD_ACCURACY = Chart(
    "accuracy",
    "Accuracy",
    (Line("accuracy", "train"), Line("eval_accuracy", "evaluation", "second")),
    "The share of pairs in which the better answer gets the higher score. 50% is chance.",
    unit="%",
    scale=100,
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
SCORE = Chart(
    "score",
    "Score on held-out questions",
    (Line("score", "score"), Line("score/correct", "right answers", "second")),
    "The share of answers to questions it never trained on that have what the run is to teach. This is what you want to "
    "see rise; the loss alone does not prove it.",
    unit="%",
    scale=100,
    smoothed=False,
    span=(0, 100),
    optional=True,
)
SPEED = Chart(
    "speed",
    "Speed",
    (Line("tokens_per_second", "speed"),),
    "Tokens read each second. It rises and falls with the length of the rows.",
    unit="tokens/s",
)
LOAD = Chart(
    "load",
    "Processor load",
    (
        Line("system/cpu_utilization_percentage", "CPU"),
        Line("system/gpu_0_utilization_percentage", "GPU", "second"),
    ),
    "How busy the machine is. A GPU well below 90% waits for data or for a larger batch.",
    unit="%",
    smoothed=False,
    span=(0, 100),
    axis="seconds",
)
MEMORY = Chart(
    "memory",
    "Memory",
    (
        Line("system/system_memory_usage_megabytes", "RAM, whole machine"),
        Line("system/process_memory_usage_megabytes", "RAM, this run", "third"),
        Line("system/gpu_0_memory_usage_megabytes", "GPU", "second"),
    ),
    "Memory in use. Steady after the first steps; a slow climb is a leak.",
    unit="GiB",
    scale=1 / 1024,
    smoothed=False,
    axis="seconds",
)

_PLAIN = (SCORE, RATE, GRADIENT, SPEED, LOAD, MEMORY)
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


def shown(charts: Sequence[Chart], measured: Measured, *, ended: bool) -> list[Chart]:
    """The charts to draw. While a run goes on each has its place from the start; in the end those without a point go."""
    return [c for c in charts if _has_points(c, measured) or not (ended or c.optional)]


def _has_points(chart: Chart, measured: Measured) -> bool:
    return any(line.metric in measured for line in chart.lines)


def latest(chart: Chart, measured: Measured) -> str:
    """The newest value of a chart's main line, with its unit."""
    for line in chart.lines:
        if line.metric in measured and len(measured[line.metric][1]):
            value = float(measured[line.metric][1][-1]) * chart.scale
            figure = f"{value:.1f}" if chart.scale != 1 else number(value)
            return f"{figure}%" if chart.unit == "%" else f"{figure} {chart.unit}".strip()
    return ""


def smooth(values: Floats, weight: float) -> Floats:
    """An exponential moving average without a pull to its start; `weight` is 0 (none) to below 1, gaps (NaN) stay gaps."""
    if weight <= 0 or len(values) < 4:
        return values
    smoothed = np.full_like(values, np.nan)
    mean = seen = 0.0
    for i, value in enumerate(values):
        if np.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            seen = weight * seen + (1 - weight)
            smoothed[i] = mean / seen
    return smoothed


# --- figures -------------------------------------------------------------------------------------------------------


def figure(chart: Chart, measured: Measured, *, smoothing: float = 0.0, log: bool = False) -> go.Figure:
    """One run's chart: raw lines pale, smoothed ones over them."""
    colours = palette()
    drawn = go.Figure(layout=_layout(colours, chart, log))
    present = [line for line in chart.lines if line.metric in measured]
    for line in present:
        steps, values = measured[line.metric]
        weight = smoothing if chart.smoothed else 0.0
        _add(drawn, steps, values * chart.scale, line.label, _tone(colours, line.tone), weight=weight)
    drawn.update_layout(showlegend=len(present) > 1)
    if not present:
        _wait(drawn, colours)
    return drawn


def _wait(drawn: go.Figure, colours: Palette) -> None:
    """An empty frame with a word in it: the same element then grows, so that nothing jumps at the first point."""
    drawn.update_xaxes(visible=False)
    drawn.update_yaxes(visible=False)
    said = {
        "text": "waits for its first point",
        "showarrow": False,
        "font": {"size": 12, "color": colours.quiet},
    }
    drawn.add_annotation(xref="paper", yref="paper", x=0.5, y=0.5, **said)


def of_metric(metric: str) -> Chart:
    """How one metric is shown by itself: as its chart in a run's page has it."""
    for chart in (c for group in BY_STAGE.values() for c in group):
        for line in chart.lines:
            if line.metric == metric:
                lone = (
                    chart.title
                    if line is chart.lines[0] and line.tone == "first"
                    else f"{chart.title}, {line.label}"
                )
                return replace(chart, key=metric.replace("/", "-"), title=lone, lines=(line,))
    words = metric.removeprefix("system/").replace("/", " ").replace("_", " ")
    axis = "seconds" if metric.startswith("system/") else "step"
    return Chart(metric.replace("/", "-"), words.capitalize(), (Line(metric, words),), "", axis=axis)


def overlay(
    chart: Chart, curves: Mapping[str, Series], names: Mapping[str, str], *, smoothing: float, log: bool
) -> go.Figure:
    """One metric of several runs: a colour and a dash each. `curves` and `names` go by run id; a run's place in `names`
    is its colour, so that it keeps it from metric to metric."""
    colours = palette()
    drawn = go.Figure(layout=_layout(colours, replace(chart, span=None), log))
    weight = smoothing if chart.smoothed else 0.0
    for place, (run_id, name) in enumerate(names.items()):
        if run_id in curves:
            steps, values = curves[run_id]
            colour, dash = colours.series[place % 6], DASHES[place % 6]
            _add(drawn, steps, values * chart.scale, name, colour, weight=weight, dash=dash)
    drawn.update_layout(height=320, showlegend=len(curves) > 1)
    return drawn


def lengths(edges: Floats, counts: Floats, cutoff: int) -> go.Figure:
    """How many rows have each length in tokens, and where the cutoff falls; what lies beyond it has the other colour."""
    colours = palette()
    drawn = go.Figure(layout=_layout(colours, Chart("lengths", "", (), "", axis="tokens"), False))
    fill = [colours.bad if edge >= cutoff else colours.good for edge in edges[:-1]]
    ranges = [f"{a:.0f} to {b:.0f}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    drawn.add_trace(
        go.Bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            width=np.diff(edges) * 0.92,
            marker={"color": fill, "line": {"width": 0}},
            customdata=ranges,
            hovertemplate="%{customdata} tokens: %{y:,} rows<extra></extra>",
        )
    )
    if cutoff <= float(edges[-1]) * 1.3:
        drawn.add_vline(x=cutoff, line={"color": colours.ink, "dash": "dash", "width": 1.4})
    drawn.update_layout(hovermode="closest", showlegend=False)
    return drawn


def spark(values: Sequence[float], key: str) -> None:
    """A curve without axes, for cards and lists: only where it goes."""
    points = np.asarray(values, dtype=float)
    points = points[np.isfinite(points)]
    if len(points) < 2:
        return
    low, high = float(points.min()), float(points.max())
    x = np.linspace(2, 298, len(points))
    y = 46 - 40 * (points - low) / ((high - low) or 1)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    colour = palette().series[0]
    picture = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 300 50" preserveAspectRatio="none">'
        f'<polygon points="2,50 {line} 298,50" fill="{colour}" opacity="0.09"/>'
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" vector-effect="non-scaling-stroke" '
        'stroke-linejoin="round" stroke-linecap="round"/></svg>'
    )
    with st.container(key=f"spark-{key}"):
        st.image(picture, width="stretch")


def draw(drawn: go.Figure, key: str) -> None:
    """Put a figure on the page. The key is what lets it grow in place and keep its zoom."""
    drawn.update_layout(uirevision=key)
    st.plotly_chart(
        drawn, key=f"chart-{key}", theme=None, config={"displayModeBar": False, "scrollZoom": False}
    )


def _add(
    drawn: go.Figure,
    steps: NDArray[Any],
    values: Floats,
    name: str,
    colour: str,
    *,
    weight: float,
    dash: str = "solid",
) -> None:
    """A line; pale with its smoothed self over it where `weight` asks for that."""
    if weight and len(values) >= 4:
        x, y = thinned((steps, values), POINTS)
        pale = {"color": colour, "width": 1}
        drawn.add_trace(
            go.Scatter(x=x, y=y, mode="lines", line=pale, opacity=0.3, hoverinfo="skip", showlegend=False)
        )
    x, y = thinned((steps, smooth(values, weight)), POINTS)
    drawn.add_trace(
        go.Scatter(
            x=x,
            y=y,
            name=_plain(name),
            mode="lines+markers" if len(x) < 3 else "lines",
            marker={"size": 6, "color": colour},
            line={"color": colour, "width": 2.2, "dash": dash},
            hovertemplate=f"{_plain(name)} %{{y:.4~g}}<extra></extra>",
        )
    )


def _plain(name: str) -> str:
    """A run's name inside a chart: Plotly reads tags and placeholders."""
    return name.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def _tone(colours: Palette, tone: Tone) -> str:
    named = {
        "good": colours.good,
        "bad": colours.bad,
        "first": colours.series[0],
        "second": colours.series[1],
    }
    return named.get(tone, colours.series[2])


def _layout(colours: Palette, chart: Chart, log: bool) -> dict[str, Any]:
    small = {"size": 11, "color": colours.quiet}
    line: dict[str, Any] = {
        "gridcolor": colours.grid,
        "zeroline": False,
        "tickfont": small,
        "automargin": True,
        "fixedrange": False,
    }
    y: dict[str, Any] = {**line, "nticks": 5, "tickformat": ".4~g", "title": None}
    if log and chart.log:
        y |= {"type": "log", "dtick": None}
    if chart.span and not log:
        low, high = chart.span
        y |= {"range": [low, high * 1.03], "tickvals": np.linspace(low, high, 5).tolist()}
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
            "title": {"text": chart.axis, "font": small, "standoff": 4},
            "hoverformat": ",.0f",
            "rangemode": "tozero",
        },
        "yaxis": y,
    }
