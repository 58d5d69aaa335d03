"""Several runs at once: parameters with several values each, queued as the runs of one sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from tuner.config.config import KNOBS, Config
from tuner.config.knobs import Problem
from tuner.config.spelling import word
from tuner.jobs import planning, submit
from tuner.text.lookup import tr
from tuner.ui import draft as drafts
from tuner.ui import judged, state, writes
from tuner.ui.draft import Draft
from tuner.ui.words import count, duration, label, safe

Judge = Callable[[Draft], tuple[Config | None, list[Problem]]]
MOST = 32
"""Runs in one sweep: beyond that somebody has mistyped."""
AT_ONCE = 3
"""Parameters varied together."""
USUAL = ("learning_rate", "lora_rank", "num_train_epochs", "per_device_train_batch_size", "pref_beta", "seed")
"""What is varied most often, first in the list."""
_LISTED = 6


@dataclass(frozen=True)
class Plan:
    """The configs of a sweep with what is each one's own, and what stands against queueing them, in sentences."""

    values: Mapping[str, Any]
    configs: Sequence[Config] = ()
    own: Sequence[str] = ()
    flags: str = ""
    problems: Sequence[str] = ()


def choices(draft: Draft) -> list[str]:
    """The knobs that can be given several values: those of one value each that apply to the draft, first the numbers
    that everybody sees."""
    values = draft.every
    kinds = ("float", "int", "choice", "bool")
    found = [k for k in KNOBS.values() if k.shown and k.kind in kinds and k.applies(values)]
    return [k.name for k in sorted(found, key=lambda k: (_rank(k.name), k.advanced, kinds.index(k.kind)))]


def _rank(name: str) -> int:
    return USUAL.index(name) if name in USUAL else len(USUAL)


def plan(draft: Draft, given: Mapping[str, str], judge: Judge) -> Plan:
    """What several values make of a draft; `given` maps a knob to its values, with commas between them."""
    texts = {name: ",".join(dict.fromkeys(_parts(text))) for name, text in given.items()}
    values = {n: v for n, v in {**draft.values, **texts}.items() if v != "" and v is not None}
    if not texts or not all("," in text for text in texts.values()):
        return Plan(values, problems=(tr("Give each parameter several values, with commas between them."),))
    rows = submit.expand(values)
    if len(rows) > MOST:
        return Plan(
            values,
            problems=(tr("That makes {number} runs; keep it to {most}.", number=len(rows), most=MOST),),
        )
    judged = [judge(replace(draft, changes={**draft.changes, **{n: row[n] for n in texts}})) for row in rows]
    problems = dict.fromkeys(p.sentence for _, found in judged for p in found)
    configs = [config for config, _ in judged if config is not None]
    own = [", ".join(f"{label(n)} {row[n]}" for n in texts) for row in rows]
    flags = " ".join(f"--{name} {text}" for name, text in texts.items())
    return Plan(values, configs, own, flags, tuple(problems))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def offer(draft: Draft, name: str, *, disabled: bool) -> None:
    """A button that opens the dialog in which a sweep is put together and queued."""
    if st.button(tr("Sweep"), icon=":material/stacks:", width="stretch", key="sweep", disabled=disabled):
        st.dialog(tr("Several runs"))(_dialog)(draft, name)


def _dialog(draft: Draft, name: str) -> None:
    st.caption(tr("Each value of a parameter makes a run. They are queued one after the other."))
    chosen = st.multiselect(
        tr("Parameters"),
        choices(draft),
        format_func=label,
        max_selections=AT_ONCE,
        placeholder=tr("Choose up to three"),
        key="sweep-knobs",
        select_all=False,
    )
    given = {
        knob: st.text_input(
            label(knob),
            word(draft.value(knob)),
            key=f"sweep-{knob}",
            placeholder="1e-4, 3e-4, 1e-3",
            help=tr("Values with commas between them. Those of several parameters are all combined."),
        )
        for knob in chosen
    }
    if given:
        _decide(plan(draft, given, judged.judge), name, begun=_begun(draft, given))


def _begun(draft: Draft, given: Mapping[str, str]) -> bool:
    """Whether anything was typed: a fault that nobody has made yet is not told."""
    return any(text.strip() != word(draft.value(knob)) for knob, text in given.items())


def _decide(planned: Plan, name: str, *, begun: bool) -> None:
    for sentence in planned.problems[:3] if begun else ():
        st.markdown(f":red[:material/error: {safe(sentence)}]")
    if not planned.problems:
        st.markdown(f"**{count(len(planned.configs), 'run')}**{_time(planned.configs)}")
        more = (
            tr("\n- and {number} more", number=len(planned.own) - _LISTED)
            if len(planned.own) > _LISTED
            else ""
        )
        st.caption("\n".join(f"- {safe(own)}" for own in planned.own[:_LISTED]) + more)
        st.caption(tr("The same from a shell: `tuner submit` with `{flags}`.", flags=planned.flags))
    st.button(
        tr("Queue {runs}", runs=count(len(planned.configs), "run")) if not planned.problems else tr("Queue"),
        type="primary",
        icon=":material/playlist_add:",
        width="stretch",
        key="sweep-queue",
        on_click=_queue,
        args=(planned.values, name),
        **writes.locked(disabled=bool(planned.problems)),
    )


def _time(configs: Sequence[Config]) -> str:
    """How long all of them will take, where this machine has an idea of each."""
    seconds = [s for config in configs if (s := planning.planned(config).seconds) is not None]
    return (
        tr(" :gray[≈ {sum} one after the other]", sum=duration(sum(seconds)))
        if len(seconds) == len(configs)
        else ""
    )


def _queue(values: Mapping[str, Any], name: str) -> None:
    try:
        writes.sweep(values, name)
    except writes.FAILED as error:
        st.session_state["new-run-word"] = str(error)
        st.rerun()
    drafts.launched(drafts.current())
    state.go("runs")
    st.rerun()  # the dialog is a piece of its own, and the way leads to another page
