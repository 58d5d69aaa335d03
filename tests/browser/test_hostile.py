"""Texts from data, files and trackers, drawn on every page: nothing in them is a picture, a link or code of the page."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]"
)
from conftest import still  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.browser

HOST = "evil.test"
HOSTILE = (
    f"![p](http://{HOST}/p.png) <img src=http://{HOST}/i.png onerror=window.__xss=1> [l](http://{HOST}/l) "
    f"http://{HOST}/bare www.{HOST} a@{HOST} <script>window.__xss=1</script> $x$ :red[y] `c` # h"
)


@pytest.fixture(scope="module")
def home(common_home: Path) -> Path:
    """Data sets that speak Markdown and HTML wherever a person reads them."""
    made = common_home
    info = json.loads((made / "data" / "dataset_info.json").read_text())
    rows = [
        {"instruction": HOSTILE, "input": "", "output": HOSTILE, "system": HOSTILE, HOSTILE: HOSTILE},
        {"instruction": "q", "input": "", "output": {HOSTILE: 1}},
        {"messages": [{"role": HOSTILE, "content": HOSTILE}]},
    ]
    (made / "data" / "hostile.json").write_text(json.dumps(rows))
    info["hostile"] = {"file_name": "hostile.json", "columns": {"system": "system"}}
    info[HOSTILE[:60]] = {"file_name": "hostile.json"}
    (made / "data" / "dataset_info.json").write_text(json.dumps(info))
    return made


# What leads or loads from elsewhere, with the element of the page that holds it.
LEADING = """host => [...document.querySelectorAll('a, img, iframe')].filter(
  e => new URL(e.href || e.src || '/', location).host.includes(host) || (e.href || '').startsWith('mailto:')).map(
  e => `${e.closest('[data-testid]')?.parentElement?.closest('[data-testid]')?.dataset.testid}: ${e.outerHTML.slice(0, 90)}`)"""


def hostile_run(studio, record) -> tuple[str, str]:
    """Two runs whose names, notes, tags, metrics, reasons, notes of the worker and logs are hostile; their ids."""
    from tuner.runs.metrics import MetricsLog
    from tuner.runs.run import Run
    from tuner.text.message import plain
    from tuner.tracking import outcome, runs

    found = []
    for number, state in enumerate(("finished", "failed")):
        id = record(f"{HOSTILE} {number}", "finished", model_name_or_path="models/tiny", dataset="pairs")
        run = Run(id)
        run.update(said=[plain(HOSTILE)], cause=plain(HOSTILE if state == "failed" else ""))
        log = MetricsLog(run)
        log.log(21, {"loss": 0.5, HOSTILE: 1.0})
        log.close()
        run.log_path.write_text(HOSTILE + "\n")
        outcome.finish(run, state, plain(HOSTILE if state == "failed" else ""))
        runs.set_note(id, HOSTILE)
        runs.set_tag(id, "kind", HOSTILE)
        evaluated(run)
        exported(run)
        found.append(id)
    return found[0], found[1]


def evaluated(run) -> None:
    """An evaluation of two versions, whose labels, metrics and answers are all hostile."""
    from tuner.tracking.evaluations import RESULTS

    versions = []
    for place in ("one", "two"):
        folder = run.folder / "output" / place
        folder.mkdir(parents=True)
        row = {"row": 0, "prompt": HOSTILE, "predict": f"{HOSTILE} {place}", "label": HOSTILE}
        (folder / "generated_predictions.jsonl").write_text(json.dumps(row) + "\n")
        versions.append({"label": f"{HOSTILE} {place}", "folder": place, "metrics": {HOSTILE: 1.0}})
    told = {"dataset": [HOSTILE], "rows": 1, "left_out": {HOSTILE: 1}, "versions": versions}
    (run.folder / "output" / RESULTS).write_text(json.dumps(told))


def exported(run) -> None:
    """An export whose folder, files and answers are hostile."""
    from tuner.jobs.exporting import RECORD

    answer = {"prompt": HOSTILE, "source": HOSTILE, "exported": HOSTILE, "same": False, "difference": 0.1}
    told = {"folder": HOSTILE, "files": [{"name": HOSTILE, "size": 1}], "answers": [answer], "seconds": 1.0}
    (run.folder / "output" / RECORD).write_text(json.dumps(told))


def adapter(studio, run_id: str) -> None:
    """A registered version with a hostile note and base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tuner.runs.run import Run
    from tuner.tracking import adapters

    folder = studio.home / "adapter"
    base = AutoModelForCausalLM.from_pretrained(studio.home / "models" / "tiny", dtype=torch.float32)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    row = adapters.register(Run(run_id), folder, name="plain", note=HOSTILE)
    from tuner.tracking.store import open_store

    for key in ("base", "datasets", "targets", "method", "alias/champion"):
        open_store().set_model_version_tag(row.name, str(row.version), key, HOSTILE)
    told = json.dumps(
        {"dataset": HOSTILE, "run_id": run_id, "rows": 1, "metrics": {HOSTILE: 1.0}, "base": {HOSTILE: 2.0}}
    )
    open_store().set_model_version_tag(row.name, str(row.version), "evaluation/hostile", told)


def talk(version: str) -> tuple[str, str]:
    """A talk and a battle in which everybody speaks Markdown and HTML; their ids."""
    from dataclasses import replace

    from tuner.chats import battle, kept, talk
    from tuner.text.message import plain

    begun = talk.Talk("0" * 16, base="models/tiny", columns=("base", version), system=HOSTILE, tools=HOSTILE)
    begun, turn = talk.asked(begun, HOSTILE)
    answer = turn.answers["base"][0]
    said = replace(answer, state="failed", text=f"<think>{HOSTILE}</think>{HOSTILE}", why=plain(HOSTILE))
    said = replace(said, calls=((HOSTILE, HOSTILE),), checksum=HOSTILE)
    for column in begun.columns:
        begun = talk.answered(begun, turn.id, column, 0, said)
    kept.change_talk(begun, lambda _: begun)
    sides = [battle.Contestant("base"), battle.Contestant(version)]
    fought = battle.begin("models/tiny", sides, [{"role": "user", "content": HOSTILE}], tag=HOSTILE)
    for side in (0, 1):
        battle.keep_answer(fought.id, side, replace(said, state="done"))
    battle.vote(fought.id, "tie")
    return begun.id, fought.id


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_text_of_others_reaches_out_or_runs(studio, page, record, every: bool) -> None:
    """On every page; in the fast suite on those that have the most texts of others: a run's, data's and a talk's."""
    first, second = hostile_run(studio, record)
    adapter(studio, first)
    chat, fought = talk("plain/1")
    asked: list[str] = []
    found: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: asked.append(f"dialog:{dialog.message}"))
    named = urllib.parse.quote(HOSTILE[:60])
    places = [
        "/", "/history", "/runs", f"/runs?run={first}", f"/runs?run={second}", f"/compare?id={first}&id={second}",
        "/adapters", "/datasets?dataset=hostile", f"/datasets?dataset={named}", "/datasets?dataset=" + urllib.parse.quote(HOSTILE),
        f"/chat?chat={chat}", f"/arena?battle={fought}", "/arena", f"/chat?base={named}&column={named}",
        "/evaluate", "/evaluate?adapter=plain/1", f"/evaluate?adapter={named}/1", "/new_run", f"/runs?run={urllib.parse.quote(HOSTILE)}",
    ]  # fmt: skip
    for place in (
        places if every else [f"/runs?run={second}", "/datasets?dataset=hostile", f"/chat?chat={chat}"]
    ):
        page.goto(f"{studio.url}{place}")
        still(page)
        found += [f"{place}: {said}" for said in page.evaluate(LEADING, HOST)]
        for tab in page.get_by_role("tab").all():
            tab.click()
            still(page)
            found += [f"{place}: {said}" for said in page.evaluate(LEADING, HOST)]
        expect(page.get_by_text("Traceback")).to_have_count(0)
        assert page.evaluate("window.__xss") is None, place
    assert found == [], "\n".join(sorted(set(found)))
    outside = [
        url
        for url in asked
        if urllib.parse.urlsplit(url).hostname not in ("127.0.0.1", None) or "dialog" in url
    ]
    assert outside == []
