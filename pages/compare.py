"""Compare: two to six runs beside each other, in the URL: curves, outcomes against a baseline, what was set otherwise."""

from contextlib import suppress

import streamlit as st

from tuner.text.lookup import tr
from tuner.tracking.history import history, means, metric_names
from tuner.tracking.store import TrackerError
from tuner.ui import answers, axis, chart_table, charts, compare, evaluation, tables, theme
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
histories, shown = {}, {}
with st.grid(2, min_column_width=420, gap="small") as grid:
    for metric in metrics:
        curves, others = compare.asked_alike(metric, history(names, metric), rows, baseline)
        chart = chart_table.of_metric(metric, score=chart_table.score_chart(metric_names(curves)))
        histories[metric], shown[metric] = curves, chart
        with grid.cell(), theme.card(f"chart-{metric.replace('/', '-')}", gap="xsmall"):
            st.markdown(f"**{chart.title}** :gray[{chart.unit}]", help=chart.help or None)
            stretched = compare.aligned(curves, scales, along)
            middle = compare.aligned(means(curves, metric), scales, along)
            drawn = charts.overlay(
                axis.titled(chart, along),
                stretched,
                names,
                middle,
                smoothing=how.smoothing,
                log=how.log,
                clip=how.clip,
            )
            told = charts.in_words(chart.title, {names[i]: curve for i, curve in curves.items()}, chart.scale)
            charts.draw(drawn, f"compare-{metric}", told, group=f"compare {along}")
            if others:
                st.caption(
                    tr(
                        "Not compared, because their questions differ: {names}.",
                        names=safe(listed(names[i] for i in others)),
                    )
                )

st.subheader(tr("Results"), anchor=False)
judged = {metric: compare.judged(metric, rows, baseline) for metric in metrics}
theme.frame(tables.outcomes(histories, names, baseline, shown, judged), hide_index=True)
if any(histories[metric].keys() - ids and len(histories[metric]) > 1 for metric, ids in judged.items()):
    st.caption(
        tr("Not ranked: losses of different stages or from rewards, and rewards with different settings.")
    )

st.subheader(tr("Different settings"), anchor=False)
different = tables.knobs(rows, names)
if different:
    theme.frame(different, hide_index=True, column_config={"What it does": {"width": "large"}})
else:
    st.caption(tr("None: the configs are the same. Differences come from randomness or from changed data."))

answers.compared(names)
with suppress(TrackerError):
    evaluation.compared(names, baseline)

st.subheader(tr("Cost"), anchor=False)
theme.frame(tables.costs(rows, names), hide_index=True)
