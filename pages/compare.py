"""Compare: two to six runs beside each other, in the URL: curves, outcomes against a baseline, what was set otherwise."""

import streamlit as st

from tuner.tracking.history import history, metric_names
from tuner.ui import answers, chart_table, charts, compare, run_view, tables, theme

theme.head("Compare", "Runs beside each other: where their curves part, and what was set otherwise.")

rows = compare.pick()
if len(rows) < 2:
    theme.empty(
        "compare_arrows", "Choose two runs or more", "Up to six; the page's address keeps the choice."
    )
    st.stop()

names = compare.names(rows)
baseline = compare.baseline(names)
metrics = compare.metrics(metric_names(names))

run_view.chart_options()
smoothing, log = run_view.chosen_options()
histories = {metric: history(names, metric) for metric in metrics}
with st.grid(2, min_column_width=420, gap="small") as grid:
    for metric, curves in histories.items():
        chart = chart_table.of_metric(metric)
        with grid.cell(), theme.card(f"chart-{chart.key}", gap="xsmall"):
            st.markdown(f"**{chart.title}** :gray[{chart.unit}]", help=chart.help or None)
            drawn = charts.overlay(chart, curves, names, smoothing=smoothing, log=log)
            told = charts.in_words(chart.title, {names[i]: curve for i, curve in curves.items()}, chart.scale)
            charts.draw(drawn, f"compare-{chart.key}", told)

st.subheader("What they reached", anchor=False)
st.dataframe(tables.outcomes(histories, names, baseline), hide_index=True)

st.subheader("What was set otherwise", anchor=False)
different = tables.knobs(rows, names)
if different:
    st.dataframe(different, hide_index=True, column_config={"What it does": {"width": "large"}})
else:
    st.caption(
        "Nothing: these runs have the same config. What differs is chance, or the data behind the same name."
    )

answers.compared(names)

st.subheader("What they took", anchor=False)
st.dataframe(tables.costs(rows, names), hide_index=True)
