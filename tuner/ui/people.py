"""Who may use the studio, and as what: the login section of .streamlit/secrets.toml, read once and checked as a whole."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tuner import hosts, paths
from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr

Role = Literal["launcher", "reader", ""]
CALLBACK = "/oauth2callback"
SHORTEST_SECRET = 32
SECTION = "tuner"
_NEEDED = ("redirect_uri", "cookie_secret", "client_id", "client_secret", "server_metadata_url")
_LEFT = ("client_kwargs", "expose_tokens")


@dataclass(frozen=True)
class People:
    """Roles by e-mail address and by group. Who is in neither list is refused or a reader, as `unknown` says.

    `groups_claim` is the claim of the id token that lists groups, with dots for one inside another; a login counts for
    `login_hours`.
    """

    launchers: tuple[str, ...] = ()
    launcher_groups: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    reader_groups: tuple[str, ...] = ()
    groups_claim: str = "groups"
    unknown: str = "refused"
    login_hours: float = 12.0

    def role(self, claims: Mapping[str, Any]) -> Role:
        """What an id token's claims make of a person; empty for one who is refused."""
        address = _address(claims)
        groups = set(_groups(claims, self.groups_claim))
        if address in self.launchers or groups & set(self.launcher_groups):
            return "launcher"
        if address in self.readers or groups & set(self.reader_groups) or self.unknown == "reader":
            return "reader"
        return ""

    def ended(self, claims: Mapping[str, Any]) -> bool:
        """Whether a login is too old: what it says of groups may be true no more."""
        issued = claims.get("iat")
        return not isinstance(issued, int | float) or time.time() > issued + self.login_hours * 3600


@dataclass(frozen=True)
class Login:
    """A login section that can be used: who may do what, and the address that people reach the studio by."""

    people: People
    address: hosts.Authority


def name_of(claims: Mapping[str, Any]) -> str:
    """What a person is called wherever it is said who did something: the address, else a name, on one line."""
    said = next((claims[n] for n in ("email", "preferred_username", "name", "sub") if claims.get(n)), "")
    return " ".join("".join(c if c.isprintable() else " " for c in str(said)).split())[:200]


def _address(claims: Mapping[str, Any]) -> str:
    """The e-mail address, unless the provider says that nobody has verified it."""
    verified = claims.get("email_verified", True)
    return str(claims.get("email") or "").strip().casefold() if verified in (True, "true") else ""


def _groups(claims: Mapping[str, Any], claim: str) -> Iterator[str]:
    found: Any = claims.get(claim)
    if found is None:
        found = claims
        for part in claim.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        yield found
    elif isinstance(found, list | tuple):
        yield from (group for group in found if isinstance(group, str))


# --- the file ------------------------------------------------------------------------------------------------------


def file() -> Path:
    """Where the login section stands."""
    return paths.home() / ".streamlit" / "secrets.toml"


@cache
def login() -> Login | None:
    """The login section as it was when the studio started; None where there is none, and then nobody logs in.

    Kept for the life of the process: a file that is taken away or broken meanwhile opens nothing. Raises ConfigError.
    """
    return read(file())


def read(path: Path) -> Login | None:
    """Read and check a login section. Raises ConfigError with every fault of it."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            [Problem("", tr("{path} cannot be read: {error}.", path=path, error=error))]
        ) from error
    auth, own = found.get("auth"), found.get(SECTION)
    if auth is None and own is None:
        return None
    wrong = [*_wrong_auth(auth), *_wrong_people(own)]
    if wrong:
        raise ConfigError([Problem("", f"{path}: {sentence}") for sentence in wrong])
    assert isinstance(auth, dict) and isinstance(own, dict)
    given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in own.items()}
    for name in ("launchers", "readers"):
        given[name] = tuple(address.strip().casefold() for address in given.get(name, ()))
    return Login(People(**given), _authority(auth["redirect_uri"]))


def manual() -> Path:
    """The page that tells how a login is set up."""
    return paths.shipped() / "docs" / "security.md"


def _wrong_auth(auth: Any) -> Iterator[str]:
    if not isinstance(auth, dict):
        yield tr(
            "[{section}] says who may do what, and nobody can log in; add [auth] with your provider, or remove it.",
            section=SECTION,
        )
        return
    missing = [name for name in _NEEDED if not isinstance(auth.get(name), str) or not auth[name]]
    if missing:
        yield tr(
            "[auth] lacks {missing}; {manual} has a whole example.",
            missing=", ".join(missing),
            manual=manual(),
        )
    for name in auth:
        if name not in (*_NEEDED, *_LEFT):
            yield tr(
                "[auth] has {name}, which is not read; there is one provider, and its settings stand in [auth] itself.",
                name=name,
            )
    secret, uri = auth.get("cookie_secret"), auth.get("redirect_uri")
    if isinstance(secret, str) and secret and len(secret) < SHORTEST_SECRET:
        yield (
            tr(
                "cookie_secret has {number} characters; make one of {shortest_secret} or more with"
                " `python -c 'import secrets; print(secrets.token_hex(32))'`.",
                number=len(secret),
                shortest_secret=SHORTEST_SECRET,
            )
        )
    if isinstance(uri, str) and uri:
        yield from _wrong_address(uri)


def _wrong_address(uri: str) -> Iterator[str]:
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        yield tr("redirect_uri {uri!r} is no address: {error}.", uri=uri, error=error)
        return
    if parts.path != CALLBACK or parts.query or parts.fragment:
        yield tr(
            "redirect_uri {uri!r} has to be the address of the studio with {callback} behind it and nothing else.",
            uri=uri,
            callback=CALLBACK,
        )
        return
    try:
        authority = _authority(uri)
    except ValueError as error:
        yield f"redirect_uri: {error}"
        return
    if parts.scheme != "https" and not (parts.scheme == "http" and authority.name in hosts.LOOPBACK):
        yield tr(
            "redirect_uri {uri!r} has to begin with https://, for the login travels in a cookie; put a proxy with TLS before the studio.",
            uri=uri,
        )


def _authority(uri: str) -> hosts.Authority:
    parts = urlsplit(uri)
    port = {"https": ":443", "http": ":80"}[parts.scheme] if parts.scheme in ("https", "http") else ""
    named = parts.netloc.removesuffix(port)
    if named in hosts.LOOPBACK:
        named += port
    return hosts.configured_name(named)


def _wrong_people(own: Any) -> Iterator[str]:
    if not isinstance(own, dict):
        yield tr(
            '[{section}] is missing; say there who may launch, for example launchers = ["you@example.org"].',
            section=SECTION,
        )
        return
    known = {f.name: f.default for f in fields(People)}
    for name, value in own.items():
        if name not in known:
            yield tr(
                "[{section}] knows no {name}; it has {known}.",
                section=SECTION,
                name=name,
                known=", ".join(known),
            )
        elif isinstance(known[name], tuple):
            if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
                yield tr('{name} has to be a list of words, for example {name} = ["a", "b"].', name=name)
        elif name == "unknown":
            if value not in ("refused", "reader"):
                yield tr('unknown has to be "refused" or "reader", not {value!r}.', value=value)
        elif name == "login_hours":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 720:
                yield tr("login_hours has to be a number above 0 and up to 720, not {value!r}.", value=value)
        elif not isinstance(value, str) or not value:
            yield tr("{name} has to be a word, not {value!r}.", name=name, value=value)
    if not own.get("launchers") and not own.get("launcher_groups"):
        yield tr(
            "[{section}] names nobody who may launch; fill in launchers or launcher_groups.", section=SECTION
        )
