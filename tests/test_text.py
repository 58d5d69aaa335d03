"""Messages: codes with parameters, which become sentences only where a person reads them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.runs.run import Run
from tuner.runs.status import Status
from tuner.runs.status import of as read_status
from tuner.text import message as m
from tuner.text.english import MESSAGES

ROOT = Path(__file__).parents[1] / "tuner"


def test_parts_go_with_their_parameters() -> None:
    known = {"signal": "signal 9 (SIGKILL)", "step": 0, "checkpoint": ""}
    assert (
        str(m.message("killed", **known))
        == "The worker was killed by signal 9 (SIGKILL) before its first step."
    )
    said = m.message("killed", **known | {"step": 7, "checkpoint": "checkpoint-5"})
    assert str(said) == "The worker was killed by signal 9 (SIGKILL) at step 7. checkpoint-5 is kept."


def test_values_are_not_read_as_fields() -> None:
    assert str(m.plain("{step} [of {0}")) == "{step} [of {0}"
    assert str(m.message("missing_file", name="{x}[y|z]")).startswith("{x}[y|z] is missing")


@pytest.mark.parametrize("said", [m.Message(), m.plain("x"), m.message("stopped", step=3)])
def test_messages_survive_json_and_tags(said: m.Message) -> None:
    assert m.of(json.loads(json.dumps(m.to_plain(said)))) == said
    assert m.of_tag(m.to_tag(said)) == said


def test_what_another_version_wrote_is_shown_as_it_is() -> None:
    assert str(m.of("Killed by signal 9.")) == "Killed by signal 9." == str(m.of_tag("Killed by signal 9."))
    assert str(m.Message("from_tomorrow", {"step": 3})) == "from_tomorrow 3"
    assert str(m.Message("stopped", {})) == "Stopped at step ; Resume continues from there."
    assert m.term("phase", "asking held-out questions") == "asking held-out questions"


def test_an_older_status_keeps_all_it_said() -> None:
    old = {
        "state": "failed", "reason": "Out of memory at step 3.", "reason_code": "out_of_memory", "notes": ["Engine: x."],
        "tracking": "MLflow is away.", "extra": {"name": "mine", "tags": {"a": "b"}, "gpus": [1], "resumes": 2,
        "resumed_from": "/c", "share": 0.5, "doing": "reading", "unheard": 1},
    }  # fmt: skip
    status = read_status(old)
    assert (status.reason, status.reason_code) == ("Out of memory at step 3.", "out_of_memory")
    assert (status.notes, status.tracking, status.name) == (["Engine: x."], "MLflow is away.", "mine")
    assert (status.tags, status.gpus, status.resumes, status.began_from) == ({"a": "b"}, [1], 2, "/c")


def _codes() -> set[str]:
    """Every code that the studio's own modules write out."""
    found = set()
    for path in ROOT.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "tuner.text.message" not in source and ".phase(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "message" and node.args:
                found |= {n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)}
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "phase" and node.args:
                found |= {f"phase.{n.value}" for n in node.args if isinstance(n, ast.Constant)}
    return {code for code in found if isinstance(code, str)}


def test_every_code_has_its_text() -> None:
    assert _codes() - set(MESSAGES) <= {"remedy."}
    for text in MESSAGES.values():
        assert re.sub(r"\[[^\[\]]*\]", "", text).count("[") == 0, text


WRITER = """
import sys
from tuner.runs.run import Run
run = Run(sys.argv[1])
for _ in range(200):
    run.update(**{sys.argv[2]: lambda now: getattr(now, sys.argv[2]) + 1})
"""


BUSY = """
import sys, time
from dataclasses import replace
from tuner.runs import locks
from tuner.runs.run import Run
run = Run(sys.argv[1])
with locks.locking(run.folder / "status.lock"):
    status = run.status()
    print("held", flush=True)
    for number in range(1, 8):
        time.sleep(0.5)
        run._replace(replace(status, resumes=number))
"""


def test_who_waits_behind_one_that_writes_all_the_time_waits_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    run = Run("both")
    run.folder.mkdir(parents=True)
    (tmp_path / "mlruns" / "open").mkdir(parents=True, exist_ok=True)
    run.write(Status())
    with subprocess.Popen([sys.executable, "-c", BUSY, run.id], stdout=subprocess.PIPE, text=True) as busy:
        assert busy.stdout is not None and busy.stdout.readline() == "held\n"
        run.update(resumes=lambda now: now.resumes + 1)
        assert busy.wait(60) == 0
    assert run.status().resumes == 8


def test_two_writers_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    run = Run("both")
    run.folder.mkdir(parents=True)
    (tmp_path / "mlruns" / "open").mkdir(parents=True, exist_ok=True)
    run.write(Status())
    names = ("resumes", "resumes", "step")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, run.id, name]) for name in names]
    assert [w.wait(120) for w in writers] == [0, 0, 0]
    assert (run.status().resumes, run.status().step) == (400, 200)
