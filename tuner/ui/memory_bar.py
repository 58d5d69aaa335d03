"""What a run needs of a device's memory, by what holds it, beside what is free."""

from __future__ import annotations

from dataclasses import fields

import streamlit as st

from tuner.plan.plan import Plan
from tuner.plan.shape import Memory
from tuner.text.lookup import mark, tr
from tuner.ui.words import NONE, safe, share, size

PARTS = {
    "weights": mark("Weights"),
    "adapters": mark("Adapter"),
    "gradients": mark("Gradients"),
    "optimizer": mark("Optimizer"),
    "activations": mark("Activations"),
    "logits": mark("Logits"),
    "cache": mark("KV cache"),
}
PROCESS = 520 * 2**20
"""Bytes that a worker's process holds on a CPU before any weight: Python, torch, transformers. A rough figure: the peaks of nine
runs of the starter were 479 to 831 MiB, their weights and activations among them."""


def needed(plan: Plan) -> int | None:
    """Bytes at the peak: the plan's and, where model and process share one memory, the process's own."""
    return plan.memory.total + _process(plan) if plan.memory else None


def _process(plan: Plan) -> int:
    return 0 if plan.on_gpu else PROCESS


def parts(plan: Plan) -> dict[str, int]:
    """What holds it, the largest first."""
    if plan.memory is None:
        return {}
    held = {tr(PARTS[f.name]): int(getattr(plan.memory, f.name)) for f in fields(Memory)}
    held |= {tr("Process"): _process(plan)}
    return dict(sorted(((n, b) for n, b in held.items() if b), key=lambda part: -part[1]))


def draw(plan: Plan) -> None:
    """A bar of the parts as long as the memory that is free, or as what is needed where that is more."""
    held, total = parts(plan), needed(plan)
    if not held or not total:
        return
    whole = max(total, plan.free)
    told = ", ".join(f"{name} {size(part)}" for name, part in held.items())
    fits = total <= plan.free
    segments = "".join(
        f'<span class="part-{place % 6}" style="width:{100 * part / whole:.2f}%"></span>'
        for place, part in enumerate(held.values())
    )
    label = tr(
        "Memory: {total} needed, {free} free; {parts}", total=size(total), free=size(plan.free), parts=told
    )
    st.html(
        f'<div class="memory-bar{"" if fits else " over"}" role="img" aria-label="{label}">{segments}</div>'
    )
    legend = "  ".join(
        f":gray[{safe(name)}] {size(part)}" for name, part in list(held.items())[:4] if part >= 0.01 * total
    )
    part_of = share(total / plan.free) if plan.free else NONE
    st.caption(f"{legend}  ·  {tr('{share} of {free} free', share=part_of, free=size(plan.free))}")
