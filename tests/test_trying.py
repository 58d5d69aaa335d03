"""What would be rewarded: the evaluation that a page starts before launch, and what is said of what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from streamlit.testing.v1 import AppTest

from tuner.config.config import Config, make
from tuner.config.knobs import ConfigError
from tuner.data import verbs
from tuner.runs.run import Run
from tuner.ui import trying, writes
from tuner.ui.evaluation import title


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    tiny.model(tmp_path / "model")
    tiny.data(tmp_path / "data", rows=4)
    rewards = [{"contains": {"text": "yes"}}, "equals_label"]
    values = {
        "model_name_or_path": "model",
        "dataset": "chat",
        "stage": "grpo",
        "do_train": True,
        "max_steps": 3,
    }
    return make({**values, "reward_funcs": rewards, "reward_weights": [0.5, 2], "learning_rate": 1e-3})


def test_it_asks_as_the_run_would(config: Config) -> None:
    asked = trying.asking(config.with_values(temperature=0.7))
    assert asked.reward_funcs == (
        {"contains": {"text": "yes", "weight": 0.5}},
        {"equals_label": {"weight": 2.0}},
    )
    assert (asked.max_samples, asked.measured(), asked.perplexity) == (32, ("base",), False)
    assert (asked.do_sample, asked.temperature, asked.top_p, asked.top_k) == (True, 0.7, 1.0, 0)
    assert (asked.max_new_tokens, asked.dataset) == (512, ("chat",))
    with pytest.raises(ConfigError, match="no adapter's folder"):
        trying.asking(config.with_values(adapter_name_or_path=["absent folder"]))


def test_data_is_looked_at_as_the_run_will_see_it(config: Config) -> None:
    shown = verbs.show("chat", 0, "model", stage="grpo")
    assert list(shown["sides"]) == ["prompt"] and not any(t["trained"] for t in shown["sides"]["prompt"])
    found = verbs.report("chat", "model", stage="grpo")
    assert (found["kept"], found["labelled"], found["trained_tokens"]) == (4, 4, 0)


def test_a_page_launches_no_code(config: Config) -> None:
    own = config.with_values(reward_funcs=["my_rewards:politeness"], reward_weights=())
    with pytest.raises(ConfigError, match="is code, and a page runs none; launch this config from a shell"):
        writes.submit(own)
    with pytest.raises(ConfigError, match="a page runs none"):
        writes.sweep({**own.changed(), "learning_rate": "1e-4,1e-5"})
    with pytest.raises(ConfigError, match="a page runs none"):
        writes.submit(trying.asking(own))


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([None, None], "No reward scored any of 2 answers"),
        ([0.5, 0.5, None], "All 2 answers got the same reward, 0.5: there is nothing to learn"),
        ([0.0, 1.0, 0.9], "Of 3 answers 2 got more than half of what there is between 0 and 1"),
    ],
)
def test_what_is_said_of_rewards(rewards: list[float | None], said: str) -> None:
    assert str(trying.verdict(rewards)).startswith(said)


def test_rows_are_shown_best_first(config: Config) -> None:
    run = Run("tried")
    run.create(trying.asking(config), "tried")
    folder = run.folder / "output" / "base"
    folder.mkdir(parents=True)
    rows = [
        {"row": n, "prompt": f"user\nhow\nassistant\nso\nuser\n{n}\nassistant\n", "predict": "a", "label": "b",
         "reward": reward, "rewards": {"contains": reward}}
        for n, reward in enumerate((0.0, 1.0, None))
    ]  # fmt: skip
    (folder / "generated_predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {
        "reward": 0.5,
        "reward_std": 0.5,
        "rewards/contains/mean": 0.5,
        "rewards/equals_label/mean": 0.0,
    }
    told = {"versions": [{"label": "base", "folder": "base", "metrics": metrics}]}
    (run.folder / "output" / "evaluation.json").write_text(json.dumps(told))
    found = trying.answers(run)
    assert [row["Reward"] for row in found] == [1.0, 0.0, None]
    assert found[0] == {"Reward": 1.0, "Answer": "a", "Prompt": "1", "contains": 1.0, "Expected": "b"}
    assert trying.figures(run) == {"Reward": "0.5", "Spread": "0.5", "contains": "0.5", "equals\\_label": "0"}
    assert title("rewards/contains/std") == "contains, spread"


def test_the_card_tells_a_step_in_two_parts() -> None:
    def card() -> None:
        from tuner.plan.plan import Plan
        from tuner.ui import run_card

        run_card._needs(Plan(writing=4.0, learning=1.5))

    said = AppTest.from_function(card).run().caption[0].value
    assert said == "A step: ≈ 4.0 s to write answers, ≈ 1.5 s to learn from them."
