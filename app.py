"""The studio's dashboard: navigation and the sidebar's status line; nothing else."""

import streamlit as st

from tuner.text.lookup import tr
from tuner.ui import guard, languages, live, login, state, theme

st.set_page_config(page_title="tuner", page_icon=theme.MARK, layout="wide")
st.logo(theme.MARK, size="large")
theme.apply()
languages.begin()
inside = login.inside()
if inside:
    state.depart()
page = st.navigation(
    {
        tr("Build"): [
            st.Page("pages/home.py", title=tr("Home"), icon=":material/home:", default=True),
            st.Page("pages/datasets.py", title=tr("Datasets"), icon=":material/database:"),
            st.Page("pages/new_run.py", title=tr("New run"), icon=":material/add_circle:"),
            st.Page("pages/runs.py", title=tr("Runs"), icon=":material/monitoring:"),
        ],
        tr("Analyse"): [
            st.Page("pages/compare.py", title=tr("Compare"), icon=":material/compare_arrows:"),
            st.Page("pages/history.py", title=tr("History"), icon=":material/history:"),
        ],
        tr("Publish"): [
            st.Page("pages/adapters.py", title=tr("Adapters"), icon=":material/layers:"),
            st.Page("pages/chat.py", title=tr("Chat"), icon=":material/forum:"),
            st.Page("pages/decide.py", title=tr("Decide"), icon=":material/rule_settings:"),
            st.Page("pages/arena.py", title=tr("Arena"), icon=":material/swords:"),
            st.Page("pages/evaluate.py", title=tr("Evaluate"), icon=":material/rule:"),
            st.Page("pages/settings.py", title=tr("Settings"), icon=":material/settings:"),
        ],
    },
    position="sidebar" if inside else "hidden",
)
if not inside:
    login.door()
    st.stop()
state.arrived(page.url_path)
with st.sidebar:
    login.who()
    live.status_line()
    languages.switch()
live.warm()
guard.run(page.run)
