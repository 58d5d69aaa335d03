"""The history's columns and kept views, and tags for several runs at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import streamlit
from streamlit.testing.v1 import AppTest
from test_jobs import new_run

from tuner.tracking.rows import RunRow
from tuner.tracking.runs import create_run, get_row
from tuner.ui import state, tables, views

ROOT = Path(__file__).parents[1]


def drawn(monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    monkeypatch.setattr("streamlit.page_link", lambda *_, **__: None)
    app = AppTest.from_file(str(ROOT / "pages" / "history.py"), default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def test_columns_and_views_stay(
    home: Path, libraries_looked_through_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run(new_run(2).config(), "one")
    app = drawn(monkeypatch, q="one", sort="Name")
    assert "Learning rate" in app.multiselect(key="history-columns").options
    assert "Learning rate" not in app.multiselect(key="history-columns").value
    app.multiselect(key="history-columns").set_value(["State", "Learning rate"]).run()
    app.text_input(key="view-name").set_value("mine").run()
    next(b for b in app.button if b.label == "Save this view").click().run()

    kept = state.load_draft("history-all")
    assert kept["columns"] == ["State", "Learning rate"]
    assert kept["views"]["mine"] == "q=one&sort=Name"
    again = drawn(monkeypatch)
    assert again.multiselect(key="history-columns").value == ["State", "Learning rate"]
    next(b for b in again.button if b.key == "icon-forget-mine").click().run()
    assert state.load_draft("history-all")["views"] == {}


def test_the_first_column_is_always_there_and_unknown_ones_do_no_harm(home: Path) -> None:
    usual = [column.name for column in tables.HISTORY]
    every = tables.every_column(tables.HISTORY)
    assert [c.name for c in views.chosen(every, usual)] == usual
    state.keep_draft("history-all", {"columns": ["Gone", "LoRA rank"]})
    assert [c.name for c in views.chosen(every, usual)] == ["Name", "LoRA rank"]


def test_a_score_on_held_out_questions_is_a_column() -> None:
    def row(**metrics: float) -> RunRow:
        params = {"learning_rate": "0.0001"}
        return RunRow(id="a" * 32, name="a", state="finished", metrics=metrics, params=params)

    scored = row(**{"score/after": 0.92, "score/correct_after": 0.9})
    assert "Score" in [c.name for c in tables.history_columns([scored], {})]
    assert "Score" not in [c.name for c in tables.history_columns([row(**{"score/after": 0.9})], {})]
    cells = tables.history([scored], {})["a" * 32]
    assert (cells["Score"], cells["Learning rate"]) == ("92%", "0.0001")


def test_a_tag_is_given_to_all_that_are_ticked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuner.ui import history, picking

    ids = [create_run(new_run(2).config(), name).id for name in ("one", "two", "three")]
    monkeypatch.setattr(streamlit, "session_state", {"tag": " kind: good "})
    monkeypatch.setattr(picking, "still", lambda _, wanted: wanted[:2])  # the third was unticked meanwhile
    said: list[str] = []
    monkeypatch.setattr("streamlit.toast", lambda text, **_: said.append(text))
    history._tag_all(ids, "tag")
    assert said == ["Tagged 2 runs."]
    tags = [row.tags for row in map(get_row, ids) if row]
    assert [dict(t).get("kind") for t in tags] == ["good", "good", None]
