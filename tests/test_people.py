"""Roles and the login section: who is what, what a fault of the file says, and where the studio may listen."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forks
import pytest

from tuner import hosts
from tuner.config.knobs import ConfigError
from tuner.ui import people, server
from tuner.ui.people import People

ROOT = Path(__file__).parents[1]
AUTH = {
    "redirect_uri": "https://studio.example.org/oauth2callback",
    "cookie_secret": "0123456789abcdef0123456789abcdef",
    "client_id": "studio",
    "client_secret": "told to nobody",
    "server_metadata_url": "https://id.example.org/.well-known/openid-configuration",
}
ROLES = 'launchers = ["mia@example.org"]'
LAB = People(
    launchers=("mia@example.org",),
    launcher_groups=("gpu",),
    readers=("ron@example.org",),
    reader_groups=("staff",),
    groups_claim="realm_access.roles",
)


def section(home: Path, roles: str | None = ROLES, **changed: str | None) -> Path:
    """A login section with some settings otherwise, None to leave one out."""
    folder = home / ".streamlit"
    folder.mkdir(exist_ok=True)
    file = folder / "secrets.toml"
    auth = {n: v for n, v in {**AUTH, **changed}.items() if v is not None}
    lines = ["[auth]", *(f'{name} = "{value}"' for name, value in auth.items())] if auth else []
    file.write_text("\n".join([*lines, *([] if roles is None else ["[tuner]", roles])]), encoding="utf-8")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"email": "mia@example.org"}, "launcher"),
        ({"email": " MIA@Example.ORG"}, "launcher"),
        ({"email": "mia@example.org", "email_verified": False}, ""),
        ({"email": "mia@example.org", "email_verified": "false"}, ""),
        ({"email": "mia@example.org.evil.test"}, ""),
        ({"email": "ron@example.org"}, "reader"),
        ({"email": "ron@example.org", "realm_access": {"roles": ["gpu"]}}, "launcher"),
        ({"email": "eve@example.org", "realm_access": {"roles": ["staff"]}}, "reader"),
        ({"email": "eve@example.org", "realm_access": {"roles": "gpu"}}, "launcher"),
        ({"realm_access.roles": ["gpu"]}, "launcher"),
        ({"realm_access": {"roles": ["gpus", "GPU", None, 3]}}, ""),
        ({"realm_access": ["roles"], "groups": ["gpu"]}, ""),
        ({"preferred_username": "mia@example.org", "name": "mia@example.org"}, ""),
        ({}, ""),
    ],
)
def test_a_role_comes_from_an_address_or_a_group(claims: dict[str, Any], role: str) -> None:
    assert LAB.role(claims) == role
    welcoming = People(launchers=LAB.launchers, unknown="reader")
    assert welcoming.role(claims) in ("reader", "launcher")


def test_a_login_ends_and_one_without_a_time_does_not_count() -> None:
    now = time.time()
    assert not LAB.ended({"iat": now - 11 * 3600})
    assert LAB.ended({"iat": now - 13 * 3600}) and LAB.ended({}) and LAB.ended({"iat": "now"})


def test_a_name_is_one_line_of_what_can_be_read() -> None:
    assert people.name_of({"email": "a@b.c", "name": "A"}) == "a@b.c"
    assert people.name_of({"name": "A\n\x1b[31mB\u202e  C"}) == "A [31mB C"
    assert people.name_of({"sub": "x" * 999}) == "x" * 200
    assert people.name_of({}) == ""


def test_a_whole_section_is_read(home: Path) -> None:
    more = 'launchers = ["Mia@Example.org"]\nunknown = "reader"\nlogin_hours = 1\ngroups_claim = "roles"'
    found = people.read(section(home, more))
    assert found is not None and found.address == hosts.Authority("studio.example.org", None)
    assert found.people == People(
        launchers=("mia@example.org",), unknown="reader", login_hours=1, groups_claim="roles"
    )
    for uri, name, port in (
        ("http://localhost:8501/oauth2callback", "localhost", 8501),
        ("http://[::1]:9000/oauth2callback", "[::1]", 9000),
        ("https://studio.example.org:8443/oauth2callback", "studio.example.org", 8443),
        ("https://studio.example.org:443/oauth2callback", "studio.example.org", None),
        ("https://localhost/oauth2callback", "localhost", 443),
    ):
        found = people.read(section(home, redirect_uri=uri))
        assert found is not None and found.address == hosts.Authority(name, port)


def test_no_file_and_a_file_about_something_else_are_no_login(home: Path) -> None:
    assert people.read(home / ".streamlit" / "secrets.toml") is None
    file = section(home)
    file.write_text('[database]\npassword = "x"\n')
    assert people.read(file) is None


@pytest.mark.parametrize(
    ("roles", "changed", "said"),
    [
        (None, {}, "[tuner] is missing"),
        (ROLES, dict.fromkeys(AUTH), "nobody can log in"),
        (ROLES, {"client_secret": None, "redirect_uri": None}, "lacks redirect_uri, client_secret"),
        (ROLES, {"cookie_secret": "short"}, "cookie_secret has 5 characters"),
        (ROLES, {"redirect_uri": "http://studio.example.org/oauth2callback"}, "has to begin with https://"),
        (ROLES, {"redirect_uri": "ftp://studio.example.org/oauth2callback"}, "has to begin with https://"),
        (ROLES, {"redirect_uri": "https://studio.example.org/"}, "with /oauth2callback behind it"),
        (
            ROLES,
            {"redirect_uri": "https://studio.example.org/x/oauth2callback"},
            "with /oauth2callback behind it",
        ),
        (ROLES, {"redirect_uri": "https://a b/oauth2callback"}, "no host name"),
        (ROLES, {"redirect_uri": "https://[::1/oauth2callback"}, "redirect_uri"),
        (ROLES, {"redirect_uri": "https://me:pw@studio.example.org/oauth2callback"}, "no host name"),
        (ROLES, {"clientid": "x"}, "[auth] has clientid, which is not read"),
        ("", {}, "names nobody who may launch"),
        ('readers = ["a@b.c"]', {}, "names nobody who may launch"),
        ('launchers = "mia@example.org"', {}, "has to be a list of words"),
        ("launchers = [1]", {}, "has to be a list of words"),
        (f"{ROLES}\nlauncher = []", {}, "knows no launcher;"),
        (f'{ROLES}\nunknown = "launcher"', {}, 'has to be "refused" or "reader"'),
        (f"{ROLES}\nlogin_hours = 0", {}, "login_hours has to be"),
        (f"{ROLES}\nlogin_hours = true", {}, "login_hours has to be"),
        (f"{ROLES}\nlogin_hours = nan", {}, "login_hours has to be"),
        (f"{ROLES}\ngroups_claim = 3", {}, "groups_claim has to be a word"),
        ("launchers = [", {}, "cannot be read"),
    ],
)
def test_a_fault_of_the_section_is_said(
    home: Path, roles: str | None, changed: dict[str, str | None], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        people.read(section(home, roles, **changed))
    assert said in str(refused.value) and "told to nobody" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)]
    + [(name, False) for name in ("0.0.0.0", "::", "10.0.0.5", "", "gpu7", "localhost.example.org", "127.1")],
)
def test_which_addresses_only_this_machine_reaches(host: str, alone: bool) -> None:
    assert server.loopback(host) == alone


def webui(home: Path, *words: str) -> tuple[int, str]:
    """`tuner webui`, which ends before it serves anything: its exit code and what it said."""
    (code,) = forks.done(forks.program("tuner", "webui", "--port", "1", *words), log=home / "said")
    return code, (home / "said" / "0.log").read_text()


def webui_anew(home: Path, *words: str, **environment: str) -> tuple[int, str]:
    """The same in an interpreter of its own, for whose environment the libraries are not loaded yet."""
    own = {"TUNER_HOME": str(home), "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "webui", "--port", "1", *words],
        cwd=ROOT,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_the_studio_ends_at_once_where_it_would_be_open_or_could_let_nobody_in(home: Path) -> None:
    for host in ("::", "gpu7"):
        with pytest.raises(ValueError, match="set up a login first"):
            server.guarded(host)
    code, said = webui(home, "--host", "0.0.0.0")
    assert code == 2 and "set up a login first" in said and "Traceback" not in said
    section(home, cookie_secret="short")
    code, said = webui(home)
    assert code == 2 and "cookie_secret has 5 characters" in said and "Traceback" not in said
    section(home)
    (home / "without" / "authlib").mkdir(parents=True)  # stands before the real one, and holds nothing
    (home / "without" / "authlib" / "__init__.py").touch()
    code, said = webui_anew(home, PYTHONPATH=os.pathsep.join((str(home / "without"), str(ROOT))))
    assert code == 2 and "pip install 'tuner[auth]'" in said and "Traceback" not in said


def test_the_name_in_redirect_uri_is_answered_through_a_proxy_and_no_other(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("authlib", reason="Authlib is not installed; pip install -e .[dev]")
    people.login.cache_clear()
    try:
        file = section(home)
        allowed = server.guarded("0.0.0.0")  # with a login any address will do
        assert capsys.readouterr().err == ""
        file.chmod(0o644)
        assert server.guarded("127.0.0.1") == allowed
        assert "chmod 600" in capsys.readouterr().err
    finally:
        people.login.cache_clear()
    for name, refused in (("studio.example.org", False), ("evil.test", True), ("id.example.org", True)):
        headers = [(b"host", name.encode()), (b"origin", f"https://{name}".encode())]
        scope = {"type": "websocket", "scheme": "ws", "server": ("127.0.0.1", 8501), "headers": headers}
        assert bool(hosts.refusal(scope, allowed)) == refused
