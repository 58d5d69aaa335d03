"""What a run needs of a device's memory, by what holds it, beside what is free."""

from __future__ import annotations

from dataclasses import fields
from html import escape

import streamlit as st

from tuner.plan.plan import Plan
from tuner.plan.shape import Memory
from tuner.text.lookup import mark, tr
from tuner.ui.words import NONE, share, size

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


def told_apart(held: dict[str, int]) -> dict[str, int]:
    """The parts that can be told apart in a bar; those under a fiftieth of it are one."""
    least = sum(held.values()) / 50
    small = sum(part for part in held.values() if part < least)
    shown = {name: part for name, part in held.items() if part >= least}
    return shown | ({tr("Other"): small} if small else {})


def draw(plan: Plan) -> None:
    """A bar of the parts as long as the memory that is free, or as what is needed where that is more, and its legend."""
    held, total = told_apart(parts(plan)), needed(plan)
    if not held or not total:
        return
    whole = max(total, plan.free)
    told = ", ".join(f"{name} {size(part)}" for name, part in held.items())
    segments = "".join(
        f'<span class="part-{place}" style="width:{100 * part / whole:.2f}%"></span>'
        for place, part in enumerate(held.values())
    )
    legend = "".join(
        f'<span><i class="part-{place}"></i>{escape(name)} {size(part)}</span>'
        for place, (name, part) in enumerate(held.items())
    )
    label = tr(
        "Memory: {total} needed, {free} free; {parts}", total=size(total), free=size(plan.free), parts=told
    )
    over = " over" if total > plan.free else ""
    st.html(
        f'<div class="memory-bar{over}" role="img" aria-label="{escape(label)}">{segments}</div>'
        f'<div class="memory-legend">{legend}</div>'
    )
    part_of = share(total / plan.free) if plan.free else NONE
    st.caption(tr("{share} of {free} free", share=part_of, free=size(plan.free)))
