"""What the pages are made of, without a browser: numbers in words, the form's draft, chart tables, colours, escaping."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from tuner.config.config import KNOBS, Config, check, make
from tuner.config.kinds import KINDS
from tuner.config.knobs import Problem
from tuner.config.reading import recipes
from tuner.jobs import submit
from tuner.jobs.script import script
from tuner.plan.plan import Plan
from tuner.plan.shape import Memory
from tuner.runs import inputs
from tuner.runs.run import Run
from tuner.runs.status import STATES, Status
from tuner.tracking.rows import RunRow
from tuner.ui import (
    answers,
    axis,
    chart_table,
    charts,
    compare,
    draft,
    drawn,
    field,
    home,
    memory_bar,
    report_html,
    run_card,
    run_view,
    sweep,
    sweeps,
    tables,
    theme,
    visits,
    what_next,
    words,
)

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (5e-5, "5e-05"),
        (0.693147, "0.6931"),
        (12345.6, "12,346"),
        (0.0, "0"),
        (1.0, "1"),
        (float("nan"), "not a number"),
    ],
)
def test_numbers_have_one_format(figure: float, said: str) -> None:
    assert words.number(figure) == said


def test_times_and_sizes_have_units() -> None:
    assert [words.duration(s) for s in (0.42, 43, 125, 4320, 100_000)] == [
        "0.4 s",
        "43 s",
        "2 min 05 s",
        "1 h 12 min",
        "1 d 3 h",
    ]
    assert [words.size(b) for b in (0, 512, 1536, 23 * 2**30)] == ["0 B", "512 B", "1.5 KiB", "23 GiB"]
    assert (words.count(1, "row"), words.count(12345, "row"), words.share(0.004)) == (
        "1 row",
        "12,345 rows",
        "0.4%",
    )


def test_every_state_has_a_word_an_icon_and_a_sentence() -> None:
    for state in STATES:
        assert words.look(state).icon and words.look(state).word
        assert words.sentence(Status(state=state)).endswith(".")


def test_text_of_unknown_origin_stays_text() -> None:
    hostile = "![x](http://evil/a.png) <script>alert(1)</script> :red[no] $x$ `y` # t"
    for mark in "![]()<>:$`#":
        assert f"\\{mark}" in words.safe(hostile)


@given(
    st.dictionaries(st.text(max_size=6), st.sampled_from(["a", "a b", "b", ""]), max_size=8),
    st.integers(1, 5),
)
def test_no_two_labels_are_alike(said: dict[str, str], least: int) -> None:
    told = words.distinct(said, least)
    assert list(told) == list(said) and len(set(told.values())) == len(said)
    assert all(told[key].startswith(said[key]) for key in said)


def test_a_field_of_runs_tells_runs_of_one_name_apart_and_keeps_its_labels() -> None:
    def row(run_id: str, name: str) -> RunRow:
        return RunRow(id=run_id, name=name, state="finished", created=0.0, stage="dpo")

    before = compare.labels([row("a1", "twin"), row("a2", "twin"), row("a3", "other")], {})
    assert len(set(before.values())) == 3
    after = compare.labels([row("a1", "renamed"), row("a4", "other"), row("a3", "other")], before)
    assert len(set(after.values())) == 4
    assert {i: after[i] for i in before} == before


# --- the form ------------------------------------------------------------------------------------------------------


def test_a_draft_marks_what_differs_from_where_it_began() -> None:
    begun = draft.Draft(base={"learning_rate": 1e-4})
    changed = begun.with_value("learning_rate", 2e-4).with_value("lora_rank", 16)
    assert set(changed.changes) == {"learning_rate", "lora_rank"}
    assert set(changed.with_value("learning_rate", 0.0001).changes) == {"lora_rank"}
    assert changed.without("lora_rank").value("lora_rank") == KNOBS["lora_rank"].default


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "5e-5", 5e-5),
        ("learning_rate", "fast", "fast"),
        ("max_samples", "1,000", 1000),
        ("max_samples", "", None),
        ("lora_target", "q_proj, v_proj", ["q_proj", "v_proj"]),
    ],
)
def test_what_is_typed_becomes_the_knob_s_type_or_stays_to_be_told(
    name: str, text: str, value: object
) -> None:
    assert draft.typed(KNOBS[name], text) == value


def test_the_form_shows_what_applies_and_finds_by_word() -> None:
    def names(values: dict[str, object], **how: object) -> set[str]:
        found = drawn.visible(
            draft.Draft(base=values), advanced=bool(how.get("advanced")), search=str(how.get("search", ""))
        )
        return {k.name for knobs in found.values() for k in knobs}

    assert "pref_beta" in names({"stage": "dpo"}) and "pref_beta" not in names({"stage": "sft"})
    assert "weight_decay" not in names({}) and "weight_decay" in names({}, advanced=True)
    assert "weight_decay" in names({}, search="decay") and "lora_rank" not in names({}, search="decay")


def test_the_form_begins_with_a_recipe_that_only_lacks_model_and_data() -> None:
    assert draft.FIRST in recipes()
    _, problems = check(draft.from_recipe(draft.FIRST).values)
    assert {p.knob for p in problems} == {"model_name_or_path", "dataset"}


def test_the_form_shows_what_a_recipe_sets_under_whatever_name() -> None:
    begun = draft.from_recipe("starter-dpo")  # which says warmup_ratio
    assert begun.value("warmup_steps") == 0.1
    assert {"warmup_steps"} <= {knob.name for knob, _ in draft.differs(begun.base)}
    shown = {k.name for knobs in drawn.visible(begun, advanced=False).values() for k in knobs}
    assert "max_steps" in shown, "it decides how long the run is, whatever the epochs say"
    assert "max_steps" not in {
        k.name for s in drawn.visible(draft.Draft(), advanced=False).values() for k in s
    }


def test_a_renamed_value_that_is_none_is_told_in_a_sentence() -> None:
    _, problems = check({"warmup_ratio": "often"})
    assert any("warmup_steps" in p.sentence and "often" in p.sentence for p in problems)


def test_a_unit_stands_beside_a_label_that_does_not_say_it() -> None:
    titles = {
        n: field.heading(KNOBS[n], draft.Draft()) for n in ("cutoff_len", "quantization_bit", "save_steps")
    }
    assert "tokens" in titles["cutoff_len"]
    assert "bits" not in titles["quantization_bit"] and titles["save_steps"] == "Save steps"


def test_every_shown_knob_has_a_label_of_its_own() -> None:
    shown = [words.label(k.name) for k in KNOBS.values() if k.shown]
    assert len(set(shown)) == len(shown)


def test_every_shown_knob_s_tooltip_says_its_flag_and_what_a_change_does() -> None:
    for knob in (k for k in KNOBS.values() if k.shown):
        said = field.tooltip(knob)
        assert f"`--{knob.name}`" in said
        assert not knob.raised or "Higher" in said


def judged(one: draft.Draft) -> tuple[Config | None, list[Problem]]:
    return check(one.values)


def test_a_sweep_makes_a_run_of_every_combination_and_says_what_is_wrong_with_any() -> None:
    begun = draft.Draft(base={"model_name_or_path": "m", "dataset": ["d"], "stage": "sft"})
    planned = sweep.plan(begun, {"learning_rate": "1e-4, 3e-4,1e-4", "lora_rank": "8,16"}, judged)
    assert not planned.problems
    assert [(c.learning_rate, c.lora_rank) for c in planned.configs] == [
        (1e-4, 8), (1e-4, 16), (3e-4, 8), (3e-4, 16),
    ]  # fmt: skip
    assert planned.own[0] == "Learning rate 1e-4, LoRA rank 8"
    assert submit.expand(planned.values)[3]["learning_rate"] == "3e-4"

    for values, said in [
        ({"learning_rate": "1e-4"}, "several values"),
        ({"learning_rate": "1e-4, fast"}, "learning_rate"),
        ({"seed": ",".join(map(str, range(40)))}, "40 runs"),
    ]:
        (sentence,) = sweep.plan(begun, values, judged).problems
        assert said in sentence


def test_what_holds_one_value_and_applies_can_be_swept() -> None:
    names = sweep.choices(draft.Draft(base={"stage": "sft"}))
    assert {"learning_rate", "lora_rank", "seed", "lr_scheduler_type"} <= set(names)
    assert not {"pref_beta", "dataset", "model_name_or_path"} & set(names)


# --- charts --------------------------------------------------------------------------------------------------------


def test_every_stage_has_charts() -> None:
    for group in map(chart_table.charts_of, KINDS):
        assert len({c.key for c in group}) == len(group)
        assert all(c.help for c in group)


def test_smoothing_starts_at_the_first_value_and_keeps_gaps() -> None:
    values = np.array([4.0, 2.0, np.nan, 2.0, 2.0])
    smoothed = charts.smooth(values, 0.9)
    assert smoothed[0] == pytest.approx(4.0)
    assert np.isnan(smoothed[2]) and 2.0 < smoothed[-1] < 4.0
    assert charts.smooth(values, 0.0) is values


def test_a_chart_of_a_long_run_keeps_its_spike_and_few_points() -> None:
    steps = np.arange(100_000)
    loss = np.ones(100_000)
    loss[54_321] = 9.0
    drawn = charts.figure(chart_table.LOSS, {"loss": (steps, loss)})
    assert len(drawn.data) == 1 and len(drawn.data[0].x) <= 1000
    assert max(drawn.data[0].y) == 9.0


def test_a_chart_is_told_in_words() -> None:
    curves = {
        "train": (np.array([1, 2, 60]), np.array([0.5, np.nan, 0.25])),
        "evaluation": (np.array([]), np.array([])),
    }
    said = charts.in_words("Accuracy by step", curves, scale=100)
    assert said == "Accuracy by step: train 50 at 1, 25 at 60, lowest 25, highest 50."
    assert charts.in_words("Loss", {}) == "Loss: no point yet."


def test_compared_runs_differ_in_colour_and_dash() -> None:
    ids = [f"run{i}" for i in range(6)]
    curve = (np.arange(5), np.arange(5.0))
    drawn = charts.overlay(
        chart_table.LOSS, dict.fromkeys(ids, curve), {i: f"<b>{i}</b>" for i in ids}, smoothing=0.0, log=False
    )
    assert len({t.line.color for t in drawn.data}) == len({t.line.dash for t in drawn.data}) == 6
    assert all("<" not in t.name for t in drawn.data)


def test_outcomes_hold_each_run_against_the_baseline() -> None:
    curves = {
        "loss": {
            "a": (np.arange(3), np.array([0.7, 0.5, 0.4])),
            "b": (np.arange(3), np.array([0.7, 0.2, 0.3])),
        }
    }
    last, best = tables.outcomes(curves, {"a": "A", "b": "B"}, "a")
    assert last["A (baseline)"] == "0.4" and last["B"].startswith("0.3") and "better by 0.1" in last["B"]
    assert best["B"].startswith("0.2")


def test_a_score_is_held_against_scores_of_the_same_questions_only() -> None:
    def row(run_id: str, **params: str) -> RunRow:
        return RunRow(id=run_id, name=run_id, state="finished", params={"stage": "dpo", **params})

    rows = [row("a", probe="x"), row("b", probe="x"), row("c", probe="y"), row("d", probe="x", stage="sft")]
    curve = (np.arange(2), np.array([0.0, 0.9]))
    curves = {one.id: curve for one in rows}
    assert compare.asked_alike("loss", curves, rows, "a")[1] == []
    kept, others = compare.asked_alike("score", curves, rows, "a")
    assert (list(kept), others) == (["a", "b"], ["c", "d"])
    assert list(compare.asked_alike("score/after", curves, rows, "c")[0]) == ["c"]
    assert list(compare.asked_alike("score", {"c": curve}, rows, "a")[0]) == ["c"]
    told = tables.outcomes({"score": kept}, {one.id: one.name for one in rows}, "a")
    assert told[0]["c"] == words.NONE and told[0]["b"] == "90.0%"


def test_the_history_has_a_reward_where_a_run_has_one() -> None:
    rows = [
        RunRow(id=i, name=i, state="finished", metrics={name: 0.5})
        for i, name in (("a", "loss"), ("b", "reward"))
    ]
    assert "Reward" not in [column.name for column in tables.history_columns(rows[:1], {})]
    assert "Reward" in [column.name for column in tables.history_columns(rows, {})]
    cells = tables.history(rows, {})
    assert (cells["a"]["Reward"], cells["b"]["Reward"]) == (words.NONE, "0.5")


def test_only_what_measures_the_same_is_called_better_or_worse() -> None:
    def row(run_id: str, stage: str, **params: str) -> RunRow:
        return RunRow(id=run_id, name=run_id, state="finished", params={"stage": stage, **params})

    rows = [row("a", "sft"), row("b", "sft"), row("c", "dpo"), row("d", "grpo", reward_funcs="x")]
    rows += [row("e", "rloo", reward_funcs="x"), row("f", "rloo", reward_funcs="y")]
    assert compare.judged("loss", rows, "a") == compare.judged("eval_loss", rows, "a") == {"a", "b"}
    assert compare.judged("loss", rows, "d") == {"d"}  # about zero, however well it learns
    assert compare.judged("reward", rows, "d") == {"d", "e"}
    assert (
        compare.judged("rewards/contains/std", rows, "d") == compare.judged("reward_std", rows, "d") == {"d"}
    )
    assert len(compare.judged("grad_norm", rows, "a")) == len(rows)
    curves = {"loss": {i: (np.arange(1), np.array([v])) for i, v in (("a", 0.5), ("b", 0.4), ("c", 0.3))}}
    judged = {"loss": compare.judged("loss", rows, "a")}
    told = tables.outcomes(curves, {i: i for i in "abc"}, "a", judged=judged)[0]
    assert "better by 0.1" in told["b"] and told["c"] == "0.3"


def test_exact_match_is_not_called_a_score() -> None:
    def shown(measured: dict[str, object]) -> list[str]:
        charts = chart_table.charts_of("dpo", measured)
        return [chart.title for chart in chart_table.shown(charts, measured, ended=True)]

    none, some = (np.arange(2), np.zeros(2)), (np.arange(2), np.array([0.0, 0.1]))
    assert shown({"score": some, "score/correct": some}) == ["Score on held-out questions"]
    assert shown({"score": none, "score/correct": none}) == ["Score on held-out questions"]
    assert shown({"score": some}) == ["Held-out exact match"]
    assert shown({"score": none}) == []


def test_only_prompts_that_two_runs_were_asked_are_laid_side_by_side(home: Path) -> None:
    def told(run_id: str, *rows: tuple[int, str, str]) -> list[answers.Asked]:
        table = {"columns": ["step", "prompt", "expected", "answer"]}
        Run(run_id).folder.mkdir(parents=True)
        rows = [(step, prompt, "yes", said) for step, prompt, said in rows]
        (Run(run_id).folder / "samples.json").write_text(json.dumps(table | {"data": rows}))
        return answers.asked(Run(run_id))

    found = {
        "a": told("a", (0, "same?", "no"), (0, "own?", "no"), (9, "same?", "yes"), (9, "own?", "yes")),
        "b": told("b", (0, "same?", "nay"), (20, "same?", "yea")),
        "c": answers.asked(Run("c")),
    }
    together = answers.shared(found)
    [(same, runs)] = together.items()
    assert same[0] == "same?" and set(runs) == {"a", "b"}
    assert {i: (one.last, one.answers[one.last]) for i, one in runs.items()} == {
        "a": (9, "yes"),
        "b": (20, "yea"),
    }


def test_prompts_that_say_the_same_stay_apart_by_picture_and_by_place(home: Path) -> None:
    rows = [
        [step, "<image>Which?", "left", f"{name}{number} at {step}", [f"/d/{name}.png"]]
        for step in (0, 9)
        for number, name in enumerate(("a", "b", "b"))
    ]
    Run("r").folder.mkdir(parents=True)
    columns = ["step", "prompt", "expected", "answer", "pictures"]
    (Run("r").folder / "samples.json").write_text(json.dumps({"columns": columns, "data": rows}))
    found = answers.asked(Run("r"))
    assert [(one.pictures, one.number, one.answers[9]) for one in found] == [
        (("/d/a.png",), 0, "a0 at 9"),
        (("/d/b.png",), 0, "b1 at 9"),
        (("/d/b.png",), 1, "b2 at 9"),
    ]


@pytest.mark.parametrize(
    ("prompt", "turns"),
    [
        ("user\nWhat is red?\nassistant", [("user", "What is red?")]),
        ("system\nBe kind.\nuser\nHow?\n\nSo?\nassistant\nSo.\nuser\nAnd?\nmodel",
         [("system", "Be kind."), ("user", "How?\n\nSo?"), ("assistant", "So."), ("user", "And?")]),
        ("Human: hello\nAssistant:", [("user", "Human: hello\nAssistant:")]),
        ("", [("user", "")]),
    ],
)  # fmt: skip
def test_a_prompt_is_told_in_turns_where_its_template_names_who_speaks(
    prompt: str, turns: list[tuple[str, str]]
) -> None:
    assert [(t["role"], t["content"]) for t in answers.spoken(prompt)] == turns


def test_what_a_run_does_is_said_of_runs_that_do_not_train_too() -> None:
    told = {"model_name_or_path": "m", "stage": "sft", "dataset": ["a"], "eval_dataset": ["b"]}
    assert run_view.lead(told | {"do_train": True}) == "Fine-tuning of m on a"
    assert run_view.lead(told | {"do_predict": True}) == "Answers of m on b"
    assert run_view.lead(told | {"do_eval": True}) == "Evaluation of m on b"


# --- colours -------------------------------------------------------------------------------------------------------

# How people without one kind of cone see linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.
SIGHT = {
    "usual": np.eye(3),
    "no red cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(light: np.ndarray) -> np.ndarray:
    """Ottosson 2020: distances in it are about as far as they look."""
    to_cones = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
    to_lab = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
    return np.array(to_lab) @ np.cbrt(np.array(to_cones) @ np.clip(light, 0, 1))


@pytest.mark.parametrize("mode", theme.PALETTES)
@pytest.mark.parametrize("sight", SIGHT)
def test_series_stay_apart_for_every_kind_of_sight(mode: theme.Mode, sight: str) -> None:
    seen = [oklab(np.array(SIGHT[sight]) @ linear(c)) for c in theme.PALETTES[mode].series]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.07


def test_every_colour_of_a_chart_has_one_of_the_dark_mode() -> None:
    every = {"loss": (np.arange(9), np.arange(9.0)), "eval_loss": (np.arange(9), np.arange(9.0))}
    drawn = charts.figure(chart_table.LOSS, every, smoothing=0.6).to_json()
    assert set(re.findall(r"#[0-9a-f]{6}", drawn)) <= set(theme.dark())
    light, dark = theme.PALETTES["light"], theme.PALETTES["dark"]
    for part in (
        "ink",
        "quiet",
        "grid",
        "surface",
        "good",
        "bad",
    ):  # one colour, one part: nothing is turned twice
        assert theme.dark()[getattr(light, part)] == getattr(dark, part)
    assert tuple(map(theme.dark().get, light.series)) == dark.series


def test_the_theme_file_and_the_charts_have_the_same_colours() -> None:
    file = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    assert file["theme"]["font"] == file["theme"]["headingFont"] == theme.FONTS
    for mode, colours in theme.PALETTES.items():
        assert tuple(file["theme"][mode]["chartCategoricalColors"]) == colours.series
        assert file["theme"][mode]["textColor"] == colours.ink
    assert file["server"]["address"] == "127.0.0.1"
    assert file["server"]["enableStaticServing"]  # which serves static/ as app/static/
    assert all((ROOT / f["url"].removeprefix("app/")).is_file() for f in file["theme"]["fontFaces"])
    assert len(str(file["theme"])) < 8000  # it goes to every browser with each redraw of each piece


def test_a_run_that_writes_answers_is_counted_in_answers() -> None:
    def read_as(stage: str) -> tuple[str, int]:
        config = Config(stage=stage, cutoff_len=100, max_new_tokens=10, num_generations=4)
        return run_card.read_as(config)

    assert read_as("sft") == ("Examples", 100)
    assert read_as("grpo") == ("Answers", 140) and read_as("ppo") == ("Answers", 110)


def test_only_a_typed_name_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr(draft, "current", lambda: draft.Draft(start="", base={}))
    monkeypatch.setattr(draft, "keep", lambda changed: kept.append(changed.name))
    held = {"run-name:dpo-m-001": "dpo-m-001", "run-name:sft-m-001": " mine ", "run-name:": ""}
    monkeypatch.setattr("streamlit.session_state", held)
    for key in (*held, "run-name:gone"):
        run_card._renamed(key)
    assert kept == ["mine", ""]


def test_memory_has_its_parts_and_the_process_of_a_cpu_run() -> None:
    held = Memory(weights=400, adapters=0, gradients=30, optimizer=60, activations=500, logits=10)
    here, there = Plan(memory=held), Plan(memory=held, on_gpu=True)
    assert list(memory_bar.parts(there)) == ["Activations", "Weights", "Optimizer", "Gradients", "Logits"]
    assert memory_bar.needed(there) == 1000 and memory_bar.needed(here) == 1000 + memory_bar.PROCESS
    assert sum(memory_bar.parts(here).values()) == memory_bar.needed(here)
    assert memory_bar.told_apart({"a": 900, "b": 85, "c": 10, "d": 5}) == {"a": 900, "b": 85, "Other": 15}
    assert memory_bar.needed(Plan()) is None and memory_bar.parts(Plan()) == {}


def test_the_rare_parameters_are_found_among_the_advanced_ones() -> None:
    def found(search: str, *, advanced: bool) -> set[str]:
        return {
            k.name
            for ks in drawn.visible(draft.Draft(), advanced=advanced, search=search).values()
            for k in ks
        }

    rare = [n for n, k in KNOBS.items() if not k.shown]
    assert len(rare) > 90
    assert all(n in found(n, advanced=True) for n in rare if n not in drawn.ELSEWHERE)
    assert "adam_beta1" not in found("adam_beta1", advanced=False)
    changed = draft.Draft().with_value("adam_beta1", 0.8)
    assert "adam_beta1" in {k.name for ks in drawn.visible(changed, advanced=False).values() for k in ks}


@pytest.mark.slow  # a worker is started
def test_the_python_of_a_run_does_the_run(home: Path) -> None:
    tiny.model(home / "models" / "tiny")
    tiny.data(home / "data", rows=8)
    values = {"model_name_or_path": "models/tiny", "dataset": ["chat"], "stage": "sft", "do_train": True,
              "max_steps": 2, "cutoff_len": 64, "use_cpu": True, "learning_rate": 1e-3}  # fmt: skip
    file = home / "run.py"
    file.write_text(script(make(values), home))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    env.pop("TUNER_HOME", None)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (Run(folder.name) for folder in (home / "mlruns" / "runs").iterdir())
    assert run.status().state == "finished" and run.status().step == 2
    assert {n: run.values()[n] for n in values} == values


def test_the_python_of_a_run_has_its_values() -> None:
    config = make({"model_name_or_path": "a'b", "dataset": "d, e", "learning_rate": 1e-4, "stage": "sft"})
    space: dict[str, object] = {"__name__": "read"}
    text = script(config, Path("/a home"))
    before = os.environ.get("TUNER_HOME")
    exec(text, space)
    assert os.environ.get("TUNER_HOME") == (before or "/a home")
    if before is None:
        del os.environ["TUNER_HOME"]
    assert space["config"] == config


def test_an_axis_counts_what_a_step_comes_to() -> None:
    status = Status(step=120, first_step=20, epoch=1.5, tokens=24_000, trained_seconds=300.0)
    scale = axis.scale_of(status)
    assert (scale.of(axis.STEP), scale.of(axis.EPOCH), scale.of(axis.TOKENS)) == (1.0, 0.0125, 200.0)
    assert scale.of(axis.TIME) == pytest.approx(0.05)  # minutes
    assert axis.scale_of(Status()).of(axis.TOKENS) is None
    curves = {"a": (np.arange(3), np.arange(3.0)), "b": (np.arange(3), np.arange(3.0))}
    aligned = compare.aligned(curves, {"a": 2.0, "b": 10.0}, axis.TOKENS)
    assert aligned["a"][0].tolist() == [0, 2, 4] and aligned["b"][0].tolist() == [0, 10, 20]
    assert axis.titled(chart_table.LOSS, axis.TIME).axis == "minutes"


def test_a_clipped_chart_leaves_a_spike_out_of_its_axis() -> None:
    values = np.linspace(1.0, 0.5, 400)
    values[200] = 500.0
    curve = {"loss": (np.arange(400), values)}
    assert charts.figure(chart_table.LOSS, curve).layout.yaxis.range is None
    for log in (False, True):
        low, high = charts.figure(chart_table.LOSS, curve, clip=True, log=log).layout.yaxis.range
        assert low < (np.log10(0.5) if log else 0.5) < (0 if log else 1.0) < high < 2
    few = {"loss": (np.arange(3), np.array([1.0, 9.0, 1.0]))}
    assert charts.figure(chart_table.LOSS, few, clip=True).layout.yaxis.range is None


def test_a_score_is_told_before_and_after_where_there_is_one() -> None:
    scored = {"score/before": 0.01, "score/after": 0.92, "score/correct_before": 0.0, "score/correct": 0.9}
    assert what_next.gained(scored) == "Score 1.0% → 92%"
    assert what_next.gained({"score/before": 0.01}) == ""


def test_the_best_score_is_one_of_questions_not_of_letters() -> None:
    def row(run_id: str, **metrics: float) -> RunRow:
        return RunRow(id=run_id, name=run_id, state="finished", metrics=metrics)

    scored = {"score/correct_after": 0.5}
    rows = [row("b", **{"score/after": 0.9}), row("d", **{"score/after": 0.7}, **scored)]
    rows.append(row("c", **{"score/after": 0.6}, **scored))
    best = home.best_score(rows)
    assert best is not None and best.id == "d" and home.best_score(rows[:1]) is None


def test_who_was_away_is_told_what_happened_since() -> None:
    assert not visits.away(0.0) and not visits.away(1000.0, now=1000.0 + 60)
    assert visits.away(1000.0, now=1000.0 + visits.AGAIN + 1)


def swept(count: int = 4) -> list[RunRow]:
    return [
        RunRow(
            id=f"{i:032x}",
            name=f"run {i}",
            state="finished",
            params={
                "learning_rate": str(10.0**-i),
                "lr_scheduler_type": "cosine" if i % 2 else "linear",
                "seed": "1",
            },
            metrics={"loss": 0.5 + i / 10},
        )
        for i in range(2, 2 + count)
    ]


def test_a_sweep_is_drawn_by_parameter_and_by_run() -> None:
    rows = swept()
    by = {one.name: one for one in sweeps.varied(rows)}
    assert set(by) == {"learning_rate", "lr_scheduler_type"}
    assert by["lr_scheduler_type"].words == ("cosine", "linear")
    points = sweeps.scatter(by["learning_rate"], rows, "loss", chart_table.LOSS)
    assert points.layout.xaxis.type == "log" and list(points.data[0].y) == [0.7, 0.8, 0.9, 1.0]
    lines = sweeps.parallel(list(by.values()), rows, "loss", chart_table.LOSS)
    assert [d.label for d in lines.data[0].dimensions] == ["Learning rate", "LR scheduler type", "Loss"]
    assert set(re.findall(r"#[0-9a-f]{6}", lines.to_json())) <= set(theme.dark())


def test_runs_differ_in_data_by_rows_or_hash(home: Path) -> None:
    rows, names = [], {}
    for run_id, digest in (("a" * 32, "1111aaaa"), ("b" * 32, "2222bbbb")):
        run = Run(run_id)
        run.folder.mkdir(parents=True)
        same = inputs.InputRow("same", "s", "33333333", rows=5)
        inputs.record_inputs(run, [inputs.InputRow("pairs", "p", digest * 4, rows=10), same])
        rows.append(RunRow(id=run_id, name=run_id[0], state="finished", local=True))
        names[run_id] = run_id[0]
    (differ,) = tables.data(rows, names)
    assert differ == {"Data set": "pairs", "a": "10 rows · 1111aaaa", "b": "10 rows · 2222bbbb"}


def test_curves_as_a_table_do_no_harm_in_a_spreadsheet() -> None:
    curve = (np.array([1, 5]), np.array([0.5, 0.25]))
    told = charts.as_csv({"a": curve}, {"a": '=cmd|"x"'}, "loss").splitlines()
    assert told[0] == "run,step,loss" and told[2].endswith(",5,0.25") and told[1].startswith("\"'=cmd")


def test_a_report_is_in_the_language_of_the_page_that_offers_it() -> None:
    with ThreadPoolExecutor(1) as pool:  # as a download is made: in a thread without a session
        there = pool.submit(report_html.report, "x", {}, {"a": [{"Run": "r"}]}, "zh_CN").result()
    assert '<html lang="zh">' in there and "<th>Run</th>" not in there


def test_a_report_is_one_file_that_asks_for_nothing() -> None:
    curves = {"a": (np.arange(5), np.arange(5.0))}
    figure = charts.overlay(chart_table.LOSS, curves, {"a": "</script><b>bold"}, smoothing=0.0, log=False)
    said = report_html.report(
        "<i>x</i>", {"Loss": figure}, {"Cost": [{"Run": "<img src=x>"}], "Left out": []}, "en"
    )
    assert "<i>" not in said and "<img src=x>" not in said and "</script><b>" not in said
    assert "&lt;img src=x&gt;" in said and "Left out" not in said
    outside = re.sub(r"<script[^>]*>.*?</script>", "", said, flags=re.DOTALL)
    assert not re.findall(r"<[^>]*\b(?:src|href)=", outside) and not re.findall(
        r"<script[^>]*src=", said[:5000]
    )
    assert said.count("Plotly.newPlot(") >= 1 and len(said) > 1_000_000  # the library is in it
