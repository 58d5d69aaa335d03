"""Chat: a talk with a base model and its adapters, side by side; the page's address is the talk's."""

import streamlit as st

from tuner.text.lookup import tr
from tuner.ui import chatting, theme

talk = chatting.current()
chatting.head(talk)
with theme.card("chat-settings", gap="small"):
    chatting.settings(talk)
    standing = chatting.standing(talk)
chatting.compose(talk)
hint = st.empty()  # takes the word away at once: while an answer is written, the page is not finished
if not talk.turns:
    with hint.container():
        theme.empty(
            "forum",
            tr("Start a chat"),
            tr("Chats are saved on this machine, each under an address of its own."),
        )
with st.container(key="chat-turns"):
    chatting.shown(talk, standing)
