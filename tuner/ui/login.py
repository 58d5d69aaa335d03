"""The login page, and who sits before this page. Where no login is set up nobody is asked, and everybody may everything."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import streamlit as st

from tuner.config.knobs import ConfigError
from tuner.text.lookup import mark, tr
from tuner.ui import people, theme
from tuner.ui.people import Role
from tuner.ui.words import safe

LACKING = mark(
    "Login is set up in {}, and Authlib, which it needs, is not installed: pip install 'tuner[auth]'."
)


class ReadOnly(Exception):  # noqa: N818  said as a sentence, as jobs' Refused
    """This person may not change anything; the message is one sentence that says why and what to do."""


@dataclass(frozen=True)
class Person:
    """Who sits before this page; `name` is empty where nobody logs in. `why_not` is why nothing may be changed."""

    name: str = ""
    role: Role = "launcher"
    why_not: str = ""
    again: bool = False
    """Whether a login is over, so that logging in once more helps."""


def required() -> bool:
    """Whether people have to log in. Raises ConfigError for a login section that cannot be used."""
    return people.login() is not None


def authlib_there() -> bool:
    """Whether Streamlit's login can work here."""
    try:
        importlib.import_module("authlib.integrations.starlette_client")
    except ImportError:
        return False
    return True


def person() -> Person:
    """Who asks, as this session's login says, judged anew at each call. Where in doubt: somebody who may nothing."""
    try:
        login = people.login()
    except ConfigError as error:
        return Person("nobody", "", str(error))
    if login is None:
        return Person()
    claims: dict[str, Any] = dict(st.user.to_dict())
    if claims.get("is_logged_in") is not True:
        return Person("nobody", "", tr("Nobody is logged in; reload the page and log in."))
    name = people.name_of(claims)
    if not name:
        return Person(
            "nobody",
            "",
            tr("Your login says neither who you are nor your address; ask whoever runs the provider."),
        )
    if login.people.ended(claims):
        return Person(name, "", tr("Your login has ended; reload the page and log in again."), again=True)
    role = login.people.role(claims)
    if role == "launcher":
        return Person(name, role)
    if role == "reader":
        return Person(
            name,
            role,
            tr(
                "You may look at everything and change nothing; whoever runs this studio can make you a launcher."
            ),
        )
    return Person(name, role, tr("You have no access to this studio. Ask whoever runs it to add you."))


def inside() -> bool:
    """Whether this person may see the studio. For everybody else there is the `door`."""
    return bool(person().role)


def door() -> None:
    """The login page, in the place of every other."""
    who = person()
    with theme.card("login"):
        st.markdown("**tuner**")
        if st.user.is_logged_in:
            st.markdown(
                tr("You are logged in as {name}. {why_not}", name=safe(who.name), why_not=safe(who.why_not))
            )
            st.button(tr("Log out"), icon=":material/logout:", on_click=st.logout, key="log-out")
        if not st.user.is_logged_in or who.again:
            st.button(tr("Log in"), icon=":material/login:", type="primary", on_click=st.login, key="log-in")


def who() -> None:
    """The sidebar's line that says as whom one is logged in; nothing where nobody logs in."""
    if not required():
        return
    now = person()
    with st.container(key="who", gap="xsmall"):
        st.caption(f":material/person: {safe(now.name)}, {now.role}", help=now.why_not or None)
        st.button(tr("Log out"), type="tertiary", icon=":material/logout:", on_click=st.logout, key="log-out")
