"""The switch that takes the studio off the hub, and what is sent along with a question."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from test_jobs import new_run

from tuner.config import settings
from tuner.jobs import diagnostics, offline
from tuner.tracking import outcome
from tuner.tracking.runs import create_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TUNER_WENT_OFFLINE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_the_offline_switch_is_a_line_of_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / "settings.yaml"
    file.write_text("# mine\nwebhook: $HOOK  # a variable\n")
    offline.set_offline(True)
    assert file.read_text() == "# mine\nwebhook: $HOOK  # a variable\noffline: true\n"
    assert settings.settings().offline and os.environ["HF_HUB_OFFLINE"] == "1"
    offline.set_offline(False)
    assert not settings.settings().offline and "HF_HUB_OFFLINE" not in os.environ
    assert file.read_text().count("offline") == 1

    file.write_text('{"webhook": "$HOOK", "ray_cpus": 2}\n')
    offline.set_offline(True)
    assert settings.settings().offline and settings.settings().ray_cpus == 2
    offline.set_offline(False)

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as a dashboard has it that imported it before
    offline.set_offline(True)
    assert constants.HF_HUB_OFFLINE
    offline.set_offline(False)
    assert not constants.HF_HUB_OFFLINE

    os.environ["HF_HUB_OFFLINE"] = "1"  # said by hand: the switch does not undo it
    offline.set_offline(True)
    offline.set_offline(False)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_diagnostics_bundle_has_what_is_needed_and_no_secret(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisIsASecretOfMine42")
    (home / "settings.yaml").write_text("webhook: https://hooks.example.com/T0/B0/verySecretPath\n")
    run = create_run(new_run(2).config(), "broken")
    run.log_path.write_text("Traceback: HF_TOKEN=hf_thisIsASecretOfMine42 and https://me:pass@host/x\n")
    outcome.finish(run, "failed")
    with zipfile.ZipFile(io.BytesIO(diagnostics.bundle())) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {"machine.json", "settings.yaml", f"runs/{run.id}/status.json", f"runs/{run.id}/log.txt"} <= set(
        texts
    )
    assert '"torch": "' in texts["machine.json"] and "Traceback" in texts[f"runs/{run.id}/log.txt"]
    everything = "\n".join(texts.values())
    assert not [s for s in ("ASecretOfMine", "verySecretPath", "me:pass") if s in everything]


@pytest.mark.parametrize(
    "written",
    [
        'webhook: {}', 'webhook : "{}"', '"webhook": {}', "{{webhook: '{}', offline: true}}", '{{"webhook": "{}"}}',
        "webhook: >-\n  {}", "webhook:\n  {}", "webhook: {}\nnonsense: true", "webhook: {}\n- [",
    ],
)  # fmt: skip
def test_a_webhook_is_masked_however_it_is_written(home: Path, written: str) -> None:
    (home / "settings.yaml").write_text(written.format("https://hooks.example.com/T0/verySecretPath"))
    with zipfile.ZipFile(io.BytesIO(diagnostics.bundle())) as archive:
        text = archive.read("settings.yaml").decode()
    assert "verySecret" not in text and "webhook" in text and "***" in text


def test_no_secret_is_cut_in_two_where_a_log_begins(home: Path) -> None:
    log = home / "mlruns" / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    first = "asked https://me:oneVeryLongPassword@host/x\n"
    log.write_text(first + "." * (diagnostics.SUPERVISOR_END - len("LongPassword@host/x\n") - 1) + "\n")
    with zipfile.ZipFile(io.BytesIO(diagnostics.bundle())) as archive:
        text = archive.read("supervisor.log").decode()
    assert text.startswith("...") and "LongPassword" not in text


def test_the_page_shows_machine_disk_tracker_and_switch(
    home: Path, libraries_looked_through_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_run(2)
    app = AppTest.from_file(str(ROOT / "pages" / "settings.py"), default_timeout=60).run()
    assert not app.exception, app.exception
    said = " ".join(one.value for one in [*app.markdown, *app.subheader])
    for part in ("Hardware", "MLflow answers", "Network", "Notifications", "Diagnostics", "Disk"):
        assert part in said
    app.toggle(key="offline").set_value(True).run()
    assert settings.settings().offline
