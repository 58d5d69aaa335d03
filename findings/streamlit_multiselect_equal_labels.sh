#!/usr/bin/env bash
# streamlit 1.67.0
#
# Behaviour: a multiselect whose format_func gives two options the same label hands back the first of them, whichever was chosen: what
# travels is the label, and the server looks it up among the labels.
# Seen: of the options 1 and 2, both shown as run, 2 is chosen, and the widget returns [1].
# Why a good guess is wrong: 'options are values, a label is decoration'. With two training runs of one name in a field, the button beside it
# compares or deletes the other one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check streamlit==1.67.0
cd "$work"
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
from streamlit.testing.v1 import AppTest

app = AppTest.from_string("""
import streamlit as st
st.session_state["got"] = st.multiselect("Runs", [1, 2], format_func=lambda option: "run", key="runs")
""").run()
app.multiselect(key="runs").select(2).run()
assert app.session_state["got"] == [1], app.session_state["got"]
print("2 was chosen, 1 came back")
PYTHON
