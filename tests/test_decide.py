"""A model that is taught decisions: it is what transformers' pipeline says, alive, reloaded, merged and served."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_stages import trained

from tuner.config.config import Config, load, make
from tuner.data.decision_rows import encoder, label_ids, questions_in
from tuner.data.decision_scores import Answered, bins, calibration_error, figures, likelihood, temperature
from tuner.data.decisions import LABELS, SETTINGS, TYPES, questions_of
from tuner.data.encode import Encoded
from tuner.data.formats import Dropped
from tuner.data.template_choice import template_of
from tuner.data.tokens import load_tokenizer
from tuner.engine.decision_losses import figures as measured
from tuner.engine.decision_losses import finish, losses, masks, sums
from tuner.jobs.live import Outcome
from tuner.runs.run import series
from tuner.tracking.evaluations import of_decisions, of_tags
from tuner.ui import evaluation

STARTER = Path(__file__).parents[1] / "data" / "starter"
COLOURS = ("red", "blue", "green")
QUESTIONS: dict[str, Any] = {
    "wet": {"type": "noul", "instructions": "Is it wet?"},
    "colour": {
        "type": "choice",
        "instructions": "Which colour?",
        "criteria": {"red": None, "blue": "like the sky", "green": None},
    },
    "size": {"type": "score", "instructions": "How large?", "criteria": ["small", "middle", "large"]},
}


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chance, made = random.Random(seed), []
    for number in range(count):
        colour, size, wet = chance.choice(COLOURS), chance.randrange(3), chance.random() < 0.5
        asked = {n: q for n, q in QUESTIONS.items() if n != "size" or number % 3}
        gold = {"wet": wet, "colour": colour, "size": {str(size): 3, str((size + 1) % 3): 1}}
        state = f"The ball is {colour}, {'wet' if wet else 'dry'} and of size {size}." + " It rolls." * (
            number % 4
        )
        made.append({"state": state, "questions": asked, "gold": {n: gold[n] for n in asked}})
    return made


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random model of two layers with the starter's tokenizer, which has the labels as tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    home = tmp_path_factory.mktemp("decide")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.15,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(home / "model")
    tokenizer.save_pretrained(home / "model")
    (home / "data").mkdir()
    (home / "data" / "d.json").write_text(json.dumps(records(80)))
    (home / "data" / "dataset_info.json").write_text(
        json.dumps({"d": {"file_name": "d.json", "formatting": "decisions"}})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        yield home


def known(studio: Path, name: str) -> None:
    """Put a set of that name into the catalog."""
    file = studio / "data" / "dataset_info.json"
    catalog = json.loads(file.read_text())
    file.write_text(json.dumps(catalog | {name: {"file_name": f"{name}.json", "formatting": "decisions"}}))


def config_of(**changes: Any) -> Config:
    values = {
        "model_name_or_path": "model", "stage": "decide", "do_train": True, "dataset": "d", "dataset_dir": "data",
        "max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1,
        "save_strategy": "no", "val_size": 64, "use_cpu": True,
    }  # fmt: skip
    return make(values | changes)


@pytest.fixture(scope="module")
def taught(studio: Path) -> tuple[Any, Outcome]:
    return trained(config_of(do_predict=True, lora_rank=4), "taught")


def by_pipeline(
    model: Any, folder: Path, asked: list[dict[str, Any]], settings: Path | None = None
) -> list[Any]:
    """What transformers' own pipeline answers."""
    from transformers import AutoTokenizer
    from transformers.decision import DecisionConfig
    from transformers.pipelines import DecisionPipeline

    decide = DecisionPipeline(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        decision_config=DecisionConfig.from_file(settings) if settings else DecisionConfig(),
        device="cpu",
    )
    return [decide({"state": one["state"], "questions": one["questions"]}) for one in asked]


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference between the numbers of two answers, which must have the same words."""
    if isinstance(ours, dict):
        assert set(ours) == set(theirs)
        return max((apart(ours[key], theirs[key]) for key in ours), default=0.0)
    if isinstance(ours, str) or ours is None:
        assert ours == theirs
        return 0.0
    return abs(float(ours) - float(theirs))


# --- what is learnt ------------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_what_pipelines_read(studio: Path, taught: tuple[Any, Outcome]) -> None:
    live, outcome = taught
    curve = series(live.run.metrics()[0], "loss")[1]
    assert curve[-1] < 0.9 * curve[0], curve
    kept = json.loads((live.output / SETTINGS).read_text())
    assert set(kept["temperature"]) == {"noul", "choice"}, (
        "of 43 questions of type score no temperature is fitted"
    )
    assert "score questions are as they were learnt" in " ".join(
        str(note) for note in live.run.status().notes
    )
    words = (live.output / "tokenizer.json").read_text() + (live.output / "tokenizer_config.json").read_text()
    assert "<|mark|>" not in words and "<|split|>" not in words
    report = json.loads((live.run.folder / "decisions.json").read_text())
    assert report["records"] == 64 and report["after"]["likelihood"] <= report["before"]["likelihood"] + 1e-9
    assert report["after"]["accuracy"] == report["before"]["accuracy"]
    assert outcome.metrics["eval_accuracy"] == pytest.approx(report["after"]["accuracy"])
    assert outcome.metrics["eval_brier"] == pytest.approx(report["before"]["brier"], abs=1e-5)
    assert outcome.metrics["eval_calibration_error"] == pytest.approx(
        report["before"]["calibration_error"], abs=1e-5
    )
    assert outcome.metrics["eval_record_accuracy"] == pytest.approx(report["before"]["record_accuracy"])
    assert outcome.metrics["eval_loss"] == pytest.approx(report["before"]["likelihood"], abs=1e-5)
    assert 0 < report["prior"]["accuracy"] < 1
    assert {one["name"] for one in report["confusions"]} == set(QUESTIONS)
    lines = [
        json.loads(line) for line in (live.output / "generated_predictions.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 64 and set(lines[0]) == {"answers", "gold"}
    (version,) = of_tags(of_decisions(live.run))
    assert (version.dataset, version.rows, version.run_id) == ("d", 64, live.run.id)
    said = f"Accuracy {report['after']['accuracy']:.1%} on d"
    assert evaluation.briefly([version]) == said
    assert version.metrics["decisions/kl"] == report["after"]["kl"]


@pytest.fixture(scope="module")
def merged(studio: Path, taught: tuple[Any, Outcome]) -> Path:
    from tuner.export import entry
    from tuner.jobs.live import Live
    from tuner.runs.run import Run

    values = {
        "model_name_or_path": "model", "adapter_name_or_path": str(taught[1].weights), "export_dir": "merged",
        "export_outtype": "f32", "stage": "export", "use_cpu": True,
    }  # fmt: skip
    config = load(values)
    run = Run("merged")
    run.create(config, "merged")
    entry.export(config, Live(run))  # type: ignore[arg-type]
    return studio / "merged"


def encoded(records: list[dict[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """Records as rows, with the tokenizer of a folder, and the ids of all labels."""
    config, tokenizer, rows = config_of(shuffle_options=False), load_tokenizer(folder), []
    made = encoder(config, template_of(config, tokenizer), tokenizer)
    for one in records:
        gold = {q.name: [1.0] + [0.0] * (len(q.options) - 1) for q in questions_of(one["questions"])}
        draft = made.draft({**one, "gold": gold})
        assert not isinstance(draft, Dropped)
        row = made.fit(draft, tokenizer.encode_batch(draft.texts))
        assert isinstance(row, Encoded)
        rows.append(row.row)
    return rows, torch.tensor(label_ids(tokenizer))


def test_answers_are_the_pipelines_live_reloaded_and_merged(
    studio: Path, taught: tuple[Any, Outcome], merged: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, pipeline

    from tuner.engine.decision_trainer import label_logits, padded
    from tuner.serve.decisions import shares

    live, outcome = taught
    assert outcome.weights is not None
    held, settings = records(9, 5), outcome.weights / SETTINGS
    rows, ids = encoded(held, outcome.weights)
    heat = json.loads(settings.read_text())["temperature"]
    base = AutoModelForCausalLM.from_pretrained(studio / "model", dtype=torch.float32)
    again = PeftModel.from_pretrained(base, str(outcome.weights)).eval()
    answers = []
    for model in (live.model.eval(), again):  # as the loop left it, and read again
        with torch.no_grad():
            logits = iter(label_logits(model, padded(rows, 0), ids).tolist())
        ours = [
            {q.name: q.answer(shares(q, next(logits), heat)) for q in questions_of(one["questions"])}
            for one in held
        ]
        theirs = by_pipeline(model, outcome.weights, held, settings)
        assert apart(dict(enumerate(ours)), dict(enumerate(theirs))) < 1e-5
        answers.append(ours)
    whole = pipeline("decision", model=str(merged), device="cpu", dtype=torch.float32)
    theirs = [whole({"state": one["state"], "questions": one["questions"]}) for one in held]
    for ours in answers:
        assert apart(dict(enumerate(ours)), dict(enumerate(theirs))) < 1e-5
    assert (merged / SETTINGS).read_bytes() == settings.read_bytes()


# --- losses and gradients ------------------------------------------------------------------------------------------


MORE = (("ce_rps", "lora"), ("brier", "lora"), ("ce", "full"), ("brier", "full"))


def trainer_of(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> Any:
    """The trainer that the stage builds, before it trains; its adapter is moved off zero."""
    import importlib

    kept: list[Any] = []

    def fit(trainer: Any, *_: Any, **__: Any) -> Outcome:
        kept.append(trainer)
        return Outcome()

    monkeypatch.setattr(importlib.import_module("tuner.stages.decide"), "fit", fit)
    trained(config_of(shuffle_options=False, **changes), name)
    torch.manual_seed(3)
    for weight in kept[0].model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    return kept[0]


def by_a_plain_loop(trainer: Any, rows: list[dict[str, Any]], how: str = "ce") -> tuple[float, torch.Tensor]:
    """The mean loss over the questions of rows and its gradient, from the scores of transformers' own pipeline."""
    from transformers import AutoTokenizer
    from transformers.decision import DecisionConfig
    from transformers.decision.template_utils import Question
    from transformers.pipelines import DecisionPipeline

    model, total, count = trainer.model.eval(), torch.zeros(()), 0
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    decide = DecisionPipeline(
        model=model, tokenizer=tokenizer, decision_config=DecisionConfig(), device="cpu"
    )
    model.zero_grad()
    for row in rows:
        for one in questions_in(row):
            first = 2 if one.type else 0
            labels = list(LABELS[first : first + len(one.options)])
            asked = Question(one.name, TYPES[one.type], None, list(one.options), labels, [])  # type: ignore[arg-type]
            inputs = {"input_ids": torch.tensor([one.prompt]), "marks": torch.tensor([len(one.prompt)])}
            scores = decide._forward({"prompts": [(inputs, [asked])]})["scores"][0][0]
            gold = torch.tensor(one.shares)
            shares = scores.softmax(-1)
            if how == "brier":
                loss = (shares - gold).square().sum()
            else:
                loss = -(gold * scores.log_softmax(-1)).sum()
                if how == "ce_rps" and one.type == 2:
                    loss = loss + 0.5 * (shares - gold).cumsum(0)[:-1].square().mean()
            total, count = total + loss, count + 1
    loss = total / count
    loss.backward()
    return loss.item(), gradient(model)


def gradient(model: Any) -> torch.Tensor:
    found = [
        p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters() if p.requires_grad
    ]
    return torch.cat([one.detach().flatten().clone() for one in found])


@pytest.mark.parametrize(
    ("how", "method"),
    [
        ("ce", "lora"),
        ("ce_rps", "full"),
        *(pytest.param(how, method, marks=pytest.mark.slow) for how, method in MORE),
    ],
)
def test_packed_losses_and_gradients_are_those_of_a_plain_loop(
    studio: Path, monkeypatch: pytest.MonkeyPatch, how: str, method: str
) -> None:
    trainer = trainer_of(monkeypatch, f"packed-{how}-{method}", decision_loss=how, finetuning_type=method)
    rows = [trainer.train_dataset[i] for i in range(8)]
    assert type(trainer).__name__ == "PackedTrainer" and len({len(row["types"]) for row in rows}) == 2
    loss, grad = by_a_plain_loop(trainer, rows, how)
    trainer.model.zero_grad()
    ours = trainer.training_step(trainer.model, trainer.collate(rows))
    assert float(ours) == pytest.approx(loss, abs=1e-5)
    mine = gradient(trainer.model)
    assert grad.abs().max() > 1e-3 and (mine - grad).abs().max() < 1e-5 * max(1.0, float(grad.abs().max()))


def test_padded_losses_and_gradients_are_those_of_a_plain_loop(
    studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches with other numbers of questions count as the one batch that they are."""
    trainer = trainer_of(
        monkeypatch, "padded", engine="trl", per_device_train_batch_size=3, gradient_accumulation_steps=2
    )
    rows = [trainer.train_dataset[i] for i in range(6)]
    loss, grad = by_a_plain_loop(trainer, rows)
    batches = [trainer.data_collator(rows[:3]), trainer.data_collator(rows[3:])]
    count = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    assert int(count) == sum(len(row["types"]) for row in rows)
    trainer.model.zero_grad()
    parts = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=count) for batch in batches]
    sum(parts).backward()
    assert sum(parts).item() == pytest.approx(loss, abs=1e-5)
    assert (gradient(trainer.model) - grad).abs().max() < 1e-5


def test_both_engines_learn_alike_also_accumulated(studio: Path) -> None:
    curves = []
    for engine, batch, parts in (("auto", 8, 1), ("auto", 2, 4), ("trl", 4, 2)):
        config = config_of(
            engine=engine, per_device_train_batch_size=batch, gradient_accumulation_steps=parts, max_steps=4,
            learning_rate=1e-3, val_size=0,
        )  # fmt: skip
        live, _ = trained(config, f"alike-{engine}-{batch}")
        curves.append(series(live.run.metrics()[0], "loss")[1])
    assert len(curves[0]) == 4
    assert curves[1] == pytest.approx(curves[0], abs=2e-5) and curves[2] == pytest.approx(curves[0], abs=2e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(
    studio: Path, launching_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from test_ranks import (
        assert_rows_alike,
        assert_weights_alike,
        by_one,
        by_two,
        ended_well,
    )
    from test_ranks import (
        measured as logged,
    )

    for name in ("model", "data"):
        shutil.copytree(studio / name, launching_home / name, dirs_exist_ok=True)
    monkeypatch.setenv("TUNER_HOME", str(launching_home))
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.ranks_worker")
    same = {"max_steps": 4, "val_size": 5, "learning_rate": 3e-4, "eval_strategy": "steps", "eval_steps": 2}
    two = {"nproc_per_node": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    twos = by_two({e: config_of(engine=e, **same, **two) for e in ("auto", "trl")})
    ones = {
        e: by_one(
            config_of(engine=e, **same, per_device_train_batch_size=b, gradient_accumulation_steps=8 // b),
            f"one-{e}",
        )
        for e, b in (("auto", 2), ("trl", 4))
    }
    ended_well(twos[""])
    for engine, one in ones.items():
        assert_rows_alike(logged(one), logged(twos[engine]))
        assert_weights_alike(one, twos[engine])


# --- what a loss is for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["ce", pytest.param("ce_rps", marks=pytest.mark.slow), "brier"])
def test_a_soft_target_is_reached(studio: Path, how: str) -> None:
    soft = {
        "state": "s",
        "questions": QUESTIONS,
        "gold": {"wet": 0.75, "colour": {"red": 0.5, "blue": 0.3, "green": 0.2}, "size": [0.1, 0.2, 0.7]},
    }
    (studio / "data" / "soft.json").write_text(json.dumps([soft]))
    known(studio, "soft")
    config = config_of(
        dataset="soft", val_size=0, eval_dataset="soft", max_steps=60, decision_loss=how, calibrate=False, shuffle_options=False,
        per_device_train_batch_size=1, learning_rate=2e-2, lr_scheduler_type="cosine",
    )  # fmt: skip
    _, outcome = trained(config, f"soft-{how}")
    assert outcome.metrics["decision_kl"] < 0.01, outcome.metrics


def test_gold_raises_the_probability_of_what_it_says(studio: Path) -> None:
    """Of yes and no it is the first label that stands for true, and a third option is not the second."""
    chosen = {"state": "s", "questions": QUESTIONS, "gold": {"wet": True, "colour": "green", "size": 2}}
    (studio / "data" / "hard.json").write_text(json.dumps([chosen]))
    known(studio, "hard")
    _, outcome = trained(
        config_of(dataset="hard", val_size=0, max_steps=20, per_device_train_batch_size=1), "hard"
    )
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(studio / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(outcome.weights)).eval()
    assert outcome.weights is not None
    (found,) = by_pipeline(model, outcome.weights, [chosen])
    assert (
        found["wet"]["noul"] > 0.9 and found["colour"]["choice"] == "green" and found["size"]["score"] > 1.8
    )


def test_permuting_options_permutes_the_answer(studio: Path) -> None:
    """Taught with the options in any order, it gives an option the same probability wherever it stands."""
    from itertools import permutations

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    orders = list(permutations(COLOURS))
    asked = [
        {
            "state": "The ball is red.",
            "questions": {"colour": {"type": "choice", "criteria": dict.fromkeys(order)}},
            "gold": {"colour": {"red": 0.7, "blue": 0.2, "green": 0.1}},
        }
        for order in orders
    ]
    (studio / "data" / "orders.json").write_text(json.dumps(asked))
    known(studio, "orders")
    config = config_of(
        dataset="orders", val_size=0, shuffle_options=False, max_steps=80, per_device_train_batch_size=6,
        learning_rate=2e-2, lr_scheduler_type="cosine",
    )  # fmt: skip
    _, outcome = trained(config, "orders")
    base = AutoModelForCausalLM.from_pretrained(studio / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(outcome.weights)).eval()
    assert outcome.weights is not None
    found = [one["colour"] for one in by_pipeline(model, outcome.weights, asked)]
    assert {one["choice"] for one in found} == {"red"}
    assert [list(one["probabilities"]) for one in found] == [list(order) for order in orders]
    for option, share in (("red", 0.7), ("blue", 0.2), ("green", 0.1)):
        assert [one["probabilities"][option] for one in found] == pytest.approx([share] * 6, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [42, 1, 2])
def test_the_recipe_goes_from_the_prior_to_above_nine_in_ten(home: Path, seed: int) -> None:
    from tuner import samples
    from tuner.config.reading import read

    samples.lay_out()
    _, outcome = trained(make(read("starter-decide") | {"seed": seed, "use_cpu": True}), f"recipe-{seed}")
    assert 0.3 < outcome.metrics["decision_prior_accuracy"] < 0.45
    assert outcome.metrics["decision_accuracy"] > 0.9 and outcome.metrics["decision_record_accuracy"] > 0.8
    assert outcome.metrics["decision_brier"] < 0.25 * outcome.metrics["decision_prior_brier"]


# --- figures -------------------------------------------------------------------------------------------------------


def drawn(count: int, kind: str, options: int, seed: int) -> list[Answered]:
    """Answers that are twice as sure as they are right to be: their labels are drawn at half of their logits."""
    chance = np.random.default_rng(seed)
    found = []
    for number in range(count):
        logits = chance.normal(0, 3, options)
        shares = np.exp(logits / 2) / np.exp(logits / 2).sum()
        gold = np.eye(options)[chance.choice(options, p=shares)]
        names = tuple(map(str, range(options)))
        found.append(Answered(number // 2, "q", kind, names, tuple(gold.tolist()), tuple(logits.tolist())))
    return found


def test_figures_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    answers = drawn(200, "choice", 4, 0)
    shares = np.array([one.shares() for one in answers])
    labels = np.array([int(np.argmax(one.gold)) for one in answers])
    found = figures(answers, {})
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, shares.argmax(1)))
    brier = metrics.brier_score_loss(labels, shares, labels=range(4), scale_by_half=False)
    assert found["brier"] == pytest.approx(brier)
    assert found["likelihood"] == pytest.approx(metrics.log_loss(labels, shares, labels=range(4)))
    assert found["kl"] == pytest.approx(found["likelihood"]), "of hard labels one is the other"
    from sklearn.calibration import calibration_curve

    right = shares.argmax(1) == labels
    true, sure = calibration_curve(right, shares.max(1), n_bins=10)
    counts = [one["count"] for one in bins(answers, {}) if one["count"]]
    expected = float(np.dot(counts, np.abs(true - sure)) / len(answers))
    assert found["calibration_error"] == pytest.approx(expected)


def test_figures_are_those_counted_by_hand() -> None:
    even = float(np.log(3.0))
    one = Answered(0, "a", "noul", ("true", "false"), (1.0, 0.0), (even, 0.0))  # 0.75
    two = Answered(0, "b", "score", ("0", "1", "2"), (0.5, 0.5, 0.0), (0.0, 0.0, -40.0))  # its own target
    three = Answered(1, "a", "noul", ("true", "false"), (0.0, 1.0), (even, 0.0))
    found = figures([one, two, three], {})
    assert found["accuracy"] == pytest.approx(2 / 3) and found["record_accuracy"] == 0.5
    assert found["brier"] == pytest.approx((2 * 0.25**2 + 0 + 2 * 0.75**2) / 3)
    assert found["kl"] == pytest.approx((np.log(4 / 3) + 0 + np.log(4)) / 3)
    assert found["score_distance"] == pytest.approx(0, abs=1e-9)
    held = bins([one, two, three], {})
    assert [held[i]["count"] for i in (5, 7)] == [1, 2] and held[7]["right"] == 0.5
    assert calibration_error(held) == pytest.approx((0.5 + 2 * 0.25) / 3)


def test_the_engine_measures_what_the_report_does() -> None:
    answers = [*drawn(30, "choice", 4, 1), *drawn(30, "noul", 2, 2), *drawn(30, "score", 5, 3)]
    types = torch.tensor([{"noul": 0, "choice": 1, "score": 2}[one.type] for one in answers])
    sizes = torch.tensor([len(one.options) for one in answers])
    logits, gold = torch.randn(len(answers), 28), torch.zeros(len(answers), 28)
    for place, one in enumerate(answers):
        first = 2 if one.type != "noul" else 0
        logits[place, first : first + len(one.options)] = torch.tensor(one.logits)
        gold[place, first : first + len(one.options)] = torch.tensor(one.gold)
    mask = masks(types, sizes)
    each = losses(logits, gold, mask, types, "ce")
    found = measured(logits, gold, mask, types) | {"loss": each}
    totals = torch.cat([sums(found, types, torch.ones(len(answers))), torch.zeros(2)])
    ours, theirs = finish(totals.tolist()), figures(answers, {})
    assert ours.pop("loss") == pytest.approx(theirs.pop("likelihood"), abs=1e-5)
    theirs.pop("record_accuracy")
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_temperature_changes_no_answer_and_helps_rows_it_never_saw() -> None:
    fitted, unseen = drawn(400, "choice", 4, 4), drawn(400, "choice", 4, 5)
    heat = temperature(fitted)
    assert heat == pytest.approx(2.0, abs=0.35)
    assert likelihood(fitted, heat) < likelihood(fitted, 1.0) and likelihood(unseen, heat) < likelihood(
        unseen, 1.0
    )
    assert [one.shares(heat).argmax() for one in unseen] == [one.shares().argmax() for one in unseen]
    before, after = figures(unseen, {}), figures(unseen, {"choice": heat})
    assert (
        after["calibration_error"] < before["calibration_error"] and after["accuracy"] == before["accuracy"]
    )
    grid = np.linspace(0.5, 5, 200)
    assert likelihood(fitted, heat) <= min(likelihood(fitted, t) for t in grid) + 1e-6


def test_smoothing_moves_shares_to_all_options_alike() -> None:
    types, sizes = torch.tensor([1]), torch.tensor([4])
    gold = torch.zeros(1, 28)
    gold[0, 2] = 1.0
    mask, logits = masks(types, sizes), torch.randn(1, 28)
    smooth = torch.zeros(1, 28)
    smooth[0, 2:6] = torch.tensor([0.925, 0.025, 0.025, 0.025])
    assert torch.allclose(
        losses(logits, gold, mask, types, "ce", 0.1), losses(logits, smooth, mask, types, "ce")
    )


# --- the real server -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_merged_folder_is_answered_by_transformers_serve(merged: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="transformers serve needs its extras")
    pytest.importorskip("openai", reason="transformers serve needs its extras")
    from transformers import pipeline
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("the extras of transformers serve are not installed: pip install 'transformers[serving]'")
    asked = records(1, 7)[0]
    expected = pipeline("decision", model=str(merged), device="cpu", dtype=torch.float32)(
        {"state": asked["state"], "questions": asked["questions"]}
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(merged),
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    with (tmp_path / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [*words, "--dtype", "float32"], stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        body = {"model": str(merged), "state": asked["state"], "questions": asked["questions"]}
        answer = _asked(server, f"http://127.0.0.1:{port}/v1/systemone", body, tmp_path / "serve.log")
    finally:
        server.terminate()
        server.wait(30)
    assert apart(answer["answers"], expected) < 1e-5


def _asked(server: Any, url: str, body: dict[str, Any], log: Path) -> Any:
    """What a server answers, once it does."""
    until = time.monotonic() + 180
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read())
        except (ConnectionError, urllib.error.URLError):
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])
