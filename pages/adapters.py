import streamlit as st

from tuner.ui import theme

theme.head("Adapters", "A sentence under the title that says what this page is for.")
with theme.card("a"):
    st.subheader("Card")
    st.metric("Loss", "0.693")
    st.text_input("Learning rate", "5e-05", help="x")
    st.button("Launch", type="primary")
    st.button("Cancel")
    st.selectbox("Stage", ["dpo", "sft"])
    st.progress(0.4, "40%")
    st.badge("running", color="primary")
    st.segmented_control("m", ["Basic", "Advanced"], default="Basic")
    st.code("tuner train --a b", language="bash")
theme.empty("history", "No runs yet", "Start one.")
