"""What was planned for a run, beside what came true."""

from __future__ import annotations

import streamlit as st

from tuner.jobs import planning
from tuner.plan.plan import Plan, Truth
from tuner.runs.run import Run
from tuner.text.lookup import tr
from tuner.ui import theme
from tuner.ui.words import NONE, count, duration, engine, safe, size


def planned(run: Run) -> None:
    """The plan's figures with those that were measured; nothing for a run that has no plan."""
    made, came = planning.of(run), planning.truth(run)
    if made is None:
        return
    st.markdown(tr("**Plan**"))
    theme.frame(
        [{"What": n, "Planned": before, "Measured": after} for n, before, after in _figures(made, came)],
        hide_index=True,
        height="content",
    )
    if came.memory and not made.on_gpu:
        st.caption(tr("On a CPU the memory that was measured is the whole process with its libraries."))
    if why := came.why or made.why:
        st.caption(tr("Not packed rows: {why}", why=safe(why)))


def _devices(made: Plan) -> str:
    if made.on_gpu:
        return count(made.devices, "GPU")
    return "CPU" if made.devices == 1 else f"CPU, {count(made.devices, 'process', 'processes')}"


def _figures(made: Plan, came: Truth) -> list[tuple[str, str, str]]:
    """(name, planned, measured), without those that the run has neither of."""
    memory = made.memory.total if made.memory else None
    found = [
        (tr("Device"), _devices(made), NONE),
        (tr("Steps"), count(made.steps), count(came.steps)),
        (tr("Engine"), engine(made.engine), engine(came.engine or "")),
        (tr("Recomputed layers"), count(made.recompute), count(came.recompute)),
        (tr("Tokens a row"), count(made.token_budget), count(came.token_budget)),
        (tr("Memory"), size(memory), size(came.memory)),
        (tr("Time"), duration(made.seconds), duration(came.seconds)),
        (tr("Disk"), size(made.disk), size(came.disk)),
    ]
    return [row for row in found if row[1:] != (NONE, NONE)]
