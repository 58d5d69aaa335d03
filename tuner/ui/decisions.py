"""What a decision model answered to the rows kept aside: its figures beside the prior's, how sure and how right, and what it
takes for what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from tuner.data.decisions import REPORT
from tuner.runs.run import Run
from tuner.text.lookup import mark, tr
from tuner.ui import charts, theme
from tuner.ui.chart import Chart
from tuner.ui.theme import PALETTES
from tuner.ui.words import NONE, count, number, safe, share

TYPES = {"noul": mark("yes or no"), "choice": mark("one of several"), "score": mark("how much")}
FIGURES = {
    "accuracy": (mark("Accuracy"), mark("Questions whose likeliest option is the expected one.")),
    "record_accuracy": (mark("Whole records"), mark("Records of which every question is right.")),
    "brier": (
        mark("Brier score"),
        mark("The squared distance of the probabilities from what was expected; 0 is best."),
    ),
    "kl": (mark("KL"), mark("How many nats the probabilities are from those that were expected; 0 is best.")),
    "calibration_error": (
        mark("Calibration error"),
        mark("How far it is less, or more, often right than it is sure, on average."),
    ),
    "score_distance": (
        mark("Distance of levels"),
        mark("How many levels the mean level is from the expected one."),
    ),
}
"""What a decision model is measured by, with what it means."""
PERCENT = ("accuracy", "record_accuracy", "calibration_error")
LOW = ("brier", "kl", "calibration_error", "score_distance")
"""What is better when it is lower."""


def report_of(run: Run) -> dict[str, Any] | None:
    """The report of a run; None where it has none."""
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((run.folder / REPORT).read_text(encoding="utf-8"))
        return found
    return None


def panel(run: Run, report: Mapping[str, Any]) -> None:
    """Figures, the reliability diagram, and a table for each question."""
    st.caption(
        tr(
            "{questions} of {records} that were not learnt from.",
            questions=count(report["questions"], "question"),
            records=count(report["records"], "record"),
        )
    )
    with theme.card("decision-figures", gap="small"):
        theme.frame(figures(report), hide_index=True, height="content")
        st.caption(_temperatures(report["temperature"]))
    with st.grid(2, min_column_width=330, gap="small"):
        with theme.card("decision-reliability", gap="xsmall"):
            st.markdown(f"**{tr('How sure, and how often right')}**", help=tr(_HELP))
            bins = report["bins"]
            charts.draw(reliability(bins), f"{run.id}-reliability", _in_words(bins["after"]))
        for one in report["confusions"]:
            with theme.card(f"confusion-{one['name']}", gap="xsmall"):
                _confused(one)


def _confused(one: Mapping[str, Any]) -> None:
    about = f"{tr(TYPES[one['type']])}, {count(one['count'], 'answer')}"
    st.markdown(
        f"**{safe(one['name'])}** :gray[{about}]",
        help=tr("What it takes for what: rows are what was expected, columns what was answered."),
    )
    theme.frame(confusion(one), hide_index=True, height="content")


_HELP = mark(
    "Answers by how sure the model was of them. On the dashed line it is right as often as it says; below it, it is too sure "
    "of itself. A temperature moves the points towards the line and changes no answer."
)


def figures(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a figure: as it was learnt, with temperatures, and the most frequent answer's."""
    columns = {
        "Model": report["before"],
        "With temperature": report["after"],
        "Most frequent answer": report["prior"],
    }
    if not report["temperature"]:
        del columns["With temperature"]
    rows = [
        {"Figure": tr(said)} | _row(name, columns) | {"What it is": tr(why)}
        for name, (said, why) in FIGURES.items()
    ]
    for kind, word in TYPES.items():
        if f"accuracy/{kind}" in report["after"]:
            rows.append(
                {"Figure": tr("Accuracy, {what}", what=tr(word))}
                | _row(f"accuracy/{kind}", columns)
                | {"What it is": ""}
            )
    return [row for row in rows if row["Model"] != NONE]


def _row(name: str, columns: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    percent = name.partition("/")[0] in PERCENT
    values = {column: found.get(name) for column, found in columns.items()}
    return {c: NONE if v is None else share(v) if percent else number(v) for c, v in values.items()}


def _temperatures(found: Mapping[str, float]) -> str:
    if not found:
        return tr("No temperature was fitted: probabilities are as they were learnt.")
    told = ", ".join(f"{tr(TYPES[kind])} {value:g}" for kind, value in found.items())
    return tr("Temperatures: {told}.", told=told)


def reliability(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> go.Figure:
    """How often right [%] by how sure [%], before and after temperatures; the size of a point is how many answers it has."""
    colours = PALETTES["light"]
    frame = Chart("reliability", "", (), "", unit="%", scale=100, span=(0, 100), smoothed=False)
    drawn = charts.figure(frame, {})
    drawn.layout.annotations = ()
    drawn.add_scatter(
        x=[0, 100],
        y=[0, 100],
        mode="lines",
        line={"color": colours.quiet, "dash": "dash", "width": 1},
        hoverinfo="skip",
        showlegend=False,
    )
    for name, colour, dash in (("before", colours.series[1], "dot"), ("after", colours.series[0], "solid")):
        held = [one for one in bins[name] if one["count"]]
        every = sum(one["count"] for one in held) or 1
        drawn.add_scatter(
            x=np.array([100 * one["sure"] for one in held]),
            y=np.array([100 * one["right"] for one in held]),
            mode="lines+markers",
            name=tr("as learnt") if name == "before" else tr("with temperature"),
            line={"color": colour, "dash": dash, "width": 2},
            marker={
                "color": colour,
                "size": np.array([6 + 18 * (one["count"] / every) ** 0.5 for one in held]),
            },
            text=[count(int(one["count"]), "answer") for one in held],
            hovertemplate=f"{tr('sure')} %{{x:.0f}}%, {tr('right')} %{{y:.0f}}%, %{{text}}<extra></extra>",
        )
    drawn.update_xaxes(
        title={"text": f"{tr('sure')}, %", "font": {"size": 11, "color": colours.quiet}},
        range=[-3, 104],
        visible=True,
        showticklabels=True,
    )
    drawn.update_yaxes(
        title={"text": f"{tr('right')}, %", "font": {"size": 11, "color": colours.quiet}},
        range=[-3, 104],
        visible=True,
        showticklabels=True,
    )
    drawn.update_layout(showlegend=True, height=330, hovermode="closest")
    return drawn


def _in_words(bins: Sequence[Mapping[str, float]]) -> str:
    told = [
        tr(
            "sure {sure:.0%}, right {right:.0%} ({count:.0f})",
            sure=one["sure"],
            right=one["right"],
            count=one["count"],
        )
        for one in bins
        if one["count"]
    ]
    return tr("Reliability: {told}.", told="; ".join(told) or tr("no answer"))


def confusion(one: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for what was expected, a column for what was answered."""
    return [
        {
            "Expected": str(option),
            **{str(answer): times for answer, times in zip(one["options"], row, strict=True)},
        }
        for option, row in zip(one["options"], one["table"], strict=True)
    ]


def beside(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a question of a prediction: what was answered, how sure, and what was expected."""
    return [
        {
            "Question": name,
            "Answer": said,
            "Probability": share(p),
            "Expected": _likeliest(record["gold"][name])[0],
        }
        for name, answer in record["answers"].items()
        for said, p in [_likeliest(_by_option(answer))]
    ]


def _by_option(answer: Mapping[str, Any]) -> Mapping[str, float]:
    """The probability of each option of an answer."""
    if answer["type"] == "noul":
        return {"true": answer["noul"], "false": 1 - answer["noul"]}
    found: Mapping[str, float] = answer["probabilities"]
    return found


def _likeliest(by_option: Mapping[str, float]) -> tuple[str, float]:
    return max(by_option.items(), key=lambda one: one[1])
