"""Runs: what is at work and what waits; with ?run=ID the live page of one run."""

import streamlit as st

from tuner.config.kinds import KINDS, trains
from tuner.text.lookup import mark, tr
from tuner.tracking.evaluations import results
from tuner.ui import (
    answers,
    axis,
    decisions,
    evaluation,
    exporting,
    live,
    rollouts,
    run_actions,
    run_list,
    run_view,
    state,
    theme,
    what_next,
)

run_id = state.asked("run")
if not run_id:
    theme.head(tr("Runs"), tr("Running, queued and recent runs."))
    run_list.at_work()
    run_list.waiting()
    run_list.lately()
    st.stop()

run = run_list.find(run_id)
if run is None:
    theme.head(tr("Runs"))
    theme.empty("search_off", tr("No such run"), tr("It may have been deleted. History lists all runs."))
    st.page_link("pages/history.py", label=tr("History"), icon=":material/history:")
    st.stop()

values = run.values()
# A link to the page one is on does not change the browser's address, which the next click would go back to.
st.query_params["run"] = run_id
st.button(
    tr("Runs and queue"),
    icon=":material/arrow_back:",
    type="tertiary",
    key="to-all",
    on_click=state.go,
    args=("runs",),
)
with st.container(horizontal=True, vertical_alignment="center", key="run-head"):
    theme.head(run.name, run_view.lead(values) + run_view.launched_by(run))
    run_actions.actions(run)

live.piece(run_view.standing, run, 2.0)
run_actions.remedies(run)
what_next.strip(run)

names = [mark("Charts"), mark("Log"), mark("Config"), mark("Checkpoints"), mark("Details")]
if not trains(str(values.get("stage"))):
    names.remove("Checkpoints")
if (kind := KINDS.get(str(values.get("stage")))) and kind.family == "export":
    names.remove("Charts")
if exported := exporting.made(run):
    names.insert(0, mark("Export"))
if measured := bool(results(run)):
    names.insert(0, mark("Evaluation"))
if rollouts.has_rollouts(run):
    names.insert(1, mark("Rollouts"))
if answers.has_samples(run):
    names.insert(1, mark("Samples"))
if predicted := answers.predictions_of(run):
    names.insert(1 if values.get("do_train") else 0, mark("Predictions"))
if decided := decisions.report_of(run):
    names.insert(1 if values.get("do_train") else 0, mark("Decisions"))
state.reword("tab", names, tr)
tabs = dict(zip(names, st.tabs(list(map(tr, names)), key="tab", bind="query-params"), strict=True))
if measured and tabs["Evaluation"].open:
    with tabs["Evaluation"]:
        evaluation.panel(run)
if exported and tabs["Export"].open:
    with tabs["Export"]:
        exporting.shown(exported)
if "Charts" in tabs and tabs["Charts"].open:
    with tabs["Charts"]:
        axis.options()
        live.piece(run_view.curves, run, 3.0)
if "Rollouts" in tabs and tabs["Rollouts"].open:
    with tabs["Rollouts"]:
        rollouts.options(run)
        live.piece(rollouts.panel, run, 4.0)
if "Samples" in tabs and tabs["Samples"].open:
    with tabs["Samples"]:
        live.piece(answers.samples, run, 5.0)
if predicted and tabs["Predictions"].open:
    with tabs["Predictions"]:
        answers.predictions(predicted)
if decided and tabs["Decisions"].open:
    with tabs["Decisions"]:
        decisions.panel(run, decided)
if tabs["Log"].open:
    with tabs["Log"]:
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.text_input(
                tr("Find in the log"),
                type="search",
                key="log-search",
                placeholder=tr("text"),
                live=True,
                width=260,
            )
            st.download_button(
                tr("Download"),
                run.log_tail(50_000_000),
                f"{run.name}.log",
                icon=":material/download:",
                on_click="ignore",
            )
        live.piece(run_view.log, run, 2.0)
if tabs["Config"].open:
    with tabs["Config"]:
        run_view.config(run)
if "Checkpoints" in tabs and tabs["Checkpoints"].open:
    with tabs["Checkpoints"]:
        live.piece(run_view.saved, run, 5.0)
if tabs["Details"].open:
    with tabs["Details"]:
        run_view.facts(run)
