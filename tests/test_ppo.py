"""PPO by hand, as a run, and with a reward model of the studio's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_online_runs import config_of, curve, studio  # noqa: F401  a fixture
from test_stages import trained
from tiny_packed import CPU, build

from tuner.config.config import make
from tuner.config.reading import read
from tuner.engine.online import scoring
from tuner.engine.online.experience import BY_BATCH, Experience
from tuner.engine.online.padded_policy import PaddedPolicy
from tuner.engine.online.ppo import PpoObjective, RunningSpread, finished, round_of, token_rewards, value_loss
from tuner.engine.packed.steps import StepRunner
from tuner.engine.packed.units import Unit
from tuner.runs.run import series


def close(*values: float) -> Any:
    return pytest.approx(list(values), abs=1e-6)


def test_a_round_by_hand() -> None:
    logps = [torch.tensor([-1.0, -2.0]), torch.tensor([-0.5])]
    reference = [torch.tensor([-1.5, -1.0]), torch.tensor([-0.5])]
    values = [torch.tensor([0.5, 1.0]), torch.tensor([0.25])]
    assert token_rewards(1.0, logps[0], reference[0], 0.2).tolist() == close(-0.1, 1.2)
    found = round_of([1.0, 0.0], logps, reference, values, weight=0.2, whiten=False)
    # the second token: 1.2 - 1 = 0.2; the first: -0.1 + 1 - 0.5 + 0.95 * 0.2 = 0.59; the other answer's: 0 - 0.25
    better = [0.59, 0.2, -0.25]
    assert torch.cat(found.returns).tolist() == close(0.59 + 0.5, 0.2 + 1.0, 0.0)
    mean, spread = np.mean(better), np.std(better)
    assert torch.cat(found.advantages).tolist() == close(*((x - mean) / spread for x in better))
    assert found.distance == pytest.approx((0.5 - 1.0 + 0.0) / 2)
    # whitened, rewards -0.1, 1.2, 0 keep their mean, and their spread becomes 1
    white = round_of([1.0, 0.0], logps, reference, values, weight=0.2, whiten=True)
    rewards = np.array([-0.1, 1.2, 0.0])
    scaled = (rewards - rewards.mean()) / rewards.std() + rewards.mean()
    last = scaled[1] - 1.0
    first = scaled[0] + 1.0 - 0.5 + 0.95 * last
    assert torch.cat(white.returns).tolist() == close(first + 0.5, last + 1.0, scaled[2])


def test_values_are_clipped_and_scores_normed_by_hand() -> None:
    loss = value_loss(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.0]))
    assert loss.tolist() == close(
        0.5 * 0.8**2, 0.5 * 0.25
    )  # the value that moved by 1 counts as one that moved by 0.2
    spread = RunningSpread()
    first = spread.norm(torch.tensor([1.0, 3.0]))
    assert first.tolist() == close(-1 / math.sqrt(2), 1 / math.sqrt(2))  # mean 2, variance 2 with n - 1
    second = spread.norm(torch.tensor([4.0]))
    assert (spread.mean, spread.count) == (pytest.approx(8 / 3), pytest.approx(3))
    assert second.tolist() == close((4 - 8 / 3) / np.std([1, 3, 4], ddof=1))


def test_a_step_has_the_loss_and_gradients_of_its_definition() -> None:
    chance = np.random.default_rng(1)
    ids = lambda n: chance.integers(2, 199, n).astype(np.int32)  # noqa: E731
    prompts, answers = [ids(4), ids(7)], [ids(3), ids(6)]
    torch.manual_seed(0)
    model, head = build(), torch.nn.Linear(48, 1)
    policy, objective = PaddedPolicy(model, value_head=head), PpoObjective()
    runner = StepRunner(policy, objective, CPU, 1000, graphs=False)
    learnt = Experience(prompts, answers, np.ones(2, np.bool_), np.arange(2))
    scores = scoring.token_scores(runner, learnt, 1000)
    shift = [chance.normal(0, 0.5, len(a)).astype(np.float32) for a in answers]
    old = [s[0] - d for s, d in zip(scores, shift, strict=True)]  # ratios on both sides of the clipping
    advantages, wanted = ([chance.normal(size=len(a)).astype(np.float32) for a in answers] for _ in range(2))
    values = [s[3] + chance.normal(0, 0.3, len(s[3])).astype(np.float32) for s in scores]
    weights = learnt.weights(np.arange(2).reshape(1, 2), BY_BATCH, 10)
    assert weights.tolist() == close(1 / 9, 1 / 9)
    units = [
        Unit(prompts[i], (answers[i],), values=(np.stack(
            [np.full(len(answers[i]), weights[i], np.float32), advantages[i], old[i], values[i], wanted[i]]),))
        for i in range(2)
    ]  # fmt: skip
    result = runner.train(units, None)
    gradients = {n: policy.gradients.view(p).clone() for n, p in _trained(model, head)}

    model.zero_grad()
    losses = []
    for i in range(2):
        whole = torch.tensor(np.concatenate([prompts[i], answers[i]])).long()[None]
        out = model(input_ids=whole, output_hidden_states=True)
        places = slice(len(prompts[i]) - 1, -1)
        logps = out.logits[0, places].log_softmax(-1)
        own = logps[torch.arange(len(answers[i])), torch.tensor(answers[i]).long()]
        value = head(out.hidden_states[-1][0, places])[:, 0]
        ratio, a = torch.exp(own - torch.tensor(old[i])), torch.tensor(advantages[i])
        before, target = torch.tensor(values[i]), torch.tensor(wanted[i])
        policy_part = torch.max(-a * ratio, -a * torch.clamp(ratio, 0.8, 1.2))
        near = torch.max(torch.min(value, before + 0.2), before - 0.2)
        losses.append(policy_part + 0.1 * 0.5 * torch.max((value - target) ** 2, (near - target) ** 2))
    loss = torch.cat(losses).mean()
    loss.backward()
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, p in _trained(model, head):
        assert torch.allclose(gradients[name], p.grad, rtol=1e-4, atol=1e-7), name
    measured = finished(result.metrics.tolist())
    assert measured["ratio"] == pytest.approx(np.exp(np.concatenate(shift)).mean(), rel=1e-5)
    moves, signs = np.exp(np.concatenate(shift)), np.sign(np.concatenate(advantages))
    beyond = ((moves > 1.2) & (signs > 0)) | ((moves < 0.8) & (signs < 0))
    assert 0 < beyond.mean() == pytest.approx(measured["clip_ratio/region_mean"])


def _trained(model: torch.nn.Module, head: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(n, p) for n, p in [*model.named_parameters(), *head.named_parameters()] if p.requires_grad]


@pytest.fixture(scope="module")
def scorer(studio: Path) -> Path:  # noqa: F811
    """What a run of stage rm left."""
    config = config_of(
        "rm", dataset="pairs", reward_funcs=(), max_steps=8, do_predict=True, val_size=4, learning_rate=1e-2
    )
    live, outcome = trained(config, "scorer")
    assert outcome.weights == live.output
    return live.output


def test_a_run_of_ppo_goes_on_as_it_would_have(studio: Path) -> None:  # noqa: F811
    config = config_of(
        "ppo", per_device_train_batch_size=4, gradient_accumulation_steps=2, ppo_buffer_size=2, ppo_epochs=2,
        ppo_score_norm=True, save_strategy="steps", save_steps=2, max_steps=4, learning_rate=1e-3,
    )  # fmt: skip
    whole, _ = trained(config, "ppo-whole")

    class Stopped(type(whole)):  # type: ignore[misc]
        def stepped(self, step: int, *rest: Any, **more: Any) -> None:
            super().stepped(step, *rest, **more)
            if step == 2:
                self.run.request("stop")

    first, outcome = trained(config, "ppo-parts", Stopped)
    assert outcome.stopped
    first.run.forget_requests()
    again, outcome = trained(config, "ppo-parts")
    assert (outcome.weights / "value_head.safetensors").is_file()
    for name in ("reward", "loss", "kl", "kl_weight", "value_loss"):
        assert curve(again, name) == curve(whole, name)
    assert curve(whole, "kl")[0] == pytest.approx(0, abs=1e-5)
    assert curve(whole, "kl_weight")[0] == 0.2 > curve(whole, "kl_weight")[1]


PPO_YAML = """
### model
model_name_or_path: model
reward_model: REWARD
trust_remote_code: true
### method
stage: ppo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
### dataset
dataset: chat
dataset_dir: data
cutoff_len: 2048
max_samples: 16
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
### output
output_dir: saves/ppo
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-5
num_train_epochs: 1.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
ddp_timeout: 180000000
### generate
max_new_tokens: 16
top_k: 0
top_p: 0.9
"""


@pytest.mark.slow
def test_the_other_tools_file_runs_with_model_and_data_replaced(studio: Path, scorer: Path) -> None:  # noqa: F811
    (studio / "ppo.yaml").write_text(PPO_YAML.replace("REWARD", str(scorer)))
    live, outcome = trained(make(read("ppo.yaml")), "theirs")
    assert outcome.adapter and outcome.weights == studio / "saves" / "ppo"
    assert live.run.status().total_steps == 2
    assert (outcome.weights / "training_loss.png").is_file()
    assert math.isfinite(series(live.run.metrics()[0], "rewards/reward_model/mean")[1][0])


def test_a_reward_model_scores_as_its_own_run_predicted(studio: Path, scorer: Path) -> None:  # noqa: F811
    from tuner.data.prepare import prepare
    from tuner.data.tokens import load_tokenizer
    from tuner.engine.online.reward_model import rewards_of
    from tuner.engine.setup import Start
    from tuner.models import loading
    from tuner.rewards.reward import Completion

    said = [json.loads(line) for line in (scorer / "generated_predictions.jsonl").read_text().splitlines()]
    taught = config_of("rm", dataset="pairs", reward_funcs=(), val_size=4)
    words = load_tokenizer(studio / "model")
    rows = prepare(taught, words).eval[""]
    raw = json.loads((studio / "data" / "pairs.json").read_text())
    config = config_of("grpo", reward_model=str(scorer), reward_weights="1,2.5")
    made = prepare(config, words)
    source = loading.find(config)
    start = Start(config, source, made, None, None, None, None)  # type: ignore[arg-type]
    *named, model = rewards_of(config, start, words)
    assert [reward.name for reward in named] == ["contains"] and model.weight == 2.5
    for side in ("chosen", "rejected"):
        asked = []
        for row in rows:
            one = next(r for r in raw if row[f"{side}_ids"][:-1] == words.encode(r[side]))
            turn = {"role": "user", "content": one["instruction"]}
            asked.append(Completion(one["instruction"], (turn,), one[side]))
        assert model.score(asked) == pytest.approx([pair[side] for pair in said], abs=1e-5)
    by_run = rewards_of(config_of("grpo", reward_model="scorer"), start, words)[-1]
    assert by_run.score(asked) == model.score(asked)
    whole = {"reward_model": "model", "reward_model_type": "full", "reward_model_adapters": str(scorer)}
    apart = rewards_of(config_of("grpo", **whole), start, words)[-1]
    assert apart.score(asked) == pytest.approx(model.score(asked), abs=1e-6)
    long = Completion("q", ({"role": "user", "content": "q"},), asked[0].text)
    short = config.with_values(cutoff_len=len(model._ids(long)) - 2, max_new_tokens=6)  # type: ignore[attr-defined]
    assert rewards_of(short, start, words)[-1].score([long]) == pytest.approx(model.score([long]), abs=1e-6)


def test_no_limit_of_the_gradient_is_none_in_any_step_of_a_round(studio: Path) -> None:  # noqa: F811
    """0 is no limit to the Trainer, and a very high one is the same."""
    small = {"max_steps": 2, "per_device_train_batch_size": 2, "ppo_epochs": 3, "learning_rate": 1e-3}
    none, high = (
        trained(config_of("ppo", max_grad_norm=limit, **small), f"limit-{limit:g}")[0] for limit in (0, 1e9)
    )
    for name in ("loss", "clip_ratio/region_mean", "value_loss"):
        assert curve(none, name) == pytest.approx(curve(high, name), rel=1e-5)


def test_answers_of_which_no_reward_says_anything_teach_nothing(studio: Path) -> None:  # noqa: F811
    silent = [{"regex": {"column": "none of the data"}}]
    live, _ = trained(config_of("ppo", reward_funcs=silent, max_steps=1), "silent")
    assert curve(live, "loss") == [0.0] == curve(live, "grad_norm")
