"""Reward models on packed rows: scores, loss and every gradient as transformers' sequence classification has them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from test_packed import arguments, assert_close
from tiny_packed import CPU, RELATIVES, SIZES, pair_rows
from transformers import AutoConfig, AutoModelForSequenceClassification

from tuner.engine.packed.autograd_policy import AutogradPolicy
from tuner.engine.packed.objective import RewardObjective, finish_metrics
from tuner.engine.packed.policy import FusedPolicy, fused_refusal
from tuner.engine.packed.steps import StepRunner
from tuner.engine.packed.trainer import PackedTrainer
from tuner.engine.packed.units import units_of_scores
from tuner.engine.scores import padded

PAD = 0
KINDS = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "llama": "llama",
    "neox": "gpt_neox",
    "gemma2": "gemma2",
    "phi3": "phi3",
}


def build(family: str) -> torch.nn.Module:
    """A tiny model that scores, its adapter and its head with something to say."""
    torch.manual_seed(0)
    more = {"head_dim": 16} if family == "qwen3" else RELATIVES.get(family, {})
    config = AutoConfig.for_model(KINDS[family], **SIZES, num_labels=1, **more)
    model = AutoModelForSequenceClassification.from_config(config)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="SEQ_CLS")
    model = get_peft_model(model, settings)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    return model.eval()


def rows_of_pairs() -> list[dict]:
    """Pairs, one of whose answers ends in padding's token, as where padding is the end of text."""
    rows = pair_rows(7)
    rows[1]["chosen_ids"][-2:] = [PAD, PAD]
    rows[3]["rejected_ids"] = [9, 8]
    return rows


@pytest.mark.parametrize("family", KINDS)
def test_scores_loss_and_gradients_equal_transformers(family: str) -> None:
    rows, micro = rows_of_pairs(), 2
    model = build(family)
    parts = [rows[i : i + micro] for i in range(0, len(rows), micro)]
    total, margins = 0.0, []
    for part in parts:
        chosen, rejected = model(**padded(part, PAD)).logits[:, 0].chunk(2)
        margins += (chosen - rejected).tolist()
        total = total - F.logsigmoid(chosen - rejected).mean() / len(parts)
    total.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    for written_out in (True, False) if family != "neox" else (False,):
        model = build(family)
        assert (fused_refusal(model) is None) == (family != "neox")
        policy = FusedPolicy(model) if written_out else AutogradPolicy(model)
        runner = StepRunner(policy, RewardObjective(PAD), CPU, 90, graphs=False)
        result = runner.train(units_of_scores(rows, micro, PAD), None)
        assert result.loss.item() == pytest.approx(total.item(), rel=1e-6)
        assert_close({n: policy.gradients.view(p) for n, p in model.named_parameters() if n in grads}, grads)
        measured = finish_metrics(runner.objective.metric_names, result.metrics.tolist())
        assert measured["rewards/margins"] == pytest.approx(np.mean(margins), rel=1e-5)
        assert measured["rewards/accuracies"] == np.mean(np.array(margins) > 0)


def test_training_learns_and_a_resume_is_equal(tmp_path: Path) -> None:
    rows = rows_of_pairs()
    options = {"max_steps": 10, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 5}

    def trainer() -> PackedTrainer:
        made = arguments(tmp_path, **options)
        return PackedTrainer(build("qwen2"), made, rows, rows, objective=lambda device: RewardObjective(PAD))

    whole = trainer()
    whole.train()
    losses = [h["loss"] for h in whole.state.log_history if "loss" in h]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert whole.evaluate()["eval_rewards/accuracies"] >= 0.8
    again = trainer()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [h["loss"] for h in again.state.log_history if "loss" in h] == losses
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
