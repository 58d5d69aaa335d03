#!/usr/bin/env bash
# streamlit 1.67.0, plotly 7.1.0
#
# Behaviour: a plotly_chart with a key gets another element id as soon as its data changes: the figure is hashed into the id, key or not.
# Seen: the same key with one more point: two different ids. In the browser that is another DOM node: zoom, hover and a drag under way are lost.
# Why a good guess is wrong: 'with a stable key an element keeps its identity between reruns', as widgets do; uirevision in the figure does
# not help either, for it lives in the node that is thrown away.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check streamlit==1.67.0 plotly==7.1.0
cd "$work"
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
from streamlit.testing.v1 import AppTest

app = AppTest.from_string("""
import plotly.graph_objects as go
import streamlit as st
points = st.session_state.setdefault("points", 2)
st.plotly_chart(go.Figure(go.Scatter(y=list(range(points))), layout={"uirevision": "same"}), key="curve")
""").run()
before = app.main.children[0].proto.id
app.run()
assert app.main.children[0].proto.id == before  # nothing changed, nothing moves
app.session_state["points"] = 3
app.run()
after = app.main.children[0].proto.id
assert after != before and after.endswith("-curve") and before.endswith("-curve"), (before, after)
print("one more point makes another element")
PYTHON
