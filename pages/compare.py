"""Compare: two to six runs beside each other, in the URL: curves, outcomes against a baseline, what was set otherwise."""

from contextlib import suppress
from functools import partial

import streamlit as st

from tuner.text.lookup import language, tr
from tuner.tracking.history import history, means, metric_names
from tuner.tracking.store import TrackerError
from tuner.ui import (
    answers,
    axis,
    chart_table,
    charts,
    compare,
    evaluation,
    report_html,
    sweeps,
    tables,
    theme,
)
from tuner.ui.words import listed, safe

theme.head(tr("Compare"), tr("Metrics, settings and answers of up to six runs against a baseline."))

rows = compare.pick()
if len(rows) < 2:
    theme.empty(
        "compare_arrows",
        tr("Choose at least two runs"),
        tr("Up to six. The address of this page keeps the selection."),
    )
    st.stop()

names = compare.names(rows)
baseline = compare.baseline(names)
metrics = compare.metrics(metric_names(names))

axis.options()
how = axis.chosen()
scales = {run_id: axis.scale_of_run(run_id).of(how.axis) for run_id in names}
along = how.axis if all(scales.values()) else axis.STEP
histories, shown, figures = {}, {}, {}
with st.grid(2, min_column_width=420, gap="small") as grid:
    for metric in metrics:
        curves, others = compare.asked_alike(metric, history(names, metric), rows, baseline)
        chart = chart_table.of_metric(metric, score=chart_table.score_chart(metric_names(curves)))
        histories[metric], shown[metric] = curves, chart
        with grid.cell(), theme.card(f"chart-{metric.replace('/', '-')}", gap="xsmall"):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.markdown(f"**{chart.title}** :gray[{chart.unit}]", help=chart.help or None)
                st.space("stretch")
                st.download_button(
                    "CSV",
                    partial(charts.as_csv, curves, names, metric),
                    f"{metric.replace('/', '-')}.csv",
                    "text/csv",
                    icon=":material/download:",
                    type="tertiary",
                    on_click="ignore",
                    key=f"csv-{metric}",
                )
            own = along if chart.axis == tr("step") else axis.STEP
            stretched = compare.aligned(curves, scales, own)
            middle = compare.aligned(means(curves, metric), scales, own)
            drawn = figures[chart.title] = charts.overlay(
                axis.titled(chart, own),
                stretched,
                names,
                middle,
                smoothing=how.smoothing,
                log=how.log,
                clip=how.clip,
            )
            told = charts.in_words(chart.title, {names[i]: curve for i, curve in curves.items()}, chart.scale)
            charts.draw(drawn, f"compare-{metric}", told, group=f"compare {own} {chart.axis}")
            if others:
                st.caption(
                    tr(
                        "Not compared, because their questions differ: {names}.",
                        names=safe(listed(names[i] for i in others)),
                    )
                )

st.subheader(tr("Results"), anchor=False)
judged = {metric: compare.judged(metric, rows, baseline) for metric in metrics}
results = tables.outcomes(histories, names, baseline, shown, judged)
theme.frame(results, hide_index=True)
if any(histories[metric].keys() - ids and len(histories[metric]) > 1 for metric, ids in judged.items()):
    st.caption(
        tr("Not ranked: losses of different stages or from rewards, and rewards with different settings.")
    )

sweeps.draw(rows, metrics)

st.subheader(tr("Different settings"), anchor=False)
different = tables.knobs(rows, names)
if different:
    theme.frame(different, hide_index=True, column_config={"What it does": {"width": "large"}})
else:
    st.caption(tr("None: the configs are the same. Differences come from randomness or from changed data."))

if different_data := tables.data(rows, names):
    st.subheader(tr("Different data"), anchor=False)
    theme.frame(different_data, hide_index=True)

answers.compared(names)
with suppress(TrackerError):
    evaluation.compared(names, baseline)

st.subheader(tr("Cost"), anchor=False)
costs = tables.costs(rows, names)
theme.frame(costs, hide_index=True)
sections = {
    tr("Results"): results,
    tr("Different settings"): different,
    tr("Different data"): different_data,
    tr("Cost"): costs,
}
st.download_button(
    tr("Download as HTML"),
    partial(report_html.report, ", ".join(names.values()), figures, sections, language()),
    "comparison.html",
    "text/html",
    icon=":material/download:",
    on_click="ignore",
    help=tr("One file with curves and tables, for who has no studio. It needs no network."),
)
