"""A curve in small, for cards. Apart from the charts, so that the first page need not wait for Plotly's import."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st

from tuner.ui.theme import palette


def draw(values: Sequence[float], key: str) -> None:
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
