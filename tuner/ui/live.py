import streamlit as st


def status_line() -> None:
    st.caption("nothing runs")
