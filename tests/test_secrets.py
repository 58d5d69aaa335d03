"""No secret is left anywhere: 18 kinds are put in, and all that the studio writes, prints or shows is searched."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from tests.security.canaries import Canaries, open_to_others
from tests.security.secrets_walk import Walk, refused_lines
from tuner import cli
from tuner.config.config import KNOBS, check, load, make
from tuner.config.knobs import ConfigError
from tuner.config.writing import command
from tuner.jobs import resuming
from tuner.runs.run import Run
from tuner.text.message import plain
from tuner.tracking import outcome
from tuner.tracking.mirror import Mirror
from tuner.tracking.runs import create_run, delete_run, list_runs


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    home = tmp_path_factory.mktemp("canaries")
    tiny.model(home / "models" / "tiny")
    tiny.data(home / "data", rows=16)
    return Walk(home)


def test_the_search_finds_what_it_looks_for() -> None:
    import base64
    from urllib.parse import quote

    canaries = Canaries()
    for kind, value in canaries.kinds.items():
        raw = value.encode()
        for form in (raw, quote(value).encode(), json.dumps(value).encode(), base64.b64encode(raw)):
            assert canaries.found_in(b"before " + form) == {kind}
        for before in (b"u:", b"me:", b"you:"):
            assert canaries.found_in(base64.b64encode(before + raw)) == {kind}


def left(walk: Walk, record_property: Callable[[str, object], None]) -> dict[str, set[str]]:
    """Where a secret was left, but for the file of a run that may be resumed; counted for the long form."""
    found = walk.shell.leaked(but=("secrets.json",))
    record_property("secrets_sought", len(walk.canaries.kinds))
    record_property("secrets_leaked", len(set().union(*found.values())))
    return found


def test_nothing_is_left_of_what_a_run_says_and_fails_with(
    walk: Walk, record_property: Callable[[str, object], None]
) -> None:
    run_id = walk.failing_run()
    kept = walk.home / "mlruns" / "runs" / run_id / "secrets.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600  # it may be resumed
    status = json.loads((kept.parent / "status.json").read_text())
    assert "***" in json.dumps(status["cause"]) and status["state"] == "failed"
    log = (kept.parent / "log.txt").read_text()
    assert "a library's own words" in log
    assert "Bearer ***" in log
    walk.pages(run_id)
    assert open_to_others(walk.home / "mlruns") == []  # with umask 000
    assert walk.shell.shown, "no list of processes was looked at"
    assert left(walk, record_property) == {}


@pytest.mark.slow
def test_nothing_is_left_of_the_whole_way(walk: Walk, record_property: Callable[[str, object], None]) -> None:
    run_id = walk.failing_run()
    assert walk.refusals() == [2, 2, 2, 2, 2, 2]
    assert "http://***@127.0.0.1:1 exists" in walk.away_tracker()
    walk.resumed_and_deleted(run_id)
    walk.trained_to_the_end()
    kept = {path.parent.name for path in walk.home.glob("mlruns/runs/*/secrets.json")}
    assert run_id not in kept  # others failed and may be resumed
    assert open_to_others(walk.home / "mlruns") == []
    theirs = [walk.home / "saves", *(walk.home / "saves").rglob("*")]
    assert len(theirs) > 10  # as the person's umask has it
    assert {stat.S_IMODE(p.stat().st_mode) for p in theirs} == {0o666, 0o777}
    assert left(walk, record_property) == {}


@pytest.mark.parametrize("line", range(6))
def test_refusals_print_none(line: int, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canaries = Canaries()
    assert cli.main(["train", *refused_lines(canaries)[line]]) == 2
    said = capsys.readouterr()
    assert canaries.found_in((said.out + said.err).encode()) == set()
    assert said.err.startswith("tuner: ")


def test_a_tracker_that_is_away_is_named_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw_CANARY@127.0.0.1:1")
    run = create_run(make({"model_name_or_path": "m", "dataset": "d"}), "away")
    Mirror(run).close()
    assert "http://***@127.0.0.1:1 does not answer" in run.status().tracking
    assert "CANARY" not in list_runs().notice + (run.folder / "status.json").read_text()


# --- when secrets go


def a_run(**values: object) -> Run:
    config = make({"model_name_or_path": "m", "dataset": "d", "hub_token": "hf_" + "Z" * 30, **values})
    return create_run(config, "with a token")


def test_a_token_goes_with_the_last_chance_to_need_it(home: Path) -> None:
    finished, beyond_help, stopped = a_run(), a_run(), a_run()
    outcome.finish(finished, "finished")
    beyond_help.update(step=5)  # and no checkpoint
    outcome.finish(beyond_help, "failed", plain("Out of memory."))
    outcome.finish(stopped, "stopped")
    assert not finished.secrets_path.exists() and not beyond_help.secrets_path.exists()
    assert stopped.secrets() == {"hub_token": "hf_" + "Z" * 30}
    assert outcome.forget_old_secrets() == []
    stopped.update(ended=time.time() - outcome.SECRETS_KEPT - 1)
    waiting = a_run()
    assert outcome.forget_old_secrets() == [stopped]
    assert not stopped.secrets_path.exists() and waiting.secrets_path.exists()


def test_a_deleted_run_keeps_no_token(home: Path) -> None:
    run = a_run()
    outcome.finish(run, "stopped")
    delete_run(run.id)
    assert not run.secrets_path.exists()


def test_a_resumed_run_takes_the_new_token(home: Path) -> None:
    run = a_run(ms_hub_token="the old one")
    outcome.finish(run, "stopped")
    before = os.open(run.secrets_path, os.O_RDONLY)
    resuming.queue_again(run, secrets={"hub_token": "the new one"})
    assert run.secrets() == {"hub_token": "the new one", "ms_hub_token": "the old one"}
    assert run.config().hub_token == "the new one"
    assert stat.S_IMODE(run.secrets_path.stat().st_mode) == 0o600
    assert b"new" not in os.pread(before, 1000, 0)
    os.close(before)


# --- what may not be a knob


def test_every_field_that_holds_a_secret_is_one() -> None:
    secret = {name for name, knob in KNOBS.items() if knob.secret}
    assert secret == {"hf_hub_token", "ms_hub_token", "hub_token"}
    config = make({"model_name_or_path": "m", "dataset": "d", **dict.fromkeys(secret, "CANARY")})
    assert "CANARY" not in command(config) and "CANARY" not in json.dumps([config.plain(), config.changed()])


@pytest.mark.parametrize(
    "values",
    [
        {"output_dir": "https://me:pw@host/x"},
        {"run_name": "hf_" + "a1B" * 10},
        {"dataset": ["s3://key:secret@bucket/set"]},
        {"fsdp_config": {"deep": [{"api_key": "x"}]}},
        {"default_system": "Use sk-proj-" + "a1B" * 10},
    ],
)
def test_a_secret_in_a_knob_that_is_recorded_is_refused(values: dict[str, object]) -> None:
    _, problems = check({"model_name_or_path": "m", "dataset": "d", **values})
    knob = next(iter(values))
    assert [p.knob for p in problems if "holds a password or a token" in p.sentence] == [knob]


@pytest.mark.parametrize(
    ("stage", "knob", "value"),
    [
        ("evaluate", "judge_url", "http://me:CANARY-pw@host/v1"),
        ("evaluate", "judge_url", "http://host/v1?key=sk-CANARY1234567890abcdefgh"),
        ("serve", "api_model_name", "hf_" + "a1B" * 10),
        ("export", "export_dir", "https://me:CANARY-pw@host/x"),
        ("import", "adapter_name_or_path", "https://me:CANARY-pw@host/x"),
    ],
)
def test_runs_that_do_not_train_refuse_it_as_well(stage: str, knob: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{knob} holds a password or a token") as refused:
        load({"stage": stage, "model_name_or_path": "m", knob: value})
    assert "CANARY" not in str(refused.value)


def test_the_secrets_of_runs_that_do_not_train_are_in_no_record() -> None:
    for stage, knob in (("serve", "api_key"), ("evaluate", "hf_hub_token"), ("export", "hf_hub_token")):
        config = load({"stage": stage, "model_name_or_path": "m", knob: "CANARY-of-mine"})
        assert config.secrets() == {knob: "CANARY-of-mine"}
        assert "CANARY" not in json.dumps([config.plain(), config.changed()])


def test_the_shipped_recipes_hold_none() -> None:
    from tuner.config.reading import read, recipes

    for name in recipes():
        assert not [p for p in check(read(name))[1] if "holds a password" in p.sentence], name
