"""What the studio writes is its user's alone, whatever the umask; what lies in the person's own places is as theirs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuner import private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def own_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = os.umask(0o022)
    monkeypatch.delenv(private.VARIABLE, raising=False)
    yield
    os.environ.pop(private.VARIABLE, None)
    os.umask(before)


def test_a_process_writes_private_files_and_closes_what_an_older_one_left_open(home: Path) -> None:
    (home / "mlruns").mkdir(0o755)
    private.begin()
    assert mode(home / "mlruns") == 0o700
    (home / "mlruns" / "made").mkdir()
    (home / "mlruns" / "made" / "file").touch()
    assert (mode(home / "mlruns" / "made"), mode(home / "mlruns" / "made" / "file")) == (0o700, 0o600)
    with private.as_the_person():
        (home / "theirs").touch()
    (home / "ours").touch()
    assert (mode(home / "theirs"), mode(home / "ours")) == (0o644, 0o600)


def test_only_what_was_made_is_shared(home: Path) -> None:
    private.begin()
    (home / "saves").mkdir()
    (home / "saves" / "key").touch()  # the person's, and private on purpose
    with private.shared(home / "saves"):
        (home / "saves" / "deep").mkdir()
        (home / "saves" / "deep" / "weights").touch()
        (home / "saves" / "script").touch(0o700)
        (home / "saves" / "link").symlink_to(home / "saves" / "key")
    made = {p.name: mode(p) for p in (home / "saves").rglob("*")}
    assert made == {"key": 0o600, "deep": 0o755, "weights": 0o644, "script": 0o755, "link": 0o600}


def test_processes_that_a_private_one_starts_know_the_persons_umask(home: Path) -> None:
    lines = "from tuner import private; private.begin(); print(private.persons_umask())"
    inner = f"import subprocess, sys; {lines}; subprocess.run([sys.executable, '-c', {lines!r}])"
    done = subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True, umask=0o027)
    assert done.stdout.split() == ["23", "23"], done.stderr
