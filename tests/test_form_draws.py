"""How much of New run is drawn: counted in pieces, plans and rows read, for a clock says something else on every machine."""

from __future__ import annotations

from collections import Counter
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import tiny
from streamlit.testing.v1 import AppTest

from tuner.data import entries
from tuner.data.catalog import read_catalog
from tuner.ui import draft, form, judged, offers, run_card, state

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    tiny.model(tmp_path / "models" / "tiny")
    tiny.data(tmp_path / "data", rows=8)
    offers._datasets.clear()  # of the studio of another test
    return tmp_path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the pieces of the page were drawn, drafts were judged and first rows were read."""
    found: Counter[str] = Counter()

    def count(module: Any, name: str, said: Any) -> None:
        real = getattr(module, name)

        @wraps(real)
        def counting(*given: Any, **named: Any) -> Any:
            found[said(*given)] += 1
            return real(*given, **named)

        monkeypatch.setattr(module, name, counting)

    count(form, "_section", lambda section, *_: section.__name__)
    count(form, "show", lambda *_: "form")
    count(run_card, "show", lambda *_: "card")
    count(judged, "judge", lambda *_: "judged")
    count(entries, "first_records", lambda *_: "read")
    return found


def page(**query: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    app.switch_page("pages/new_run.py")
    for name, value in {"start": "starter-sft", **query}.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def fields(app: AppTest) -> set[str]:
    """The knobs whose fields are drawn."""
    kinds = (app.text_input, app.number_input, app.selectbox, app.multiselect, app.toggle)
    keys = [str(one.key) for kind in kinds for one in kind] + [str(one.key) for one in app.segmented_control]
    return {key.rpartition(":")[2] for key in keys if key.startswith("knob:")}


def test_a_change_draws_its_section_and_the_card_and_judges_once(home: Path, counted: Counter[str]) -> None:
    app = page()
    counted.clear()
    rank = next(one for one in app.number_input if str(one.key).endswith(":lora_rank"))
    rank.set_value(24).run()
    assert counted == {"Lora": 1, "card": 1, "judged": 1}


def test_where_sections_come_and_go_the_form_is_drawn_once_and_the_page_not(
    home: Path, counted: Counter[str]
) -> None:
    app = page()
    titles = [one.value for one in app.title]
    counted.clear()
    method = next(one for one in app.segmented_control if str(one.key).endswith(":finetuning_type"))
    method.set_value("full").run()
    assert titles == ["New run"] and "Lora" not in counted
    assert (counted["form"], counted["card"], counted["Training"], counted["judged"]) == (1, 1, 1, 1)


def test_advanced_parameters_are_drawn_where_they_are_opened_set_or_found(home: Path) -> None:
    basic = fields(page())
    app = page(level="Advanced")
    assert fields(app) == basic and "weight_decay" not in basic
    app.button(key="open:Training").click().run()
    opened = fields(app)
    assert {"weight_decay", "max_grad_norm"} <= opened - basic
    assert app.query_params["open"] == "Training", "a reload finds it open"

    decay = next(one for one in app.text_input if str(one.key).endswith(":weight_decay"))
    decay.set_value("0.2").run()
    app.run()
    app.button(key="open:Training").click().run()
    app.run()
    assert fields(app) == basic | {"weight_decay"}, "what is set stays"
    app.text_input(key="find").set_value("max_grad_norm").run()
    assert "max_grad_norm" in fields(app)


def test_a_second_look_reads_no_rows_until_a_set_is_written_anew(home: Path, counted: Counter[str]) -> None:
    page()
    assert counted["read"]
    counted.clear()
    offers._datasets.clear()
    page()
    assert counted["read"] == 0
    assert read_catalog(home / "data")["text"].kind == "text"
    file = read_catalog(home / "data")["text"].files()[0]
    file.write_text('[{"instruction": "say it", "output": "it"}]')
    assert read_catalog(home / "data")["text"].kind == "chat"


def test_a_recipe_is_another_once_its_file_is(home: Path) -> None:
    saved = home / "configs" / "mine.yaml"
    saved.parent.mkdir()
    saved.write_text("stage: sft\nlora_rank: 4\n")
    assert draft.from_file(saved, "mine")[0].base["lora_rank"] == 4
    taken, _ = state.read_config(saved)
    taken["lora_rank"] = 5  # a reader's own copy
    assert draft.from_file(saved, "mine")[0].base["lora_rank"] == 4
    saved.write_text("stage: sft\nlora_rank: 16\n")
    assert draft.from_file(saved, "mine")[0].base["lora_rank"] == 16
