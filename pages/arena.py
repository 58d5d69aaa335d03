"""Arena: two sealed answers to one prompt, a vote, and only then who was who; strengths out of all votes."""

import streamlit as st

from tuner.text.lookup import tr
from tuner.ui import arena, scoreboard, theme

theme.head(
    tr("Arena"),
    tr("Two anonymous answers to one prompt. Vote for the better one; the models are shown afterwards."),
)
battle = arena.opened()
if battle is None:
    arena.setup()
    if base := st.session_state.get("arena-base"):
        scoreboard.board(str(base))
    st.stop()
with st.container(key="battle"):
    arena.fight(battle)
if battle.said is not None:
    scoreboard.board(battle.base)
