"""A run that learns from rewards, as its page shows it: rollouts, whether they teach anything, its charts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.config.kinds import KINDS, REWARDED
from tuner.runs.run import Run
from tuner.ui import chart_table, charts, reward_charts, rollouts, tables
from tuner.ui.chart_table import HELD_REWARD, charts_of


def group(*rewards: float | None, step: int = 1) -> str:
    answers = [
        {"text": f"answer {n}", "reward": reward, "parts": {"contains": reward, "length": None}, "advantage": 0.5,
         "tokens": 3, "finished": n > 0}
        for n, reward in enumerate(rewards)
    ]  # fmt: skip
    return json.dumps({"step": step, "prompt": "Who?", "label": None, "answers": answers})


def test_the_best_answer_of_a_prompt_stands_first() -> None:
    lines = [group(0.0, 1.0, None, 0.5), group(1.0, 1.0, step=2), '{"step": 3, "prompt": "cut o']
    first, second = rollouts.groups_of(lines)
    assert [one["reward"] for one in first.answers] == [1.0, 0.5, 0.0, None]
    assert first.differs and not second.differs and (first.label, second.step) == ("", 2)
    assert rollouts.told(first.answers[0]) == "contains 1, length – · advantage 0.5 · 3 tokens"
    assert rollouts.told(first.answers[2]) == "contains 0, length – · advantage 0.5 · 3 tokens, truncated"


@pytest.mark.parametrize(
    ("alike", "reward", "said"),
    [
        ([1, 1], [0, 0], ""),
        ([1, 1, 1], [0, 0, 0], "Nothing to learn: in the last 3 logged steps all answers to each prompt got the same reward"),
        ([0.2] * 5 + [1.0] * 10, [0.1] * 5 + [0.5] * 10 + [0.1], "Nothing to learn: in the last 10 logged steps"),
        ([0.2] * 5 + [1.0] * 10, [0.1] * 5 + [0.9] * 10, "Nothing left to learn: in the last 10 logged steps"),
        ([0.2] * 5 + [0.9] * 10, [0.1] * 5 + [0.97, 1, 0.97, 0.98, 0.99] * 2, ""),
        ([0.2, 0.9, 0.9, 0.9, 1.0], [0.1] * 5, ""),
        ([0.9, 0.9, 0.8, 1.0], [0.1] * 4, "Little to learn: in 90% of the groups of the last 4 logged steps"),
        ([1, 1, 1, 0.5], [0.1] * 4, "Little to learn"),
        ([0, 0, 0], [0.1] * 3, ""),
    ],
)  # fmt: skip
def test_a_run_without_signal_is_told(alike: list[float], reward: list[float], said: str) -> None:
    found = str(rollouts.signal(np.array(alike), np.array(reward)))
    assert found.startswith(said) and bool(found) == bool(said)


def test_what_to_do_depends_on_how_high_the_reward_is() -> None:
    won = str(rollouts.signal(np.ones(3), np.array([0.1, 0.9, 0.9, 0.9])))
    assert won.startswith("Nothing left to learn") and "End the run, or give it harder prompts." in won
    lost = str(rollouts.signal(np.ones(4), np.zeros(4)))
    assert "raise temperature or num_generations, or teach the behaviour first with some steps of sft" in lost
    alone = str(rollouts.signal(np.ones(4), np.zeros(4), grouped=False))
    assert "all answers got the same reward" in alone and "raise temperature, or teach" in alone
    assert not rollouts.signal(np.array([1, 1, 1, 0.0]), np.zeros(4), grouped=False)


def test_each_part_of_the_reward_has_a_line() -> None:
    measured = [
        "reward",
        "rewards/length/mean",
        "rewards/length/std",
        "rewards/contains/mean",
        "rewards/chosen",
    ]
    one = (np.arange(1), np.ones(1))
    for stage in REWARDED:
        chart = next(one for one in charts_of(stage, measured) if one.key == "reward-parts")
        assert [line.label for line in chart.lines] == ["contains", "length"]
        assert chart_table.latest(chart, dict.fromkeys((line.metric for line in chart.lines), one)) == ""
        assert charts_of(stage)[0] is reward_charts.REWARD and HELD_REWARD in charts_of(stage, ["score"])
    assert all(one.key != "reward-parts" for one in charts_of("dpo", measured))
    assert KINDS["ppo"].charts.count("signal") == 0


def test_the_spread_is_a_band_about_the_reward() -> None:
    steps = np.arange(1, 5)
    measured = {
        "reward": (steps, np.array([0.0, 0.5, 0.5, 1.0])),
        "reward_std": (steps, np.array([0.2, 0.4, 0.4, 0.0])),
    }
    band, line = charts.figure(reward_charts.REWARD, measured).data
    assert list(band.y[:4]) == pytest.approx([0.2, 0.9, 0.9, 1.0]) and list(band.y[4:]) == pytest.approx(
        [1.0, 0.1, 0.1, -0.2]
    )
    assert band.fill == "toself" and not band.showlegend and line.name == "train"


def test_only_such_runs_have_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    from tuner.config.config import make

    def run(name: str, **values: Any) -> Run:
        made = Run(name)
        made.create(make({"model_name_or_path": "m", "dataset": "d", **values}), name)
        return made

    learning = run("learning", stage="rloo", reward_funcs=["json_valid"])
    assert rollouts.has_rollouts(learning) and not rollouts.has_rollouts(run("other", stage="sft"))
    learning.update(state="failed")
    assert not rollouts.has_rollouts(learning)
    (learning.folder / rollouts.FILE).write_text(group(1.0) + "\n")
    assert rollouts.has_rollouts(learning)


def test_compared_rewards_are_no_percentages() -> None:
    metrics = ["loss", "reward", "rewards/contains/mean", "score"]
    assert (
        chart_table.score_chart(metrics) == HELD_REWARD == chart_table.of_metric("score", score=HELD_REWARD)
    )
    assert chart_table.score_chart(["score"]) is chart_table.EXACT
    assert chart_table.of_metric("rewards/contains/mean").title == "Reward, contains"
    assert (
        chart_table.of_metric("rewards/chosen").title != "Reward, chosen"
        and chart_table.of_metric("kl").key == "kl"
    )
    assert tables.lower_is_better("frac_reward_zero_std") and not tables.lower_is_better("reward")
