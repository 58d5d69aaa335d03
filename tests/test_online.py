"""Learning from rewards: advantages and losses by hand, and whole steps as TRL's trainers have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_packed import assert_close, tokenizer
from tiny_packed import CPU, VOCAB, build

from tuner.engine.online import scoring
from tuner.engine.online.advantages import leave_one_out, of_future, of_group, whitened, without_signal
from tuner.engine.online.experience import Experience
from tuner.engine.online.kl import AdaptiveWeight
from tuner.engine.online.objective import Clipping, OnlineObjective, distance, policy_loss
from tuner.engine.online.padded_policy import PaddedPolicy
from tuner.engine.online.references import AdapterOff
from tuner.engine.packed.autograd_policy import AutogradPolicy
from tuner.engine.packed.policy import FusedPolicy
from tuner.engine.packed.steps import StepRunner

NAN = float("nan")


def table(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def test_advantages_by_hand() -> None:
    rewards = table([1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0], [1.0, NAN, 0.0, NAN])
    third = 2 / 3
    assert torch.allclose(leave_one_out(rewards)[0], torch.tensor([third, -third, -third, third]))
    assert leave_one_out(rewards)[1:].tolist() == [[0, 0, 0, 0], [1, 0, -1, 0]]
    one = 0.5 / (1 / 3**0.5 + 1e-4)  # the spread of 1, 0, 0, 1 is sqrt(1/3)
    assert torch.allclose(of_group(rewards, "group")[0], torch.tensor([one, -one, -one, one]))
    assert of_group(rewards, "group")[1].tolist() == [0, 0, 0, 0]
    assert of_group(rewards, "none")[0].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert of_group(rewards, "none")[2].tolist() == [0.5, 0, -0.5, 0]
    batch = of_group(rewards[:2], "batch")[0, 0]
    assert batch.item() == pytest.approx(0.5 / (np.std([1, 0, 0, 1, 2, 2, 2, 2], ddof=1) + 1e-4))
    assert without_signal(rewards).tolist() == [False, True, False]
    assert without_signal(table([NAN, NAN], [NAN, 1.0])).tolist() == [
        True,
        True,
    ]  # as nothing can be compared
    lone = leave_one_out(table([NAN, 3.0, NAN]))
    assert lone.tolist() == [[0, 0, 0]]  # nobody to compare it with


def test_estimates_of_the_future_by_hand() -> None:
    # deltas: 1 + 0.5 - 0.4 = 1.1, 0 + 0.2 - 0.5 = -0.3, 2 - 0.2 = 1.8; A3 = 1.8, A2 = -0.3 + 0.95 * 1.8, A1 = ...
    found = of_future(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.4, 0.5, 0.2]))
    assert found.tolist() == pytest.approx([1.1 + 0.95 * 1.41, 1.41, 1.8])
    white = whitened(torch.tensor([1.0, 3.0]))
    assert white.tolist() == pytest.approx([-1, 1])
    assert whitened(torch.tensor([1.0, 3.0]), shift=False).tolist() == pytest.approx([1, 3])


def test_ratios_are_clipped_on_the_worse_side_only() -> None:
    ratio, advantage = torch.tensor([1.5, 0.5, 1.5, 0.5]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = policy_loss(ratio, advantage, Clipping(0.2, 0.3))
    assert loss.tolist() == pytest.approx([-1.3, -0.5, 1.5, 0.8])
    apart = distance(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0]))
    assert apart.tolist() == pytest.approx([0.0, np.exp(-1) + 1 - 1])


def test_the_weight_of_the_distance_follows_it() -> None:
    weight = AdaptiveWeight(target=6.0)
    weight.update(12.0, 100)  # twice the target counts as a fifth above it
    assert weight.value == pytest.approx(0.2 * (1 + 0.2 * 100 / 10_000))
    weight.update(5.4, 100)
    assert weight.value == pytest.approx(0.2 * 1.002 * (1 - 0.1 * 0.01))


# --- a whole step, against TRL's


def answers(masked: bool = False) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """Two prompts with four answers each of uneven lengths, each ending with the end of text but one, and rewards."""
    chance = np.random.default_rng(3)
    ids = lambda n: chance.integers(2, VOCAB, n).tolist()  # noqa: E731
    prompts = [ids(6), ids(3)]
    found = [[*ids(n), 1] for n in (1, 7, 4, 4, 9, 2, 5)] + [ids(9)]
    return prompts, found, [0.3, 1.0, 0.0, 0.5, 1.0, 1.0, 0.2, 0.7]


def trl_trainer(kind: str, folder: Path, model: torch.nn.Module, made: Any, **more: Any) -> Any:
    """A trainer of TRL over a model, whose answers and rewards are those given."""
    import trl
    from datasets import Dataset

    prompts, completions, rewards = made
    config, trainer = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")

    class Fed(trainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            self._generate = lambda _: (
                [prompts[i // 4] for i in range(8)],
                completions,
                *((None, [""] * 8, None, {}, None, None) if kind == "GRPO" else ([""] * 8,)),
            )
            return super()._generate_and_score_completions(inputs)

    given = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "num_generations": 4,
        "per_device_train_batch_size": 8, "max_completion_length": 9, "report_to": "none", "max_steps": 1,
        "learning_rate": 0.0, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    return Fed(
        model=model,
        args=config(**given | more),
        reward_funcs=lambda completions, **_: rewards,
        train_dataset=Dataset.from_list([{"prompt": "t2"}, {"prompt": "t3"}]),
        processing_class=tokenizer(),
    )


def trl_gradients(trainer: Any, updates: int) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
    """Loss and gradients of each micro-batch, in TRL's own order of answers."""
    model = trainer.model
    losses, grads = [], []
    model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    for _ in range(updates):
        model.zero_grad()
        inputs = trainer._prepare_inputs([{"prompt": "t2"}] * 4 + [{"prompt": "t3"}] * 4)
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        trainer._step += 1
        losses.append(loss.item())
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    return losses, grads


GRPO_CASES = {
    "dapo": {},
    "grpo": {"loss_type": "grpo", "scale_rewards": "none"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "batch"},
    "bnpo": {"loss_type": "bnpo"},
    "beta": {"beta": 0.3},
    "cut": {"mask_truncated_completions": True, "loss_type": "grpo", "beta": 0.3},
    "hot": {"temperature": 1.7, "beta": 0.1},
    "sequence": {"importance_sampling_level": "sequence", "num_iterations": 2},
    "stale": {"num_iterations": 2, "epsilon": 0.05, "beta": 0.1},
}


def experience(made: Any, case: dict[str, Any]) -> Experience:
    prompts, completions, rewards = made
    cut = case.get("mask_truncated_completions", False)
    learnt = Experience(
        [np.array(p, np.int32) for p in prompts],
        [np.array(c, np.int32) for c in completions],
        np.array([not cut or c[-1] == 1 for c in completions]),
        np.arange(8),
    )
    grouped = torch.tensor(rewards).view(2, 4)
    learnt.advantages = of_group(grouped, case.get("scale_rewards", "group")).flatten().numpy()
    return learnt


def moved(model: torch.nn.Module) -> None:
    """Move what is trained off the place where answers were written."""
    torch.manual_seed(5)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.03 * torch.randn_like(p)


def policies(model: torch.nn.Module, heat: float, fused: bool) -> list[Any]:
    made: list[Any] = [AutogradPolicy(model), PaddedPolicy(model, temperature=heat)]
    made += [FusedPolicy(model)] if fused else []
    for policy in made:
        policy.temperature = heat
    return made


QUICK = ("dapo", "stale", "cut")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in GRPO_CASES]
)
def test_a_step_of_grpo_is_that_of_trl(tmp_path: Path, name: str) -> None:
    case, made = GRPO_CASES[name], answers()
    stale = case.get("num_iterations", 1) > 1
    trainer = trl_trainer("GRPO", tmp_path, build(), made, **case)
    trl_reference(trainer)
    losses, grads = trl_gradients(trainer, 1)
    if stale:
        moved(trainer.model)
        losses, grads = trl_gradients(trainer, 1)
    clipping = Clipping(
        case.get("epsilon", 0.2), case.get("epsilon", 0.2), case.get("importance_sampling_level", "token")
    )
    for number in range(3):
        model = build()
        policy = policies(model, case.get("temperature", 1.0), fused=True)[number]
        objective = OnlineObjective(clipping, case.get("beta", 0.0), on_policy=not stale)
        runner = StepRunner(policy, objective, CPU, 40, graphs=False)
        learnt = experience(made, case)
        learnt.reference = scoring.log_probs(runner, learnt, 1 << 30, AdapterOff())
        learnt.old = scoring.log_probs(runner, learnt, 12) if stale else []
        if stale:
            moved(model)
        weights = learnt.weights(np.arange(8).reshape(1, 8), case.get("loss_type", "dapo"), 9)
        result = runner.train(learnt.units(weights, 16), None)
        assert result.loss.item() == pytest.approx(losses[0], rel=1e-5, abs=1e-7)
        names = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert_close({n: policy.gradients.view(p) for n, p in names.items()}, grads[0])


def trl_reference(trainer: Any) -> None:
    """TRL copies an adapter that it is given as its reference; ours was begun as nothing."""
    if "ref" in getattr(trainer.model, "peft_config", {}):
        trainer.model.delete_adapter("ref")
        trainer.model.set_adapter("default")


@pytest.mark.parametrize("beta", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_a_step_of_rloo_is_that_of_trl(tmp_path: Path, beta: float) -> None:
    made = answers()
    case = {"beta": beta, "normalize_advantages": bool(beta), "reward_clip_range": (0.1, 0.9)}
    trainer = trl_trainer("RLOO", tmp_path, build(), made, **case, num_iterations=2)
    trl_reference(trainer)
    trl_gradients(trainer, 1)
    moved(trainer.model)
    losses, grads = trl_gradients(trainer, 1)
    model = build()
    policy = FusedPolicy(model)
    objective = OnlineObjective(Clipping(level="sum"), on_policy=False)
    runner = StepRunner(policy, objective, CPU, 40, graphs=False)
    learnt = experience(made, {})
    learnt.old = scoring.log_probs(runner, learnt, 40)
    reference = scoring.log_probs(runner, learnt, 40, AdapterOff())
    apart = np.array([(o - r).sum() for o, r in zip(learnt.old, reference, strict=True)])
    rewards = torch.from_numpy(np.clip(made[2], 0.1, 0.9) - beta * apart).view(2, 4)
    learnt.advantages = leave_one_out(rewards, normalize=bool(beta)).flatten().numpy()
    moved(model)
    weights = learnt.weights(np.arange(8).reshape(1, 8), "grpo", 9)
    result = runner.train(learnt.units(weights), None)
    assert result.loss.item() == pytest.approx(losses[0], rel=1e-5, abs=1e-7)
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert_close({n: policy.gradients.view(p) for n, p in names.items()}, grads[0])
