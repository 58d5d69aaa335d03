"""How the next token is chosen: presets, and every knob behind them. The same field on the chat and the arena page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import streamlit as st

from tuner.chats.talk import PRESETS, Decoding, preset_of
from tuner.text.lookup import mark, tr
from tuner.ui import writes

LABELS = {"greedy": mark("Greedy"), "balanced": mark("Balanced"), "creative": mark("Creative")}
_KNOBS: dict[str, tuple[str, float, float, float, str]] = {
    "temperature": (
        mark("Temperature"), 0.0, 2.0, 0.1,
        mark("0 always takes the most likely token. Higher: more varied, less reliable."),
    ),
    "top_p": (
        mark("Top p"), 0.05, 1.0, 0.05,
        mark("Samples only from the most likely tokens that add up to this probability. 1 keeps all."),
    ),
    "top_k": (mark("Top k"), 0, 200, 10, mark("Samples only from this many most likely tokens. 0 keeps all.")),
    "repetition_penalty": (
        mark("Repetition penalty"), 0.5, 2.0, 0.05,
        mark("Above 1, tokens that were used already become less likely. 1 changes nothing."),
    ),
    "max_tokens": (mark("Max new tokens"), 1, 32768, 64, mark("In tokens. What does not fit the model's context is cut.")),
}  # fmt: skip
Changed = Callable[[Decoding], None]


def popover(now: Decoding, key: str, changed: Changed) -> None:
    """The button that says how is decoded, with the knobs behind it."""
    known = preset_of(now)
    for name, value in {**asdict(now), "preset": known or None}.items():
        st.session_state[f"{key}-{name}"] = value  # as it lies on disk, whoever changed it
    with st.popover(
        tr(LABELS.get(known, mark("Custom decoding"))), icon=":material/tune:", key=f"{key}-decoding"
    ):
        st.segmented_control(
            tr("Preset"),
            list(PRESETS),
            format_func=lambda name: tr(LABELS[name]),
            key=f"{key}-preset",
            on_change=_preset,
            args=(now, key, changed),
            disabled=not writes.may(),
        )
        for name, (label, least, most, step, help) in _KNOBS.items():
            whole = isinstance(step, int)
            st.number_input(
                tr(label),
                min_value=int(least) if whole else float(least),
                max_value=int(most) if whole else float(most),
                step=step,
                key=f"{key}-{name}",
                on_change=_knob,
                args=(now, name, key, changed),
                **writes.locked(help=f"`{name}`  {tr(help)}"),
            )
        st.number_input(
            tr("Seed"),
            min_value=0,
            max_value=2**31 - 1,
            value=None,
            placeholder=tr("random"),
            key=f"{key}-seed",
            on_change=_knob,
            args=(now, "seed", key, changed),
            **writes.locked(
                help=tr("`seed`  Shared by all columns. A fixed seed gives the same answer again.")
            ),
        )


def _preset(now: Decoding, key: str, changed: Changed) -> None:
    name = str(st.session_state.get(f"{key}-preset"))
    if name not in PRESETS:
        return
    values: dict[str, Any] = asdict(now) | dict(PRESETS[name])
    changed(Decoding(**values))


def _knob(now: Decoding, name: str, key: str, changed: Changed) -> None:
    values: dict[str, Any] = {name: st.session_state.get(f"{key}-{name}")}
    changed(replace(now, **values))
