"""What can be done with a run: stopped, resumed, copied, compared; and what to do about one that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from tuner.config.config import check
from tuner.config.kinds import trains
from tuner.config.knobs import Problem
from tuner.jobs import control
from tuner.plan import preflight
from tuner.runs import checkpoints
from tuner.runs.reasons import label
from tuner.runs.run import Run
from tuner.runs.status import ENDED, Status
from tuner.text.lookup import mark, tr
from tuner.tracking.rows import PARENT
from tuner.ui import draft, history, state, theme, writes
from tuner.ui.words import count, mending, safe


def actions(run: Run) -> None:
    """Stop and Cancel while it lives, Resume once it has ended, Clone and Compare always."""
    status = run.status()
    with st.container(horizontal=True, gap="small", horizontal_alignment="right", key="run-actions"):
        if status.state == "queued":
            _ask(run, mark("Cancel"), ":material/close:", now=True, help=tr("Remove it from the queue."))
        elif status.state not in ENDED:
            stopping = status.state == "stopping"
            _ask(
                run,
                mark("Stop"),
                ":material/stop_circle:",
                help=tr("Saves a checkpoint first."),
                disabled=stopping,
            )
            _ask_twice(run, status)
        elif status.state != "finished":
            why = why_not_resumed(run)
            said = why or tr("Continues from the latest valid checkpoint.")
            st.button(
                tr("Resume"),
                icon=":material/resume:",
                type="primary",
                **writes.locked(help=said, disabled=bool(why)),
                on_click=resume,
                args=(run,),
                key=f"resume-{run.id}",
            )
        if not trains(str(run.values().get("stage"))):
            return
        st.button(
            tr("Clone"),
            icon=":material/content_copy:",
            help=tr("Open the form with these values."),
            on_click=state.go,
            args=("new_run",),
            kwargs={"clone": run.id},
            key=f"to-Clone-{run.id}",
        )
        parent = status.tags.get(PARENT, "")
        st.button(
            tr("Compare"),
            icon=":material/compare_arrows:",
            help=history.beside(parent),
            on_click=history.compare,
            args=([run.id], parent),
            key=f"to-Compare-{run.id}",
        )


def _ask(run: Run, name: str, icon: str, *, help: str, now: bool = False, disabled: bool = False) -> None:
    key = f"ask-{name}-{run.id}"
    lock = writes.locked(help=help, disabled=disabled)
    st.button(tr(name), icon=icon, key=key, on_click=_end, args=(run, now, icon), **lock)


def _ask_twice(run: Run, status: Status) -> None:
    """Cancel, which throws something away: what that is, and a second button."""
    icon = ":material/close:"
    with st.popover(
        tr("Cancel"), icon=icon, help=tr("Ends at once and saves nothing."), key=f"cancel-{run.id}"
    ):
        kept = checkpoints.of(run)
        since = (
            tr("since step {step_of}", step_of=count(checkpoints.step_of(kept[-1]))) if kept else tr("so far")
        )
        lost = tr(" Progress {since} is lost.", since=since) if status.step else ""
        st.markdown(
            tr("**End {name} now?**{lost} *Stop* saves a checkpoint first.", name=safe(run.name), lost=lost)
        )
        _ask(run, mark("Yes, cancel it"), icon, now=True, help=tr("Ends at once and saves nothing."))


def _end(run: Run, now: bool, icon: str) -> None:
    try:
        said = writes.stop(run, now=now).replace(tr("Run {id}", id=run.id), run.name)
        st.toast(safe(said), icon=icon)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")


def why_not_resumed(run: Run) -> str | None:
    """None if it would go on, else one sentence: it cannot, or it would end as it did."""
    if why := control.why_not_resumable(run):
        return why
    wrong = stands_against(run) if run.status().state in ENDED else []
    return (
        tr("It would fail at once: {sentence} Fix it in a copy.", sentence=wrong[0].sentence)
        if wrong
        else None
    )


def resume(run: Run, checkpoint: str | None = None) -> None:
    """Queue it again, or say why not."""
    try:
        writes.resume(run, checkpoint)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")


# --- why it failed -------------------------------------------------------------------------------------------------


def remedies(run: Run) -> None:
    """Why an ended run did not finish, and what to do about it, one click each."""
    status = run.status()
    if status.state not in ("failed", "interrupted"):
        return
    wrong = stands_against(run)
    kept = [remedy for remedy in status.remedies if not (wrong and remedy.get("action") == "resume")]
    offered = [*kept, *_mends(wrong, kept)]
    if not offered:
        return
    with theme.card("remedies"):
        st.markdown(tr("**What to do**"))
        for problem in wrong:
            if problem.sentence not in status.reason:
                st.markdown(safe(problem.sentence))
        with st.container(horizontal=True, gap="small"):
            for remedy in offered:
                st.button(
                    safe(label(remedy)),
                    key=f"remedy-{run.id}-{label(remedy)}",
                    icon=":material/build:",
                    on_click=_apply,
                    args=(run, remedy),
                    **(writes.locked() if remedy.get("action") == "resume" else {}),
                )


def stands_against(run: Run) -> list[Problem]:
    """What would stop the run again, as it is and as this machine is."""
    if not trains(str(run.values().get("stage"))):
        return []
    config, problems = check({n: v for n, v in run.values().items() if v is not None})
    return problems if config is None else [*problems, *preflight.problems(config)]


def _mends(wrong: Sequence[Problem], offered: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the run in which what is wrong is put right, or can be; without those that are offered already."""
    known = [remedy.get("values") for remedy in offered]
    mends = [dict(p.mend) for p in wrong if p.mend and dict(p.mend) not in known]
    made = [
        {"label": tr("{mending} in a copy", mending=mending(m)), "action": "clone", "values": m}
        for m in mends
    ]
    if wrong and not made and not offered:
        made = [{"label": tr("Fix it in a copy"), "action": "clone", "values": {}}]
    return made


def _apply(run: Run, remedy: dict[str, Any]) -> None:
    if remedy.get("action") == "resume":
        resume(run)
        return
    made, problem = draft.from_run(run.id)
    for name, wanted in dict(remedy.get("values") or {}).items():
        made = made.with_value(name, wanted)
    if problem:
        st.toast(safe(problem), icon=":material/error:")
        return
    draft.start_over(made)
    state.go("new_run")
