"""The scale of the studio in figures: `python -m tests.scale.long [--tree DIR]`, which `make test-scale` runs.

It ends with one line of JSON. `--tree` asks another checkout, an older one say, in the same way; what that one cannot
answer, or not in time, is null. All costs are CPU seconds of the process that is asked, so that a busy machine is no
fault. Ratios are those of 10,000 runs to 100.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

FEW, MANY = 100, 10_000
PAGES = ("home", "runs", "history", "compare")
PATIENCE = 100.0
"""CPU seconds that one question may take, and a quarter of its seconds by the clock; who needs longer has no answer."""
SESSIONS = 30


class Asked:
    """A tree, asked about studios under one folder, each in a process of its own."""

    def __init__(self, tree: Path, folder: Path):
        self.tree, self.folder = tree, folder

    def home(self, name: str) -> Path:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return home

    def __call__(self, home: str, *words: object, patience: float = PATIENCE) -> dict[str, Any]:
        own = {"TUNER_HOME": str(self.home(home)), "PYTHONPATH": f"{self.tree}:{ROOT / 'tests'}"}
        return _told(
            [sys.executable, "-m", "scale.ask", *map(str, words)], {**os.environ, **own}, self.tree, patience
        )

    def fill(self, home: str, *words: object) -> None:
        """A studio, unless it was filled before."""
        filled = self.home(home) / "filled"
        if not filled.exists() and self(home, *words, patience=6 * PATIENCE):
            filled.touch()

    def beside(self, what: str, *words: object) -> dict[str, Any]:
        """What tests/scale/sessions.py tells of a dashboard of this tree."""
        home = self.home(what)
        own = {"TUNER_HOME": str(home), "PYTHONPATH": f"{self.tree}:{ROOT / 'tests'}"}
        arguments = ", ".join([f"Path({str(home)!r})", f"Path({str(self.tree)!r})", *map(repr, words)])
        code = f"import json; from pathlib import Path; from scale import sessions; print(json.dumps(sessions.{what}({arguments})))"
        return _told([sys.executable, "-c", code], {**os.environ, **own}, self.tree, PATIENCE)


def _told(command: list[str], environment: dict[str, str], tree: Path, patience: float) -> dict[str, Any]:
    """The last line of what it prints; empty where it fails or takes too long."""
    calm = {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1", "TUNER_SUPERVISOR_IDLE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    began = time.monotonic()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment | calm, cwd=tree, stdout=pipe, stderr=pipe, text=True
    ) as process:
        out, err = _read(process, patience)
    said = err[-400:] or "no answer in time" if process.returncode else ""
    found: dict[str, Any] = {} if said else json.loads(out.splitlines()[-1])
    print(f"{' '.join(command[2:])[-90:]}: {time.monotonic() - began:.0f} s {said or found}", file=sys.stderr)
    return found


def _read(process: subprocess.Popen[str], patience: float) -> tuple[str, str]:
    """All that it prints; it is killed once it has had its time. A limit set by the system would make its own clock of
    CPU seconds too coarse for what is measured with it."""
    seen, end = psutil.Process(process.pid), time.monotonic() + 4 * patience
    while True:
        try:
            return process.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            with suppress(psutil.Error):
                if seen.cpu_times().user > patience or time.monotonic() > end:
                    process.kill()


def ratio(of: dict[str, Any], to: dict[str, Any], name: str) -> float | None:
    if of.get(name) is None or not to.get(name):
        return None
    return round(of[name] / to[name], 2)


def lists(ask: Asked) -> dict[str, Any]:
    """Lists and pages at 10,000 runs and 2,000 adapters, held against 100 and 20."""
    for count, adapters in ((FEW, 20), (MANY, 2000)):
        ask.fill(str(count), "fill", count, adapters)
    few, many = ask(str(FEW), "lists"), ask(str(MANY), "lists")
    found: dict[str, Any] = {
        f"{name}_10000_to_100": ratio(many, few, name)
        for name in ("newest", "search", "failed", "one", "choices", "queue")
    }
    found |= {
        f"{name}_changed_10000_to_100": ratio(many, few, f"{name}_changed")
        for name in ("newest", "search", "failed", "one", "choices")
    }
    for name in ("newest", "search"):
        mlflow = {f"{name}_changed": many.get(f"{name}_mlflow")}
        found[f"{name}_to_mlflow"] = ratio(many, mlflow, f"{name}_changed")
    for name in (*PAGES, "adapters"):
        small, large = ask(str(FEW), "page", name), ask(str(MANY), "page", name)
        found[f"{name}_page_10000_to_100"] = ratio(large, small, "seconds")
        found[f"{name}_page_seconds"] = _rounded(large.get("seconds"))
    return found


def curves(ask: Asked) -> dict[str, Any]:
    """Six curves of a million points, and one of ten million: first draw, next draw, first draw of another process."""
    ask.fill("curves", "fill_curves", 6, 1_000_000, 10_000_000)
    found = {}
    for name, words in (("six_1m", ("curves", 6)), ("one_10m", ("long_curve",))):
        first, other = ask("curves", *words), ask("curves", *words)
        found[f"{name}_first"] = _rounded(first.get("first"))
        found[f"{name}_again"] = _rounded(first.get("again"))
        found[f"{name}_kept"] = _rounded(other.get("first"))
        found[f"{name}_peak_mib"] = _rounded(first.get("peak_mib"))
    return found


def queue(ask: Asked) -> dict[str, Any]:
    few, many = ask("queue20", "waiting", 20), ask("queue200", "waiting", 200)
    return {
        "queue_200_to_20": ratio(many, few, "queue"),
        "supervisor_look_200_to_20": ratio(many, few, "look"),
        "supervisor_look_200_ms": _rounded(1000 * many["look"]) if many else None,
    }


def sessions(ask: Asked) -> dict[str, Any]:
    found = ask.beside("beside", SESSIONS, 40.0)
    names = ("per_session_minute", "share", "redraws", "mib_a_session")
    told = {f"sessions_{name}": _rounded(found.get(name)) for name in names}
    found = ask.beside("step_time", SESSIONS, 60, 2.5)
    return told | {f"beside_a_run_{name}": _rounded(value) for name, value in found.items()}


def soak(ask: Asked) -> dict[str, Any]:
    found = ask.beside("soak", 200, 1200)
    return {"soak_redraws": found.get("redraws"), "soak_grown_mib": _rounded(found.get("grown_mib"))}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


PARTS: dict[str, Callable[[Asked], dict[str, Any]]] = {
    part.__name__: part for part in (queue, sessions, soak, curves, lists)
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tree", type=Path, default=ROOT, help="the checkout that is asked")
    options.add_argument("--only", choices=PARTS, action="append", help="one part, and no other")
    options.add_argument("--studios", type=Path, help="where they are kept, filled, for the next time")
    given = options.parse_args()
    said: dict[str, Any] = {"tree": str(given.tree)}
    with tempfile.TemporaryDirectory(prefix="scale", ignore_cleanup_errors=True) as folder:
        if given.studios:
            given.studios.mkdir(exist_ok=True)
        ask = Asked(given.tree.resolve(), (given.studios or Path(folder)).resolve())
        for name in given.only or PARTS:
            said |= PARTS[name](ask)
    print(json.dumps(said), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
