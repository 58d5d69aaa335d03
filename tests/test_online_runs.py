"""Runs that learn from rewards: they get better at what is rewarded, stop, go on, and leave what a page shows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_stages import trained
from transformers import TrainingArguments

from tuner.config.config import Config, check, make
from tuner.config.knobs import ConfigError
from tuner.config.reading import read
from tuner.data import tokenized_cache
from tuner.data.tokens import load_tokenizer
from tuner.engine.live import LiveRun
from tuner.engine.online.rollouts import Writer
from tuner.engine.trainer import arguments
from tuner.jobs import planning
from tuner.plan import preflight
from tuner.plan.schedule import Schedule
from tuner.runs.run import Run, series


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        tiny.model(home / "model", hidden=64)
        tiny.data(home / "data")
        yield home


def config_of(stage: str, **changes: Any) -> Config:
    values = {
        "model_name_or_path": "model",
        "stage": stage,
        "do_train": True,
        "dataset": "chat",
        "dataset_dir": "data",
        "max_steps": 6,
        "per_device_train_batch_size": 16,
        "num_generations": 8,
        "learning_rate": 2e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_new_tokens": 6,
        "reward_funcs": [{"contains": {"text": "e"}}],
    }
    return make(values | changes)


def curve(live: LiveRun, name: str) -> list[float]:
    return series(live.run.metrics()[0], name)[1]


def test_grpo_learns_what_is_rewarded_and_leaves_its_answers(studio: Path) -> None:
    config = config_of("grpo", max_steps=30, val_size=4)
    live, outcome = trained(config, "learns")
    rewards = curve(live, "reward")
    assert sum(rewards[-5:]) / 5 > 0.9 > 0.7 > sum(rewards[:3]) / 3, rewards
    assert curve(live, "score/after")[0] > curve(live, "score/before")[0]
    assert outcome.metrics["eval_reward"] == curve(live, "score/after")[0]
    assert (outcome.weights / "adapter_model.safetensors").is_file()
    lines = [json.loads(line) for line in (live.run.folder / "rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [step for step in range(1, 31) for _ in range(2)]
    for line in lines:
        assert len(line["answers"]) == 8 and line["label"]
        got = [answer["reward"] for answer in line["answers"]]
        assert got == [float("e" in answer["text"]) for answer in line["answers"]]
        assert abs(sum(answer["advantage"] for answer in line["answers"])) < 1e-4
    whole = [answer["reward"] for line in lines[:2] for answer in line["answers"]]
    assert rewards[0] == pytest.approx(sum(whole) / 16)
    for name in ("frac_reward_zero_std", "entropy", "step_time/rollout", "rewards/contains/mean"):
        assert len(curve(live, name)) == 30


CASES = {
    "stale": ("grpo", {"num_iterations": 2, "epsilon": 0.1}),
    "held": ("rloo", {"beta": 0.05, "num_iterations": 3}),
    "whole": ("grpo", {"finetuning_type": "full", "learning_rate": 1e-3, "beta": 0.1, "steps_per_generation": 2,
                       "per_device_train_batch_size": 8}),
    "padded": ("grpo", {"engine": "trl", "beta": 0.05, "num_iterations": 2}),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "stale" else [pytest.mark.slow]) for n in CASES]
)
def test_a_run_that_goes_on_gets_the_rewards_that_it_would_have_got(studio: Path, name: str) -> None:
    stage, changes = CASES[name]
    config = config_of(stage, save_strategy="steps", save_steps=3, **changes)
    whole, _ = trained(config, f"{name}-whole")

    class Stopped(type(whole)):  # type: ignore[misc]
        def stepped(self, step: int, *rest: Any, **more: Any) -> None:
            super().stepped(step, *rest, **more)
            if step == 3:
                self.run.request("stop")

    class Killed(type(whole)):  # type: ignore[misc]
        def stepped(self, step: int, *rest: Any, **more: Any) -> None:
            super().stepped(step, *rest, **more)
            if step == 5:  # two steps behind its checkpoint
                raise KeyboardInterrupt

    if name == "stale":
        with pytest.raises(KeyboardInterrupt):
            trained(config, f"{name}-parts", Killed)
    else:
        first, outcome = trained(config, f"{name}-parts", Stopped)
        assert outcome.stopped
        first.run.forget_requests()
    again, outcome = trained(config, f"{name}-parts")
    assert not outcome.stopped
    for metric in ("reward", "loss", "completions/mean_length"):
        assert curve(again, metric) == curve(whole, metric)
    both = [(live.run.folder / "rollouts.jsonl").read_text() for live in (again, whole)]
    assert both[0] == both[1]


@pytest.mark.slow
def test_a_run_whose_process_was_killed_gets_the_rewards_that_it_would_have_got(studio: Path) -> None:
    config = config_of(
        "grpo", max_steps=12, num_iterations=3, save_strategy="steps", save_steps=4, use_cpu=True
    )
    whole, _ = trained(config, "never-killed")
    run = Run("killed")
    run.create(config, "killed")
    worker = subprocess.Popen([sys.executable, "-m", "tuner.worker", "killed"], stdout=subprocess.DEVNULL)
    while run.status().step < 6:
        assert worker.poll() is None
        time.sleep(0.01)
    worker.kill()
    worker.wait()
    assert run.status().step < 12
    again, _ = trained(config, "killed")
    for metric in ("reward", "loss", "completions/mean_length"):
        assert curve(again, metric) == curve(whole, metric)
    both = [(live.run.folder / "rollouts.jsonl").read_text() for live in (again, whole)]
    assert both[0] == both[1]


def test_a_run_that_goes_on_with_another_number_of_answers_writes_new_ones(studio: Path) -> None:
    """Its checkpoint holds answers that are half learnt from; they are not as many as it would have written."""
    config = config_of("grpo", num_iterations=2, save_strategy="steps", save_steps=1, max_steps=1)
    first, _ = trained(config, "eight")
    begun = str(first.run.checkpoints / "checkpoint-1")
    other = config.with_values(num_generations=4, max_steps=3, resume_from_checkpoint=begun)
    trained(other, "four")
    lines = [json.loads(line) for line in (Run("four").folder / "rollouts.jsonl").read_text().splitlines()]
    assert [(line["step"], len(line["answers"])) for line in lines] == [(2, 4)] * 4 + [(3, 4)] * 4


def test_a_constant_reward_teaches_nothing_and_the_best_checkpoint_is_by_reward(studio: Path) -> None:
    same = {"reward_funcs": [{"length": {"most": 99}}], "val_size": 4, "max_steps": 4}
    kept = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    live, outcome = trained(config_of("grpo", load_best_model_at_end=True, **same, **kept), "constant")
    assert curve(live, "frac_reward_zero_std") == [1.0] * 4
    assert curve(live, "loss") == [0.0] * 4 == curve(live, "grad_norm")
    assert all(value > 1 for value in curve(live, "entropy"))  # measured all the same
    assert curve(live, "eval_reward")[:2] == [1.0, 1.0]
    for name, more in (
        ("held", {}),
        ("held-whole", {"finetuning_type": "full"}),
    ):  # of rounding Adam would make whole steps
        held, _ = trained(config_of("grpo", beta=0.5, **same, **more), name)
        assert curve(held, "grad_norm") == [0.0] * 4 and max(map(abs, curve(held, "kl"))) < 1e-6
    measured, outcome = trained(config_of("grpo", do_train=False, do_eval=True, **same), "only measured")
    assert outcome.weights is None and outcome.metrics["eval_reward"] == 1.0


def test_what_is_said_of_the_end_is_said_of_the_best_checkpoint(studio: Path) -> None:
    """The worst one counts as the best here, for it is sure to be another one than the last."""
    config = config_of(
        "grpo", max_steps=12, val_size=4, eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4,
        load_best_model_at_end=True, greater_is_better=False,
    )  # fmt: skip
    live, outcome = trained(config, "best-at-end")
    rows = live.run.metrics()[0]
    measured = [row["eval_reward"] for row in rows if "eval_reward" in row]
    assert min(measured[:3]) < measured[2]  # the weights of the last step are others than the best
    assert curve(live, "score/after")[0] == outcome.metrics["eval_reward"] == min(measured[:3])


def test_a_reward_that_looks_at_labels_is_refused_where_no_row_has_one(studio: Path) -> None:
    config = config_of("grpo", dataset="text", reward_funcs=["equals_label", {"contains": {"text": "e"}}])
    with pytest.raises(ConfigError, match="equals_label holds answers against the one that a row expects"):
        trained(config, "no-labels")


def test_each_set_is_measured_by_itself_and_one_of_them_can_say_what_is_best(studio: Path) -> None:
    """A rate that falls when nothing gets better knows that more reward is better."""
    config = config_of(
        "grpo", max_steps=2, eval_dataset="chat,pairs", eval_on_each_dataset=True, probe_samples=2, eval_strategy="steps",
        eval_steps=1, metric_for_best_model="eval_pairs_reward", lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0}, reward_funcs=[{"contains": {"text": "e"}}, {"regex": {"column": "level"}}],
    )  # fmt: skip
    assert not check(config.changed())[1]
    live, outcome = trained(config, "each-set")
    both = [curve(live, f"eval_{name}_reward")[-1] for name in ("chat", "pairs")]
    assert curve(live, "score/after")[0] == pytest.approx(sum(both) / 2)
    measured = outcome.metrics.keys()  # a reward that said nothing has no mean
    assert "eval_chat_rewards/contains/mean" in measured and "eval_chat_rewards/regex/mean" not in measured
    assert outcome.metrics["eval_pairs_reward"] == both[1] and "eval_reward" not in outcome.metrics
    args = arguments(TrainingArguments, config, live, planning.planned(config))
    assert args.lr_scheduler_kwargs == {"mode": "max", "patience": 0} and args.greater_is_better
    said = check(config.changed() | {"metric_for_best_model": "eval_pairs_loss"})[1]
    assert [p.mend for p in said] == [{"metric_for_best_model": "eval_pairs_reward"}]


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_another_model_can_be_the_reference(studio: Path, stage: str) -> None:
    """The model itself, named as another one, is no distance away at the first step, whatever the temperature."""
    config = config_of(
        stage, ref_model="model", beta=0.1 if stage == "grpo" else 0.0, temperature=0.7, max_steps=1, num_generations=2,
        per_device_train_batch_size=2,
    )  # fmt: skip
    live, _ = trained(config, f"another-{stage}")
    assert curve(live, "kl")[0] == pytest.approx(0, abs=1e-5)


def test_a_kept_writer_writes_with_the_weights_as_they_are(studio: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(studio / "model", dtype=torch.float32)
    model = get_peft_model(plain, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    words, config = load_tokenizer(studio / "model"), config_of("grpo")
    kept, prompts = Writer(model, words, (), config), [[5, 270, 280], [5, 300], [5, 270, 280]]
    before = [answer.ids for answer in kept.answers(prompts, [1, 2, 3])]
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn_like(p)
    after = [answer.ids for answer in kept.answers(prompts, [1, 2, 3])]
    assert after != before
    assert after == [answer.ids for answer in Writer(model, words, (), config).answers(prompts, [1, 2, 3])]
    assert len(set(map(tuple, after))) == 3


def test_what_does_not_come_out_even_is_said_before_launch(studio: Path) -> None:
    def said(**changes: Any) -> str:
        return " ".join(p.sentence for p in preflight.problems(config_of("grpo", **changes)))

    assert not said()
    assert "12 answers are written at once" in said(per_device_train_batch_size=12)
    assert "--per_device_train_batch_size 16" in said(per_device_train_batch_size=12)
    assert "no multiple of --gradient_accumulation_steps 4" in said(
        gradient_accumulation_steps=4, steps_per_generation=6
    )
    assert "takes 40 prompts, and there are 16" in said(per_device_train_batch_size=320)
    assert "12 answers are written at once (--per_device_train_batch_size 6 times 2)" in said(
        per_device_train_batch_size=6, nproc_per_node=2
    )
    assert "needs the whole model in each process" in said(nproc_per_node=2, fsdp="full_shard")
    assert "--bf16 True" in said(fp16=True)
    with pytest.raises(ConfigError, match="takes 16 prompts, and there are 12"):
        trained(config_of("grpo", per_device_train_batch_size=128, val_size=4), "too few")


def test_a_plan_counts_steps_and_the_memory_of_writing(studio: Path) -> None:
    config = config_of(
        "grpo", max_steps=-1, num_train_epochs=2.0, num_iterations=2, per_device_train_batch_size=8
    )
    made = planning.planned(config)
    live, _ = trained(config, "planned")
    assert made.steps == live.run.status().total_steps == 2 * 16 * 2
    assert made.engine == "packed" and planning.planned(config_of("grpo", engine="trl")).engine == "padded"
    longest = made.data.lengths.longest
    # two layers, two key heads of 16 numbers, keys and values, four bytes each
    assert made.memory.cache == 8 * (longest + 6) * 2 * 2 * 2 * 16 * 4
    scored = planning.planned(config_of("grpo", reward_model="scorer"))
    assert scored.memory.weights > 1.7 * made.memory.weights
    rounds = config_of(
        "ppo", max_steps=-1, num_train_epochs=3.0, per_device_train_batch_size=4, ppo_buffer_size=2
    )
    assert planning.planned(rounds).steps == 6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_recipe_learns_what_is_rewarded_with_any_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    data = Path(__file__).parents[1] / "data"
    places = {"model_name_or_path": str(data / "starter"), "dataset_dir": str(data), "seed": seed}
    began = time.process_time()
    live, _ = trained(make(read("starter-grpo") | places), "recipe")
    rewards = curve(live, "reward")
    assert sum(rewards[:3]) / 3 < 0.4 and sum(rewards[-8:]) / 8 > 0.9, rewards
    assert 0.2 < curve(live, "score/before")[0] < 0.45
    assert curve(live, "score/after")[0] > 0.9
    assert time.process_time() - began < 180


def test_the_schedule_is_that_of_trl() -> None:
    s = Schedule(rows=7, answers=2, batch=4, written=2, accumulation=1, iterations=2, shuffled=False)
    assert (s.prompts, s.updates, s.generations, s.on_policy) == (4, 4, 1, False)
    assert s.chosen(0).tolist() == s.chosen(5).tolist() == [0, 1, 2, 3]
    order = s.mixed(0)
    assert sorted(order.tolist()) == list(range(8))
    parts = [s.micro_batches(order, update).tolist() for update in range(4)]
    assert parts[0] == parts[2] == [order[:4].tolist()] and parts[1] == parts[3] == [order[4:].tolist()]
    shuffled = Schedule(rows=8, answers=2, batch=8, written=1, accumulation=1)
    first, second = shuffled.chosen(0).tolist(), shuffled.chosen(1).tolist()
    assert sorted(first + second) == list(range(8))  # every prompt once an epoch
    assert shuffled.chosen(2).tolist() != first
    two = Schedule.of(config_of("grpo", nproc_per_node=2, gradient_accumulation_steps=2, data_seed=7), 64)
    assert (two.batch, two.written, two.accumulation, two.prompts) == (16, 4, 4, 8)
    assert (two.seed, two.drawn) == (
        7,
        42,
    )  # the order of the data has a seed of its own; the answers' chance has not
    assert len({shuffled.seed_of(g, r, k) for g in range(3) for r in range(3) for k in range(3)}) == 27


def test_prompts_on_disk_are_the_prompts_that_were_written_there(tmp_path: Path) -> None:
    """Rows with and without labels, with tools and columns of any kind, in any order."""
    tools = [{"name": name, "parameters": {"properties": {name: {"type": "string"}}}} for name in "ab"]
    asked = [
        {"messages": [{"role": "user", "content": "q"}], "label": None, "columns": {}},
        {"messages": [], "label": "a", "columns": {"level": 3}, "tools": tools[:1]},
        {"messages": [], "label": "a", "columns": {"level": "high", "more": [1]}, "tools": tools[1:]},
    ]
    rows = [{"prompt_ids": [n], "asked": asked[0 if n < 1000 else n - 999]} for n in range(1002)]
    folder = tmp_path / "rows"
    tokenized_cache.write(folder, {"train": rows}, {})
    found, _, _ = tokenized_cache.read(folder, config_of("grpo"))
    assert list(found) == rows
    with pytest.raises(ConfigError, match="holds rows for stage grpo or rloo or ppo, and this run is sft"):
        tokenized_cache.read(folder, config_of("sft", reward_funcs=()))
    with pytest.raises(ConfigError, match="holds rows for stage grpo or rloo or ppo, and this run is decide"):
        tokenized_cache.read(folder, config_of("decide", reward_funcs=()))
