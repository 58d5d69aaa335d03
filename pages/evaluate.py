"""Evaluate: a model and the versions of its adapters, asked the same questions and held against each other."""

import streamlit as st

from tuner.text.lookup import tr
from tuner.tracking.store import TrackerError
from tuner.ui import evaluating, theme
from tuner.ui.words import safe

theme.head(
    tr("Evaluate"),
    tr("Measure a model and its adapters on the same questions, and compare their answers."),
)

try:
    fields, side = st.columns([2.1, 1], gap="medium")
    with fields, theme.card("evaluate-fields"):
        config, problems = evaluating.form()
    with side:
        evaluating.card(config, problems)
except TrackerError as error:
    st.warning(safe(error), icon=":material/cloud_off:")
    st.stop()

st.subheader(tr("Evaluations"), anchor=False)
evaluating.earlier()
