"""Secrets of many kinds, each with a part that stands nowhere else, and the search for those parts in all that is written."""

from __future__ import annotations

import base64
import os
import secrets
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).parents[2]


class Canaries:
    """`kinds` maps a kind of secret to its value; `core` of each is what is looked for."""

    def __init__(self) -> None:
        self.cores: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        for kind, made in SHAPES.items():
            self.cores[kind] = "CANARY" + secrets.token_hex(6).upper()
            self.kinds[kind] = made.format(self.cores[kind])

    def __getitem__(self, kind: str) -> str:
        return self.kinds[kind]

    def environment(self) -> dict[str, str]:
        """The secrets that a person keeps in the environment."""
        return {
            "HF_TOKEN": self["environment: hub token"],
            "AWS_ACCESS_KEY_ID": "AKIA" + "CANARY0123456789",
            "AWS_SECRET_ACCESS_KEY": self["environment: AWS key"],
            "WANDB_API_KEY": self["environment: API key"],
            "MLFLOW_TRACKING_PASSWORD": self["environment: tracking password"],
            "DATABASE_URL": f"postgresql://me:{quote(self['environment: URL'], safe='')}@db.test/x",
        }

    def found_in(self, data: bytes) -> set[str]:
        """The kinds that stand in these bytes: plain (so url-encoded and JSON-escaped too), hexadecimal or base64."""
        return {kind for kind, core in self.cores.items() if any(form in data for form in _forms(core))}

    def found_under(self, folder: Path, but: tuple[str, ...] = ()) -> dict[str, set[str]]:
        """The files under a folder that hold one, with its kinds; `but` are names that may."""
        found = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in but):
            with suppress(OSError):
                if kinds := self.found_in(path.read_bytes()):
                    found[str(path.relative_to(folder))] = kinds
        return found


SHAPES = {
    "flag: hub_token": "hf_{}",
    "flag: hf_hub_token": "anything at all {}",
    "YAML: ms_hub_token": "{}",
    "resume: hub_token": "another {}",
    "environment: hub token": "hf_{}",
    "environment: AWS key": "wJalr/XUtn+{}=",
    "environment: API key": "{}abcdef",
    "environment: tracking password": 'it\'s "{}" \\ ü',
    "environment: URL": "p@/ss: {}",
    "URI: tracking password": "pw_{}",
    "URI: model": "pw{}",
    "URI: file": "pw{}",
    "flag: unknown key": "{}",
    "flag: refused key": "{}",
    "name: token": "hf_{}",
    "JSON: token": "{}",
    "note: key": "sk-proj-{}1a",
    "draft: password": "pw{}",
}


def _forms(core: str) -> Iterator[bytes]:
    raw = core.encode()
    yield raw
    yield raw.lower()
    yield raw.hex().encode()
    for shift in range(
        3
    ):  # where base64's groups may begin; the letters that its neighbours share are left out
        whole = base64.b64encode(b"\0" * shift + raw)
        yield whole[4 if shift else 0 : len(whole) - 4]


def open_to_others(folder: Path) -> list[str]:
    """What in a folder others may read, write or enter, with its permissions."""
    found = [(p, stat.S_IMODE(p.lstat().st_mode)) for p in (folder, *folder.rglob("*")) if not p.is_symlink()]
    return [f"{path} {mode:o}" for path, mode in found if mode & 0o077]


class Shell:
    """A person's shell in a studio of its own, with umask 000; `said` collects all that was printed."""

    def __init__(self, home: Path, canaries: Canaries, **environment: str):
        self.home, self.canaries = home, canaries
        own = {"TUNER_HOME": str(home), "PYTHONPATH": str(ROOT), "TUNER_SUPERVISOR_IDLE": "1"}
        own |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "empty-hub-cache"), "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **canaries.environment(), **own, **environment}
        self.said = b""
        self.shown: dict[str, bytes] = {}

    def tuner(self, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        """One verb. What the list of processes showed of it and its children meanwhile is kept in `shown`."""
        started = subprocess.Popen(
            [sys.executable, "-m", "tuner", *words],
            cwd=self.home,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            umask=0,
        )
        self._look(started)
        out, err = started.communicate(timeout=240)
        self.said += out + err
        return subprocess.CompletedProcess(words, started.returncode, out, err)

    def _look(self, started: subprocess.Popen[bytes]) -> None:
        """Read the process lists of this home until the verb has ended; the last look at each process counts, for
        Python needs a moment before anything can hide its words."""
        while started.poll() is None:
            time.sleep(0.05)
            for path in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if f"TUNER_HOME={self.home}".encode() in (path / "environ").read_bytes():
                        self.shown[path.name] = (path / "cmdline").read_bytes() or self.shown.get(
                            path.name, b""
                        )

    def leaked(self, but: tuple[str, ...] = ()) -> dict[str, set[str]]:
        """Where a secret is that should be nowhere: files of this home, what was printed, lists of processes."""
        found = self.canaries.found_under(self.home, ("mine.yaml", *but))
        if kinds := self.canaries.found_in(self.said):
            found["stdout and stderr"] = kinds
        for pid, words in self.shown.items():
            if kinds := self.canaries.found_in(words):
                found[f"/proc/{pid}/cmdline"] = kinds
        return found
