"""What votes say of the versions of a base model: strengths with their intervals, by tag."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from tuner.chats.battle import left_share
from tuner.chats.strengths import Game, Strength, expected, strengths
from tuner.jobs.serving import same_base
from tuner.text.lookup import tr
from tuner.tracking.adapters import AdapterRow
from tuner.tracking.store import TrackerError
from tuner.tracking.votes import BASE, Vote, tags, votes
from tuner.ui import serving, theme
from tuner.ui.words import NONE, count, place, safe, share

FEW = 30
"""Votes below which the board says that they are few."""


def of_base(base: str) -> list[Vote]:
    """The votes on a base model's versions. Raises TrackerError."""
    return [vote for vote in votes() if same_base(vote.base, base)]


@st.cache_data(show_spinner=False, max_entries=32)
def fitted(games: tuple[Game, ...]) -> list[Strength]:
    """Strengths against the base, where it has a game, else against the first by name."""
    return strengths(games, BASE)


def board(base: str) -> None:
    """Every contestant, the strongest first; the tag is chosen here."""
    try:
        cast = of_base(base)
    except TrackerError as error:
        st.warning(safe(error), icon=":material/cloud_off:")
        return
    st.subheader(tr("Scoreboard"), anchor=False)
    if not cast:
        st.caption(tr("No votes yet. Each one counts at the versions it is about, in MLflow."))
        return
    every = tags(cast)
    tag = None
    if every:
        tag = st.pills(
            tr("Tag"),
            every,
            format_func=safe,
            key="arena-by-tag",
            help=tr("Only votes on prompts of this tag."),
        )
    shown = [vote for vote in cast if tag in (None, vote.tag)]
    found = fitted(tuple(vote.game for vote in shown))
    anchor = next((one.name for one in found if one.value == one.low == one.high == 0), BASE)
    known = serving.versions(base)
    theme.frame([_row(one, anchor, known) for one in found], hide_index=True, key="scoreboard")
    st.caption(_about(shown, tr("the base model") if anchor == BASE else serving.named(anchor, known)))


def _row(one: Strength, anchor: str, known: Mapping[str, AdapterRow]) -> dict[str, str | int]:
    return {
        "Contestant": serving.named(one.name, dict(known)),
        "Strength": tr("0 (the measure)") if one.name == anchor else strength(one),
        "Battles": one.games,
        "Won": one.wins,
        "Tied": one.ties,
        "Lost": one.losses,
        "Expected to win": NONE if one.name == anchor else _chance(one),
    }


def strength(one: Strength) -> str:
    """A strength with its interval; that votes are missing, where they say nothing yet."""
    if not one.compared:
        return tr("no comparable battles")
    if not one.bounded:
        return tr("needs more votes")
    return tr("{value:+.2f}  ({low:+.2f} to {high:+.2f})", value=one.value, low=one.low, high=one.high)


def _chance(one: Strength) -> str:
    if not one.bounded:
        return NONE
    return tr(
        "{expected}  ({expected_2} to {expected_3})",
        expected=share(expected(one.value)),
        expected_2=share(expected(one.low)),
        expected_3=share(expected(one.high)),
    )


def _about(cast: list[Vote], anchor: str) -> str:
    said = tr(
        "{votes}. Strengths are logits of a Bradley-Terry model against {anchor}, "
        "a tie half a win; in brackets 95% intervals from 1,000 resamples.",
        votes=count(len(cast), "vote"),
        anchor=safe(anchor),
    )
    if len(cast) < FEW:
        return tr("{said} Too few votes for a conclusion.", said=said)
    left = left_share(cast)
    return (
        said
        if left is None
        else tr("{said} The left side won {left} of the votes that chose one.", said=said, left=share(left))
    )


def of_version(row: AdapterRow) -> tuple[str, str] | None:
    """What votes say of one version: its strength, and the rest of it; None where it has none or MLflow is away."""
    try:
        cast = of_base(place(row.base))
    except TrackerError:
        return None
    name = f"{row.name}/{row.version}"
    one = next((one for one in fitted(tuple(vote.game for vote in cast)) if one.name == name), None)
    if one is None:
        return None
    short = f"{one.value:+.2f}" if one.bounded else tr("needs votes")
    told = tr(
        "{strength} in logits, from {battles}: ",
        strength=strength(one),
        battles=count(one.games, "blind battle"),
    )
    return short, tr(
        "{told}{wins} won, {ties} tied, {losses} lost.",
        told=told,
        wins=one.wins,
        ties=one.ties,
        losses=one.losses,
    )
