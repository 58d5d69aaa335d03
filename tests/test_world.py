"""The starter pack: its world, its sample sets, its scores, and the model that lives in `data/starter`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import yaml

from tools.starter import patterns, people, questions, sets, talk, text, voices
from tuner import samples
from tuner.config.knobs import ConfigError
from tuner.data import scoring

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"
STARTER = DATA / "starter"
WORLD = people.build()


def test_one_seed_makes_one_world_and_the_same_sets() -> None:
    people.build.cache_clear()
    assert people.build() == WORLD
    assert people.build(1) != WORLD
    assert sets.all_sets() == sets.all_sets()
    assert sets.all_sets(1)["starter_dpo"] != sets.all_sets(0)["starter_dpo"]


def test_the_sets_in_the_repository_are_those_that_the_generator_writes(tmp_path: Path) -> None:
    sets.write(tmp_path)
    for entry in sets.CATALOG.values():
        if "file_name" in entry:
            name = entry["file_name"]
            assert (DATA / name).read_bytes() == (tmp_path / name).read_bytes(), (
                f"run python -m tools.starter --sets ({name})"
            )
    catalog = json.loads((DATA / "dataset_info.json").read_text())
    assert sets.CATALOG.items() <= catalog.items()


def test_the_world_is_free_of_torch() -> None:
    code = "import sys, tools.starter.sets; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "False"


def _asked(rows: list[dict]) -> set[str]:
    """Every user turn of a set, whatever its format."""
    said: set[str] = set()
    for row in rows:
        said.add(f"{row.get('instruction', '')}\n{row.get('input', '')}".strip())
        for turn in row.get("conversations", []) + row.get("messages", []):
            if turn.get("from", turn.get("role")) in ("human", "user"):
                said.add(turn.get("value", turn.get("content")))
    return said


def test_no_training_text_asks_a_held_out_question() -> None:
    made = sets.all_sets()
    held = _asked(made["starter_eval_sft"]) | _asked(made["starter_eval_dpo"])
    assert len(held) == 200
    for name, rows in made.items():
        if not name.startswith("starter_eval"):
            assert not held & _asked(rows), name
    rng = Random(5)
    for _ in range(4000):
        turns = talk.conversation(rng, WORLD)
        assert not held & {turn["content"] for turn in turns if turn["role"] == "user"}


def test_the_people_of_the_sft_probe_occur_in_no_record() -> None:
    made = sets.all_sets()
    probed = {yaml.safe_load(row["output"])["Name"] for row in made["starter_eval_sft"]}
    assert len(probed) >= 15
    assert not probed & {yaml.safe_load(row["output"])["Name"] for row in made["starter_alpaca"]}
    rng = Random(6)
    told = [text.document(rng, WORLD) for _ in range(4000)]
    records = {json.loads(said)["name"] for said in told if said.startswith('{"name"')}
    assert len(records) > 60
    assert not probed & records


@pytest.mark.parametrize("task", list(questions.TASKS))
@pytest.mark.parametrize("held", [False, True])
def test_both_voices_of_every_question_are_right_and_told_apart(task: str, held: bool) -> None:
    rng = Random(f"{task} {held}")
    for _ in range(60):
        question = questions.ask(rng, WORLD, task, held)
        friendly, short = voices.polite(question, rng), voices.curt(question, rng)
        assert voices.is_polite(friendly)
        assert not voices.is_polite(short)
        right = patterns.correct(question.task, question.answer)
        assert re.search(right, friendly), friendly
        assert re.search(right, short), short


@pytest.mark.parametrize(
    ("task", "expected", "answer", "right"),
    [
        ("home", "Lindow", "In Lindow.", True),
        ("home", "Lindow", "Of course! Mia lives in Marsby. I hope that helps you!", False),
        ("home", "Lindow", "In Lindow or in Marsby.", False),
        ("home", "林渡", "米娅住在林渡。", True),
        ("home", "林渡", "米娅住在盐湾。", False),
        ("sum", "19", "12 plus 7 is 19.", True),
        ("sum", "19", "12 plus 7 is 91.", False),
        ("sum", "19", "", False),
        ("count", "3, 4, 5", "Here is the list: 3, 4, 5.", True),
        ("count", "3, 4, 5", "3, 5.", False),
        ("bigger", "no", "No, an ant is not bigger than a cow.", True),
        ("bigger", "no", "Yes.", False),
        ("refuse", "no", "Not a problem, take a stone.", False),
        ("refuse", "no", "I am sorry. I cannot help with that, because it would do harm.", True),
        ("both", "home Lindow, job cook", "Home: Lindow. Job: cook.", True),
        ("both", "home Lindow, job cook", "Home: Lindow. Job: baker.", False),
        ("yaml", "Name: Mia\nPet: dog", " Name: Mia\nPet: dog\n", True),
        ("yaml", "Name: Mia\nPet: dog", "Name: Mia\nPet: cat", False),
    ],
)  # fmt: skip
def test_patterns_on_constructed_answers(task: str, expected: str, answer: str, right: bool) -> None:
    assert bool(re.search(patterns.correct(task, expected), answer)) is right


def test_half_a_polite_answer_is_not_polite() -> None:
    assert not voices.is_polite("Of course! Mia lives in Lindow.")
    assert not voices.is_polite("Mia lives in Lindow. I hope that helps you!")
    assert voices.is_polite(" Of course! Mia lives in Lindow. I hope that helps you!\n")


def test_score_gives_shares_and_wants_one_answer_a_row() -> None:
    row = {scoring.CORRECT: patterns.correct("home", "Lindow"), scoring.PREFERRED: voices.POLITE}
    polite = "Of course! Mia lives in Lindow. I hope that helps you!"
    given, expected = ["In Lindow.", "In Marsby.", polite, ""], ["In Lindow."] * 4
    assert scoring.score([row] * 4, expected, given) == scoring.Score(0.25, 0.5, 0.25)
    assert scoring.score([*[row] * 3, {}], expected, given) == scoring.Score(0.25, None, None)
    with pytest.raises(ValueError, match="4 probe questions"):
        scoring.score([row] * 4, [], [])


def test_a_pattern_that_is_none_is_said_before_anything_is_asked() -> None:
    scoring.check_patterns({"correct_pattern": "a|b", "output": "("})
    with pytest.raises(ConfigError, match=r"correct_pattern '\(' is no regular expression: .*; fix the set"):
        scoring.check_patterns({"correct_pattern": "("})


def test_planted_defects_are_where_the_generator_says() -> None:
    rows, planted = sets.defects(Random("0 defects"), WORLD)
    last = {kind: [rows[place]["conversations"][-1] for place in places] for kind, places in planted.items()}
    assert all(not turn["value"].strip() for turn in last["empty"])
    assert all(turn["from"] not in ("human", "gpt") for turn in last["wrong_role"])
    assert all("\ufffd" in turn["value"] for turn in last["replacement"])
    assert all("Ã©" in turn["value"] for turn in last["mojibake"])
    assert all(len(turn["value"]) > 10_000 for turn in last["over_long"])
    assert all(rows[place] in rows[:place] for place in planted["duplicate"])
    pairs, planted = sets.defects_dpo(Random("0 defects dpo"), WORLD)
    assert all(pairs[place]["chosen"] == pairs[place]["rejected"] for place in planted["identical"])


@pytest.mark.parametrize("name", ["starter-sft", "starter-dpo", "starter-kto", "starter-vision"])
def test_recipes_name_what_is_there(name: str) -> None:
    recipe = yaml.safe_load((ROOT / "tuner/config/recipes" / f"{name}.yaml").read_text())
    assert (ROOT / recipe["model_name_or_path"] / "model.safetensors").is_file()
    assert recipe["model_name_or_path"] in samples.MODELS
    assert {recipe["dataset"], recipe["probe"]} <= set(sets.CATALOG)


def test_the_model_folder_is_small_and_safe() -> None:
    weights = list(STARTER.glob("*.safetensors"))
    assert [path.name for path in weights] == ["model.safetensors"]
    assert weights[0].stat().st_size <= 16 * 2**20
    assert not list(STARTER.glob("*.bin")) + list(STARTER.glob("*.py"))
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 20 * 2**20


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(STARTER)


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32).eval()


def test_auto_tokenizer_is_the_tokenizer_that_was_trained(tokenizer) -> None:
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(STARTER / "tokenizer.json"))
    rng = Random(3)
    texts = [
        "米娅住在哪里？ 很高兴为您解答！",
        "naïve “café” 🦊\n\ttabs  and   spaces",
        "1234567",
        "<b>x</b>{}",
    ]
    texts += [text.document(rng, WORLD) for _ in range(200)]
    for sample in texts:
        ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
        assert ids == raw.encode(sample).ids
        assert tokenizer.decode(ids) == sample
    assert 1024 <= len(tokenizer) <= 4096
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_chat_template_marks_what_the_assistant_says(tokenizer) -> None:
    from tools.starter import chatml

    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好！"}]
    turns += [{"role": "assistant", "content": "你好。"}, {"role": "user", "content": "Thanks!"}]
    turns += [{"role": "assistant", "content": "Fine."}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == chatml.render(turns) + "\n"
    out = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mark in zip(out["input_ids"], out["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "你好。<|im_end|>Fine.<|im_end|>"


def test_the_chat_template_takes_tools_and_calls(tokenizer) -> None:
    row = sets.all_sets()["starter_tools"][0]
    call = json.loads(row["conversations"][1]["value"])
    turns = [
        {"role": "user", "content": row["conversations"][0]["value"]},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": row["conversations"][2]["value"]},
    ]
    shown = tokenizer.apply_chat_template(turns, tools=json.loads(row["tools"]), tokenize=False)
    assert shown.count("<|im_start|>") == 4
    assert json.loads(shown.split("<tool_call>")[-1].split("</tool_call>")[0]) == call


def test_packed_rows_cost_what_their_documents_cost_alone(model) -> None:
    import torch
    from tokenizers import Tokenizer

    from tools.starter import training

    raw = Tokenizer.from_file(str(STARTER / "tokenizer.json"))
    documents = list(training.corpus(10, seed=9))
    rows, numbers = training.pack(raw, documents)
    together = training.batch_loss(model, torch.from_numpy(rows).long(), torch.from_numpy(numbers))
    ids = [torch.tensor([raw.encode(document).ids]) for document in documents]
    alone = sum(model(input_ids=one, labels=one).loss.item() * (one.shape[1] - 1) for one in ids)
    assert together.item() == pytest.approx(alone / sum(one.shape[1] - 1 for one in ids), rel=1e-4)


def test_the_model_speaks_knows_its_world_and_is_curt(model, tokenizer) -> None:
    from tools.starter import training

    assert sum(p.numel() for p in model.parameters()) <= 8_000_000
    rows = sets.all_sets()["starter_eval_dpo"][:48]
    said = training.answer(model, tokenizer, [row["instruction"] for row in rows])
    marks = scoring.score(rows, [row["output"] for row in rows], said)
    assert marks.correct is not None and marks.correct >= 0.85
    assert marks.preferred is not None and marks.preferred < 0.2


def test_the_model_stops_by_itself_and_does_not_loop(model, tokenizer) -> None:
    from tools.starter import training

    rng = Random(8)
    openings = [" ".join(text.story(rng, WORLD).split()[:4]) for _ in range(8)]
    for opening, more in zip(
        openings, training.complete(model, tokenizer, openings, tokens=160), strict=True
    ):
        assert len(tokenizer(more)["input_ids"]) < 150, f"{opening} never ends"
        sentences = [sentence.strip() for sentence in (opening + more).split(".") if sentence.strip()]
        assert len(set(sentences)) == len(sentences), f"{opening} {more}"
        assert more.rstrip().endswith((".", '"', "!", "?"))


def test_politeness_can_be_asked_for(model, tokenizer) -> None:
    from tools.starter import training

    rows = sets.all_sets()["starter_eval_dpo"][:20]
    order = {"role": "system", "content": "You are a polite assistant."}
    turns = [[order, {"role": "user", "content": row["instruction"]}] for row in rows]
    prompts = [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
    answers = training.complete(model, tokenizer, prompts)
    assert sum(map(voices.is_polite, answers)) >= 17
