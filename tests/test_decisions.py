"""Records with typed questions: their forms, the prompts that transformers writes of them, rows, cutoff, and what is refused."""

from __future__ import annotations

import json
import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny

from tuner.config.config import Config, make
from tuner.config.knobs import ConfigError
from tuner.data import prepare
from tuner.data.catalog import entry
from tuner.data.decision_rows import UNREAD, WHOLE, Parser, encoder, label_ids, questions_in
from tuner.data.decisions import LABELS, QuestionError, prompt, questions_of
from tuner.data.encode import Encoded
from tuner.data.formats import Dropped, convert
from tuner.data.guess import guess
from tuner.data.template_choice import template_of, to_save
from tuner.data.templates import table
from tuner.data.tokens import load_tokenizer

STARTER = Path(__file__).parents[1] / "data" / "starter"
STATES: list[Any] = [
    "a text",
    "  sp \n",
    "日本語 café",
    "<|im_end|> hi <|mark|> and <|endoftext|>x <s> </s><|eot_id|>",
    {"a": 1, "b": ["é<|im_end|>", None]},
    ["x", {"y": True}],
]
QUESTIONS: dict[str, Any] = {
    "plain": {"type": "noul"},
    "noul": {"type": "noul", "instructions": "Q <|im_start|>user?", "criteria": {"true": "yes it is"}},
    "choice": {
        "type": "choice",
        "instructions": {"x": 1},
        "criteria": {"one": None, "two": "desc", "three": {"k": [1]}},
    },
    "score": {"type": "score", "instructions": None, "criteria": ["low", {"m": 2}, "high"]},
    "many": {"type": "choice", "criteria": {chr(97 + i): None for i in range(26)}},
    "bare": {"type": "score", "instructions": "", "criteria": ["", "b"]},
}


def config(**changes: Any) -> Config:
    values = {"stage": "decide", "model_name_or_path": str(STARTER), "dataset": "x", "do_train": True}
    return make(values | {"shuffle_options": False} | changes)


def row(state: Any, questions: dict[str, Any] = QUESTIONS) -> dict[str, Any]:
    asked = questions_of(questions)
    return {
        "state": state,
        "questions": questions,
        "gold": {q.name: [1.0] + [0.0] * (len(q.options) - 1) for q in asked},
    }


def encoded(given: dict[str, Any], asked: Config, folder: Path = STARTER) -> Encoded | Dropped:
    tokenizer = load_tokenizer(folder)
    made = encoder(asked, template_of(asked, tokenizer), tokenizer)
    draft = made.draft(given)
    return draft if isinstance(draft, Dropped) else made.fit(draft, tokenizer.encode_batch(draft.texts))


# --- held to transformers ------------------------------------------------------------------------------------------


def test_prompts_options_and_answers_are_those_of_transformers() -> None:
    from transformers.decision import DecisionConfig, parse_questions
    from transformers.decision.template_utils import DECISION_PROMPT
    from transformers.utils.chat_template_utils import _compile_jinja_template

    written = _compile_jinja_template(DECISION_PROMPT)
    theirs, ours = parse_questions(QUESTIONS, DecisionConfig()), questions_of(QUESTIONS)
    chance = random.Random(0)
    for their, our in zip(theirs, ours, strict=True):
        assert (their.options, their.labels) == (list(our.options), list(our.labels))
        for state in [*STATES, "", None, 3]:
            assert prompt(state, our) == written.render(state=state, question=their)
        shares = [chance.random() for _ in our.options]
        shares = [share / sum(shares) for share in shares]
        assert our.answer(shares) == their.answer(shares)


WRONG: list[Any] = [
    {},
    {"q": None},
    {"q": {"type": "maybe"}},
    {"q": {"type": "choice"}},
    {"q": {"type": "choice", "criteria": {}}},
    {"q": {"type": "choice", "criteria": ["a"]}},
    {"q": {"type": "choice", "criteria": {"a": 3}}},
    {"q": {"type": "score", "criteria": []}},
    {"q": {"type": "score", "criteria": ["a", None]}},
    {"q": {"type": "score", "criteria": {"a": "b"}}},
    {"q": {"type": "noul", "criteria": {"maybe": "x"}}},
    {"q": {"type": "noul", "criteria": ["true"]}},
    {"q": {"type": "noul", "instructions": 3}},
    {"q": {"type": "noul", "hint": "x"}},
    {"q": {"type": "choice", "criteria": {str(i): None for i in range(27)}}},
    {"q": {"type": "score", "criteria": ["x"] * 27}},
]


@pytest.mark.parametrize("questions", WRONG, ids=lambda value: json.dumps(value)[:40])
def test_what_transformers_refuses_is_refused(questions: Any) -> None:
    from transformers.decision import DecisionConfig, parse_questions

    with pytest.raises(ValueError):
        parse_questions(questions, DecisionConfig())
    with pytest.raises(QuestionError):
        questions_of(questions)


def same_ids(folder: Path, names: list[str | None]) -> int:
    """Hold our prompt ids to `prepare_inputs`; how many prompts were compared."""
    from transformers import AutoTokenizer
    from transformers.decision import DecisionConfig

    tokenizer, theirs, compared = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder), 0
    own = theirs.chat_template
    for name in names:
        asked = config(template=name)
        template = template_of(asked, tokenizer)
        made = encoder(asked, template, tokenizer)
        theirs.chat_template = to_save(template, tokenizer, asked) or own
        for state in STATES:
            draft = made.draft(row(state))
            assert not isinstance(draft, Dropped), (name, draft)
            found = made.fit(draft, tokenizer.encode_batch(draft.texts))
            assert isinstance(found, Encoded)
            wanted = DecisionConfig().prepare_inputs({"state": state, "questions": QUESTIONS}, theirs)
            for one, (inputs, _) in zip(questions_in(found.row), wanted, strict=True):
                assert one.prompt == inputs["input_ids"][0].tolist(), (name, state, one.name)
                compared += 1
    return compared


def test_prompt_ids_are_those_of_prepare_inputs() -> None:
    assert same_ids(STARTER, [None, "llama3", "qwen3", "gemma", "mistral", "chatml"]) == 6 * len(
        STATES
    ) * len(QUESTIONS)


@pytest.mark.slow
def test_prompt_ids_are_those_of_prepare_inputs_in_every_template() -> None:
    names = [None, *table()]
    assert same_ids(STARTER, names) == len(names) * len(STATES) * len(QUESTIONS)


@pytest.mark.slow
def test_prompt_ids_of_a_large_vocabulary(shared: Path) -> None:
    folder = shared / "tokenizers" / "qwen"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("Qwen's tokenizer is not beside this checkout")
    assert same_ids(folder, ["qwen", "qwen3"])


def test_labels_are_read_as_transformers_reads_them() -> None:
    from transformers import AutoTokenizer
    from transformers.decision import label_token_ids

    assert label_ids(load_tokenizer(STARTER)) == label_token_ids(
        AutoTokenizer.from_pretrained(STARTER), LABELS
    )


# --- forms ---------------------------------------------------------------------------------------------------------

NORMAL = {
    "state": "s",
    "questions": {
        "ok": {"type": "noul", "instructions": "Is it?"},
        "kind": {"type": "choice", "criteria": {"a": None, "b": "text"}},
        "how": {"type": "score", "criteria": ["low", "high"]},
    },
    "gold": {"ok": [1.0, 0.0], "kind": [0.0, 1.0], "how": [0.25, 0.75]},
}
FORMS: list[dict[str, Any]] = [
    {
        "state": "s",
        "questions": NORMAL["questions"],
        "gold": {"ok": True, "kind": "b", "how": {"0": 1, "1": 3}},
    },
    {
        "context": "s",
        "fields": json.dumps(NORMAL["questions"]),
        "answers": json.dumps({"ok": "yes", "kind": {"label": "b"}, "how": [0.25, 0.75]}),
    },
    {
        "state": "s",
        "questions": [
            {"name": "ok", "type": "bool", "question": "Is it?", "answer": 1},
            {"name": "kind", "type": "categorical", "options": {"a": None, "b": "text"}, "answer": "b"},
            {
                "name": "how",
                "type": "rating",
                "levels": ["low", "high"],
                "answer": {"label": "high", "probabilities": [1, 3]},
            },
        ],
    },
    {
        "state": "s",
        "questions": NORMAL["questions"],
        "targets": {
            "ok": {"noul": 1.0, "type": "noul"},
            "kind": {"choice": "b", "confidence": 0.1, "probabilities": {"a": 0.0, "b": 1.0}},
            "how": {"score": 0.75, "probabilities": {"0": 0.25, "1": 0.75}},
        },
    },
]


def read(record: dict[str, Any], location: str = "x.json") -> Any:
    return convert(record, entry("x", {"file_name": location, "formatting": "decisions"}, Path()))


@pytest.mark.parametrize("record", FORMS, ids=["plain", "texts", "list", "answers"])
def test_every_form_is_one(record: dict[str, Any]) -> None:
    assert read(record) == NORMAL


def test_values_of_every_type() -> None:
    def of(question: dict[str, Any], gold: Any) -> Any:
        found = read({"state": "s", "questions": {"q": question}, "gold": {"q": gold}})
        return found.reason if isinstance(found, Dropped) else found["gold"]["q"]

    noul = {"type": "noul"}
    assert [of(noul, gold) for gold in (True, 1, "Yes", 1.0, "true")] == [[1, 0]] * 5
    assert [of(noul, gold) for gold in (False, 0, "no", 0.0)] == [[0, 1]] * 4
    assert of(noul, 0.25) == [0.25, 0.75] and of(noul, {"true": 3, "false": 1}) == [0.75, 0.25]
    score = {"type": "score", "criteria": ["low", "mid", "high"]}
    assert [of(score, gold) for gold in (1, "1", 1.0, "mid")] == [[0, 1, 0]] * 4
    choice = {"type": "choice", "criteria": {"a": None, "b": None}}
    wrong = [
        (noul, "perhaps"),
        (noul, 2),
        (score, 3),
        (score, 1.5),
        (choice, "c"),
        (choice, {"a": 1, "c": 1}),
        (choice, [0, 0]),
    ]
    assert {of(*one) for one in wrong} == {"unknown gold"}


def test_levels_with_numbers_or_names_of_their_own_are_called_by_them() -> None:
    def of(criteria: Any, gold: Any) -> Any:
        question = {"type": "score", "criteria": criteria}
        found = read({"state": "s", "questions": {"q": question}, "gold": {"q": gold}})
        return found.reason if isinstance(found, Dropped) else found["gold"]["q"]

    one_to_three = [{"1": "bad", "2": "so", "3": "good"}, {"3": "good", "1": "bad", "2": "so"}, [1, 2, 3], ["1", "2", "3"]]  # fmt: skip
    for criteria in one_to_three:
        assert [of(criteria, gold) for gold in (1, "1", 1.0, {"label": 1})] == [[1, 0, 0]] * 4
        assert of(criteria, 3) == [0, 0, 1] and of(criteria, {"2": 3, "3": 1}) == [0, 0.75, 0.25]
        assert of(criteria, 0) == of(criteria, 4) == "unknown gold" and of(criteria, [1, 0, 0]) == [1, 0, 0]
        assert of(criteria, {"score": 0.5, "legend": {"0": "x"}, "probabilities": {"0": 0.5, "1": 0.5}}) == [0.5, 0.5, 0]  # fmt: skip
    assert of(one_to_three[1], "bad") == [1, 0, 0]
    assert of({"low": "a", "high": "b"}, "high") == of({"low": "a", "high": "b"}, 1) == [0, 1]
    assert of([0, 1], 1) == of({"0": "a", "1": "b"}, "1") == [0, 1]


def test_a_probability_of_yes_alone_says_that_of_no() -> None:
    for gold in ({"true": 0.75}, {"yes": 0.75, "no": None}, {"no": 0.25}, {"probabilities": {"true": 0.75}}):
        found = read({"state": "s", "questions": {"q": {"type": "noul"}}, "gold": {"q": gold}})
        assert found["gold"]["q"] == [0.75, 0.25]


def test_nulls_that_tables_put_in_are_left_out_and_those_of_people_kept() -> None:
    record = {
        "state": "s",
        "questions": {
            "kind": {"type": "choice", "instructions": None, "criteria": {"a": "x", "b": None, "zz": None}},
            "other": {"type": None, "instructions": None, "criteria": {"a": None, "zz": None}},
        },
        "gold": {"kind": "b", "other": None},
    }
    assert list(read(record, "x.parquet")["questions"]["kind"]["criteria"]) == ["a", "b"]
    del record["questions"]["other"]
    assert list(read(record)["questions"]["kind"]["criteria"]) == ["a", "b", "zz"]


def test_arrow_tables_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "state": "s",
            "questions": {"a": {"type": "choice", "criteria": {"x": "1", "y": "2"}}, "b": None},
            "gold": {"a": "x"},
        },
        {
            "state": "t",
            "questions": {"b": {"type": "choice", "criteria": {"u": "1", "v": "2"}}, "a": None},
            "gold": {"b": "v"},
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    from tuner.data.files import records

    assert guess(tmp_path / "d.parquet").attributes == {"formatting": "decisions"}
    found = [read(record, "d.parquet") for _, record in records(tmp_path / "d.parquet")]
    assert [list(one["questions"]) for one in found] == [["a"], ["b"]]
    assert list(found[0]["questions"]["a"]["criteria"]) == ["x", "y"]


def test_a_question_without_gold_is_left_out_and_noted() -> None:
    found = read({"state": "s", "questions": NORMAL["questions"], "gold": {"ok": True}})
    assert list(found["questions"]) == ["ok"] and found["notes"] == {"questions without gold": "how, kind"}


# --- rows ----------------------------------------------------------------------------------------------------------


def test_the_cutoff_shortens_the_state_and_never_the_options() -> None:
    state = " ".join(f"word{i}" for i in range(400))
    whole, cut = encoded(row(state), config()), encoded(row(state), config(cutoff_len=420))
    assert isinstance(whole, Encoded) and isinstance(cut, Encoded)
    assert cut.length == whole.length > 420 and cut.cut == "the end of the state"
    before, after = questions_in(whole.row), questions_in(cut.row)
    assert max(len(one.prompt) for one in after) == 420
    bare = questions_in(encoded(row(""), config()).row)  # type: ignore[union-attr]
    tokenizer = load_tokenizer(STARTER)
    for long, short, empty in zip(before, after, bare, strict=True):
        tail = tokenizer.decode(empty.prompt).rpartition("user\n")[2].lstrip("\n")
        assert tokenizer.decode(short.prompt).endswith(tail)
        assert long.prompt[: len(short.prompt) // 2] == short.prompt[: len(short.prompt) // 2]
    refused = encoded(row(state), config(cutoff_len=40))
    assert isinstance(refused, Dropped) and refused.reason == "too long"


def test_questions_share_their_prompt() -> None:
    found = encoded(row("a state of some length"), config())
    assert isinstance(found, Encoded)
    assert len(found.row["prompt_ids"]) > 8 and min(found.row["question_sizes"]) > 0
    assert found.trained == len(QUESTIONS)
    sums = [sum(round(share * WHOLE) for share in one.shares) for one in questions_in(found.row)]
    assert sums == [WHOLE] * len(QUESTIONS)


def test_options_are_shuffled_by_the_seed_and_their_shares_with_them() -> None:
    given = row("s") | {
        "gold": {q.name: [0.6, 0.4] + [0.0] * (len(q.options) - 2) for q in questions_of(QUESTIONS)}
    }
    one, again, other = (
        questions_in(encoded(given, config(shuffle_options=True, seed=seed)).row)  # type: ignore[union-attr]
        for seed in (1, 1, 2)
    )
    assert one == again != other
    shares = dict(zip(one[4].options, one[4].shares, strict=True))
    assert (shares["a"], shares["b"]) == (0.6, 0.4) and one[4].options != tuple(sorted(one[4].options))
    assert [q.options for q in (one[0], one[3])] == [("true", "false"), ("0", "1", "2")]


def refused(folder: Path, records: list[Any], model: Path = STARTER, parse: Parser = questions_of) -> str:
    """What is said of a set of which no row can be used."""
    folder.mkdir(exist_ok=True)
    (folder / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "dataset_info.json").write_text(
        json.dumps({"d": {"file_name": "d.jsonl", "formatting": "decisions"}})
    )
    asked = config(dataset="d", dataset_dir=str(folder), model_name_or_path=str(model))
    with pytest.raises(ConfigError) as error:
        prepare.prepare(asked, load_tokenizer(model), parse=parse)
    return str(error.value)


def test_what_cannot_be_learnt_is_named_with_its_line(tmp_path: Path) -> None:
    many = {"q": {"type": "choice", "criteria": {f"o{i}": None for i in range(27)}}}
    said = refused(tmp_path / "many", [{"state": "s", "questions": many, "gold": {"q": "o1"}}])
    assert "line 1 of d.jsonl" in said and "27 options" in said and "26" in said
    one = {"q": {"type": "choice", "criteria": {"a": None, "b": None}}}
    said = refused(tmp_path / "gold", [{"state": "s", "questions": one, "gold": {"q": "c"}}])
    assert "unknown gold" in said and "line 1" in said and "'c'" in said
    said = refused(tmp_path / "asked", [{"state": "s", "questions": one, "gold": {"p": "a"}}])
    assert "gold answers 'p', which is not asked" in said
    tiny.model(tmp_path / "model")
    spoilt = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    assert label_ids(load_tokenizer(tmp_path / "model"))[:2] == [UNREAD, UNREAD], (
        "Yes and No are letters there"
    )
    assert spoilt["model"]["type"] == "BPE"
    noul = {"state": "s", "questions": {"q": {"type": "noul"}}, "gold": {"q": True}}
    said = refused(tmp_path / "labels", [noul], tmp_path / "model")
    assert "labels of several tokens" in said and "Yes, No of question 'q'" in said and "line 1" in said


def test_questions_that_are_learnt_are_held_to_the_transformers_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import decision

    from tuner.models.questions import parsed_by_transformers

    of_three = {"noul": ["Yes", "No"], "choice": ["A", "B", "C"], "score": ["A", "B", "C"]}
    monkeypatch.setattr(decision, "DecisionConfig", partial(decision.DecisionConfig, labels=of_three))
    four = {"q": {"type": "choice", "criteria": dict.fromkeys("abcd")}}
    assert questions_of(four)
    said = refused(
        tmp_path / "set",
        [{"state": "s", "questions": four, "gold": {"q": "a"}}],
        parse=parsed_by_transformers,
    )
    assert "broken question" in said and "line 1" in said and "reads at most 3 options" in said


def test_a_stage_takes_its_own_rows_alone() -> None:
    made = entry("x", {"file_name": "x.json", "formatting": "decisions"}, Path())
    assert made.kind == "decisions" and made.fits("decide") is None
    assert "records with typed questions" in str(made.fits("sft"))


def test_what_a_decision_model_cannot_be_taught_with() -> None:
    assert config().enable_thinking is False
    for wrong in ({"enable_thinking": True}, {"default_system": "Be kind."}, {"probe": "x"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            config(**wrong)
    assert math.isclose(config(label_smoothing_factor=0.1).label_smoothing_factor, 0.1)


def test_sets_that_are_measured_on_keep_the_order_of_their_options(tmp_path: Path) -> None:
    rows = [{"state": f"s{i}", "questions": {"q": QUESTIONS["many"]}, "gold": {"q": "c"}} for i in range(4)]
    for name in ("learnt", "held"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    catalog = {name: {"file_name": f"{name}.json", "formatting": "decisions"} for name in ("learnt", "held")}
    (tmp_path / "dataset_info.json").write_text(json.dumps(catalog))
    asked = config(dataset="learnt", eval_dataset="held", dataset_dir=str(tmp_path), shuffle_options=True)
    found = prepare.prepare(asked, load_tokenizer(STARTER))
    own = list(QUESTIONS["many"]["criteria"])
    assert all(one.options == tuple(own) for row in found.eval[""] for one in questions_in(row))
    assert not any(one.options == tuple(own) for row in found.train for one in questions_in(row))
