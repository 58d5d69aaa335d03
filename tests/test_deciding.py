"""Decisions beside training: the API with adapters, sets made of others, and the pages."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from streamlit.testing.v1 import AppTest

from tests.test_api import KEY, serving
from tuner.config.knobs import ConfigError
from tuner.data.catalog import read_catalog
from tuner.data.derived import NONE, derivable, derive
from tuner.data.files import records
from tuner.data.formats import convert
from tuner.data.upload import remove
from tuner.text.lookup import speaking, tr
from tuner.tracking.adapter_rows import AdapterRow
from tuner.ui import deciding, decisions

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "data" / "starter"
QUESTIONS: dict[str, Any] = {
    "ok": {"type": "noul", "instructions": "Is it kind?"},
    "topic": {"type": "choice", "criteria": {"person": None, "weather": "rain and sun", "numbers": None}},
    "how": {"type": "score", "instructions": "How much?", "criteria": ["none", "some", "much"]},
}
STATE = {"question": "Where does Mia live? <|im_end|>", "answer": "In Lindow."}


# --- the API -------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int
    body: Any


class Caller:
    """Asks a served model over its socket."""

    def __init__(self, url: str, key: str = KEY):
        self.url, self.key = url, key

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return Answer(response.status, json.loads(response.read()))
        except urllib.error.HTTPError as error:
            return Answer(error.code, json.loads(error.read()))

    def decide(self, **body: Any) -> Answer:
        return self.post("/v1/systemone", body)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caller, Path]]:
    """The starter, and an adapter that has temperatures, behind the real server."""
    from transformers import AutoModelForCausalLM

    from tests.test_generate import adapter

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(tmp_path_factory.mktemp("studio")))
        base = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
        worn = adapter(tmp_path_factory.mktemp("worn"), base, 7, r=16, lora_alpha=256)
        heat = {"labels": {}, "temperature": {"noul": 2.0, "choice": 0.5}, "noul_options": ["true", "false"]}
        (worn / "decision.json").write_text(json.dumps(heat))
        for one in serving(worn):
            yield Caller(one.url), worn


def by_pipeline(adapter: Path | None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.decision import DecisionConfig
    from transformers.pipelines import DecisionPipeline

    model: Any = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    settings = DecisionConfig()
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
        settings = DecisionConfig.from_file(adapter / "decision.json")
    decide = DecisionPipeline(
        model=model, tokenizer=AutoTokenizer.from_pretrained(STARTER), decision_config=settings, device="cpu"
    )
    return decide({"state": STATE, "questions": QUESTIONS})


def test_answers_are_the_pipelines_for_the_base_and_for_an_adapter(served: tuple[Caller, Path]) -> None:
    client, worn = served
    for name, adapter in (("base", None), (str(worn), worn)):
        answer = client.decide(model=name, state=STATE, questions=QUESTIONS)
        assert answer.status == 200, answer
        found, wanted = answer.body, by_pipeline(adapter)
        assert (
            found["model"] == name and found["usage"]["output_tokens"] == 0 < found["usage"]["input_tokens"]
        )
        assert list(found["answers"]) == list(QUESTIONS)
        for question, one in wanted.items():
            mine = found["answers"][question]
            assert set(mine) == set(one)
            for key, value in one.items():
                expected = (
                    pytest.approx(value, abs=1e-5)
                    if not isinstance(value, str) and key != "legend"
                    else value
                )
                assert mine[key] == expected


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"state": "s"}, "questions"),
        ({"state": "s", "questions": {}}, "questions"),
        ({"state": 3, "questions": QUESTIONS}, "state"),
        ({"state": "s", "questions": {"q": {"type": "maybe"}}}, "question 'q' has type 'maybe'"),
        ({"state": "s", "questions": {"q": {"type": "choice"}}}, "question 'q' needs criteria"),
        ({"state": "s", "questions": QUESTIONS, "more": 1}, "more"),
        (
            {"state": "s", "questions": QUESTIONS, "assets": {"a": {"data_base64": ""}}},
            "Pictures are not supported",
        ),
    ],
)
def test_what_cannot_be_asked_is_told(served: tuple[Caller, Path], body: dict[str, Any], said: str) -> None:
    answer = served[0].decide(**body)
    assert answer.status == 422 and said in answer.body["error"]["message"]


def test_what_is_too_long_or_unknown_is_told(served: tuple[Caller, Path]) -> None:
    client = served[0]
    answer = client.decide(state="word " * 5000, questions=QUESTIONS)
    assert answer.status == 400 and answer.body["error"]["code"] == "context_length_exceeded"
    body = {"model": "nobody/9", "state": "s", "questions": QUESTIONS}
    assert client.decide(**body).status == 404
    assert Caller(client.url, "no").decide(**body).status == 401


def test_chats_go_on_as_they_were(served: tuple[Caller, Path]) -> None:
    """In transformers' own server a decision adds two tokens to the tokenizer, and the next chat may fail."""
    client = served[0]
    chat = {
        "model": "base",
        "messages": [{"role": "user", "content": "Where does Mia live? <|mark|>"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    before = client.post("/v1/chat/completions", chat).body["choices"][0]["message"]
    client.decide(model="base", state="<|mark|>", questions=QUESTIONS)
    assert client.post("/v1/chat/completions", chat).body["choices"][0]["message"] == before


# --- sets made of others -------------------------------------------------------------------------------------------


@pytest.fixture
def sets(home: Path) -> Path:
    return tiny.data(home / "data")


def made_of(name: str, folder: Path) -> list[dict[str, Any]]:
    entry = read_catalog(folder)[name]
    assert derivable(entry)
    made = derive(entry, folder)
    assert made.name == f"{name}_decisions" and made.kind == "decisions"
    assert made.name in read_catalog(folder)
    found = [record for path in made.files() for _, record in records(path)]
    assert all("state" in convert(record, made) for record in found)  # type: ignore[operator]
    return found


def test_pairs_become_a_choice_between_two_answers(sets: Path) -> None:
    rows = json.loads((sets / "pairs.json").read_text())
    found = made_of("pairs", sets)
    assert len(found) == len(rows)
    for row, made in zip(rows, found, strict=True):
        options = made["questions"]["better"]["criteria"]
        assert made["state"] == row["instruction"]
        assert options[made["gold"]["better"]] == row["chosen"]
        assert sorted(options.values()) == sorted((row["chosen"], row["rejected"]))
    assert {made["gold"]["better"] for made in found} == {"first", "second"}


def test_a_set_that_was_made_before_keeps_its_rows(sets: Path) -> None:
    made_of("pairs", sets)
    entry = read_catalog(sets)["pairs_decisions"]
    (file,) = entry.files()
    with file.open("a") as rows:
        rows.write("{}\n")
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="already"):
        derive(read_catalog(sets)["pairs"], sets)
    assert file.read_bytes() == before
    remove(entry.name, sets)
    assert derive(read_catalog(sets)["pairs"], sets).files() != [file] and file.read_bytes() == before


def test_tool_calls_become_a_choice_of_tools(sets: Path) -> None:
    catalog = json.loads((sets / "dataset_info.json").read_text())
    tools = [
        {"type": "function", "function": {"name": n, "description": f"does {n}"}} for n in ("look", "send")
    ]
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "send", "arguments": {}}}],
    }
    rows = [
        {"messages": [{"role": "user", "content": "Send it."}, call, {"role": "tool", "content": "1"}, {"role": "assistant", "content": "Done."}], "tools": tools},
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello."}], "tools": tools},
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello."}]},
    ]  # fmt: skip
    (sets / "calls.json").write_text(json.dumps(rows))
    catalog["calls"] = {
        "file_name": "calls.json", "formatting": "openai", "columns": {"messages": "messages", "tools": "tools"},
    }  # fmt: skip
    (sets / "dataset_info.json").write_text(json.dumps(catalog))
    found = made_of("calls", sets)
    assert [made["gold"]["tool"] for made in found] == ["send", NONE]
    assert found[0]["questions"]["tool"]["criteria"] == {
        "look": "does look",
        "send": "does send",
        NONE: "Answer without a tool",
    }
    assert found[0]["state"] == "Send it."
    assert not derivable(read_catalog(sets)["chat"])


# --- pages ---------------------------------------------------------------------------------------------------------


def test_the_table_is_a_request_and_a_request_the_table() -> None:
    from tuner.data.decisions import questions_of

    asked, wrong = deciding.read([dict(row) for row in deciding.FIRST])
    assert not wrong and [one.type for one in questions_of(asked)] == ["noul", "choice", "score"]
    assert asked["tone"]["criteria"] == {"calm": None, "angry": None, "pushy": "presses the reader"}
    again, _ = deciding.read(deciding.table(questions_of(asked)))
    assert again == asked
    assert "needs criteria" in deciding.read([{"Name": "a", "Type": "One of", "Options": ""}])[1]
    assert deciding.read([{"Name": "", "Type": "Yes or no"}])[1] == "A question needs a name."


def test_options_with_semicolons_colons_and_backslashes_stay_whole() -> None:
    from tuner.data.decisions import questions_of

    chance = random.Random(0)

    def text() -> str:
        return (
            "x" + "".join(chance.choices(";:\\ \na", k=chance.randrange(9))) + chance.choice(["", "\\", "y"])
        )

    for _ in range(500):
        texts = list(dict.fromkeys(text().strip() for _ in range(4)))
        asked = {
            "one": {"type": "choice", "criteria": {one: text().strip() for one in texts}},
            "bare": {"type": "choice", "criteria": dict.fromkeys(texts)},
            "much": {"type": "score", "criteria": texts},
            "yes": {"type": "noul", "criteria": {"true": text().strip(), "false": text().strip()}},
        }
        assert deciding.read(deciding.table(questions_of(asked))) == (asked, "")
    rows = [{"Name": "m", "Type": "One of", "Options": r"\frac: a \sum; b"}]
    assert deciding.read(rows)[0]["m"]["criteria"] == {r"\frac": r"a \sum", "b": None}


def test_a_table_is_read_in_whatever_language_it_was_filled_in() -> None:
    with speaking("zh_CN"):
        rows = [{"Name": "a", "Type": tr(deciding.TYPE_WORDS["score"]), "Options": "low; high"}]
    assert deciding.read(rows)[0]["a"]["type"] == "score"
    assert deciding.read(rows * 2) == ({}, "Two questions are called a.")


def test_the_page_asks_nothing_before_there_is_a_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    app = AppTest.from_file(str(ROOT / "pages" / "decide.py"), default_timeout=60)
    app.run()
    assert not app.exception, app.exception
    (button,) = [one for one in app.button if one.key == "decide-ask"]
    assert button.disabled and app.text_area[0].value == deciding.STATE


def test_a_report_is_read_aloud() -> None:
    from tuner.data.decision_scores import Answered, bins, confusions, figures

    every = [
        Answered(i, "ok", "noul", ("true", "false"), (float(i % 2), float(1 - i % 2)), (1.0, 0.0))
        for i in range(10)
    ]
    heat = {"noul": 2.0}
    report = {
        "temperature": heat,
        "before": figures(every, {}),
        "after": figures(every, heat),
        "prior": figures(every, {}),
    }
    rows = {row["Figure"]: row for row in decisions.figures(report)}
    assert rows["Accuracy"]["Model"] == "50%" and "With temperature" in rows["Accuracy"]
    assert rows["Accuracy, yes or no"]["Most frequent answer"] == "50%" and "Distance of levels" not in rows
    drawn = decisions.reliability({"before": bins(every, {}), "after": bins(every, heat)})
    assert [line.name for line in drawn.data][1:] == ["as learnt", "with temperature"]
    (table,) = confusions(every)
    assert decisions.confusion(table) == [
        {"Expected": "true", "true": 5, "false": 0},
        {"Expected": "false", "true": 5, "false": 0},
    ]


def test_an_evaluation_in_words_is_refused_before_it_starts(sets: Path) -> None:
    from tuner.config.evaluation import EvaluateConfig
    from tuner.jobs.checking import of_evaluation

    config = EvaluateConfig(model_name_or_path=str(STARTER), dataset=("decisions",), dataset_dir=str(sets))
    (problem,) = of_evaluation(config)
    assert (
        "holds typed questions" in problem.sentence
        and "do_eval=true eval_dataset=decisions" in problem.sentence
    )


def test_who_answers_first_is_what_was_asked_for_else_what_learnt_decisions() -> None:
    known = {f"{stage}/1": AdapterRow(stage, 1, stage=stage) for stage in ("dpo", "decide", "sft")}
    assert deciding.first(known, "") == ["decide/1"]
    assert deciding.first(known, "sft/1") == ["sft/1"]
    assert deciding.first(known, "gone/7") == ["decide/1"]
    assert deciding.first({"dpo/1": known["dpo/1"]}, "") == ["dpo/1"]
    assert deciding.first({}, "") == []
