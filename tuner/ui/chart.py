"""What a chart is: which metrics it draws, as which lines, and how to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tuner.runs.curve import Series
from tuner.text.lookup import mark

Tone = Literal["first", "second", "third", "good", "bad"]
Measured = Mapping[str, Series]
"""Steps and values of each metric a run has logged."""


@dataclass(frozen=True)
class Line:
    """One metric in a chart. `tone` is its part: good and bad keep their colours in every chart. `place` is its dash
    among lines of one tone."""

    metric: str
    label: str
    tone: Tone = "first"
    place: int = 0
    spread: str = ""
    """The metric that says how far single values are from this one, drawn as a band around it."""


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
    axis: str = mark("step")
    fine: bool = False
    """Whether the axis counts in parts of one, as epochs and minutes do."""
    optional: bool = False
