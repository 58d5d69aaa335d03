"""The curves of a run as pictures beside its weights (`plot_loss`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVES = ("loss", "eval_loss", "eval_accuracy", "rewards/accuracies", "rewards/chosen")


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average whose weight grows with the length of the curve, as LLaMA-Factory draws it."""
    if not values:
        return []
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * len(values))) - 0.5)
    last, curve = values[0], []
    for value in values:
        last = last * weight + (1 - weight) * value
        curve.append(last)
    return curve


def draw(history: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """training_<name>.png for every curve the log history holds points of."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    written = []
    for name in CURVES:
        points = [(row["step"], row[name]) for row in history if name in row]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        figure, axes = pyplot.subplots(figsize=(7, 4))
        axes.plot(steps, values, color="#9db8d9", label="raw")
        axes.plot(steps, smooth(values), color="#1f5fa8", label="smoothed")
        axes.set(xlabel="step", ylabel=name)
        axes.legend(frameon=False)
        path = folder / f"training_{name.replace('/', '_')}.png"
        figure.savefig(path, dpi=100, bbox_inches="tight")
        pyplot.close(figure)
        written.append(path)
    return written
