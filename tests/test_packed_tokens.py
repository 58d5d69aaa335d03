"""Learning tokens on packed rows: exact beside plain transformers, however the rows are packed, through a resume too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_packed import arguments, assert_close
from tiny_packed import CPU, FAMILIES, MIXTURES, adapted, build, token_rows, whole

from tuner.engine.packed.autograd_policy import AutogradPolicy
from tuner.engine.packed.bucket_sizes import choose_levels
from tuner.engine.packed.objective import TokenObjective, finish_metrics
from tuner.engine.packed.policy import FusedPolicy, Policy
from tuner.engine.packed.steps import StepRunner
from tuner.engine.packed.support import unsupported
from tuner.engine.packed.trainer import PackedTrainer
from tuner.engine.packed.units import units_of_tokens
from tuner.plan.shape import REACHED


def tokens(device: torch.device) -> TokenObjective:
    return TokenObjective()


def texts(rows: list[dict]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, labels) of every text, those of shared rows apart."""
    found = []
    for row in rows:
        sizes = row.get("seq_lengths") or [len(row["input_ids"])]
        ids, labels = (torch.tensor(row[n]).split(sizes) for n in ("input_ids", "labels"))
        found += list(zip(ids, labels, strict=True))
    return found


def plain_step(model, rows: list[dict], dynamic: bool = False) -> tuple[float, dict, dict]:
    """The same step by transformers' own forward and autograd, one text at a time: loss, gradients, metrics."""
    model.zero_grad()
    total, learned, hits, entropy, shares = 0.0, 0, 0, 0.0, []
    for ids, labels in texts(rows):
        target, mask = labels[1:], labels[1:] != -100
        if not mask.any():
            continue
        logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)[mask]
        picked = logps.gather(1, target[mask, None])[:, 0]
        total = total - (picked * picked.detach().exp() if dynamic else picked).sum()
        right = logps.argmax(-1) == target[mask]
        shares.append(right.float().mean().item())
        learned, hits = learned + len(picked), hits + right.sum().item()
        entropy -= (logps.exp() * logps).sum().item()
    (total / learned).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    measured = {
        "mean_token_accuracy": hits / learned,
        "entropy": entropy / learned,
        "accuracy": np.mean(shares),
    }
    return (total / learned).item(), grads, measured


def packed_step(
    model, rows, policy: Policy, budget: int = 10_000, dynamic: bool = False, levels: bool = False
):
    runner = StepRunner(policy, TokenObjective(dynamic), CPU, budget, graphs=False)
    units = units_of_tokens(rows)
    if levels:  # rows padded as where steps are replayed from graphs
        size = sum(u.tokens for u in units)
        runner.levels, runner.bucketed = choose_levels(np.array([[size, size]]), 4), True
    result = runner.train(units, None)
    grads = {n: policy.gradients.view(p).clone() for n, p in model.named_parameters() if p.requires_grad}
    return result.loss.item(), grads, finish_metrics(runner.objective.metric_names, result.metrics.tolist())


def losses_of_families() -> list[Any]:
    """Each family with the usual loss; the other one knows no family, so the fast suite asks one of it."""
    both = [(family, dynamic) for family in FAMILIES for dynamic in (False, True)]
    slow = [family != "qwen3" and dynamic for family, dynamic in both]
    return [
        pytest.param(
            *case, id="-".join((case[0], "dft" if case[1] else "nll")), marks=[pytest.mark.slow] * late
        )
        for case, late in zip(both, slow, strict=True)
    ]


@pytest.mark.parametrize(("family", "dynamic"), losses_of_families())
def test_loss_gradients_and_metrics_equal_transformers(family: str, dynamic: bool) -> None:
    rows = token_rows()
    loss, grads, measured = plain_step(build(family), rows, dynamic)
    for written_out in (True, False) if family != "neox" else (False,):
        model = build(family)
        policy = FusedPolicy(model) if written_out else AutogradPolicy(model)
        found = packed_step(model, rows, policy, dynamic=dynamic)
        assert found[0] == pytest.approx(loss, rel=1e-6)
        assert_close(found[1], grads)
        assert found[2] == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_learn_on_packed_rows_what_they_learn_elsewhere(family: str) -> None:
    rows = token_rows()
    loss, grads, measured = plain_step(build(family), rows)
    assert any("experts" in name for name in grads) == (family in REACHED)
    for recompute in (0, 2):
        model = build(family)
        policy = AutogradPolicy(model)
        policy.recompute = recompute
        assert not unsupported(model) and not policy.capturable
        found = packed_step(model, rows, policy)
        assert found[0] == pytest.approx(loss, rel=1e-6)
        assert_close(found[1], grads)
        assert found[2] == pytest.approx(measured, rel=1e-5)


def frozen_but_the_last_layer() -> torch.nn.Module:
    model = whole().requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    model.lm_head.requires_grad_(True)
    return model


def tied() -> torch.nn.Module:
    model = whole()
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


TRAINED = {
    "full": whole,
    "full, another architecture": lambda: whole("neox"),
    "full, head tied": tied,
    "freeze": frozen_but_the_last_layer,
    "dora": lambda: adapted(use_dora=True),
    "rslora": lambda: adapted(use_rslora=True),
    "additional_target": lambda: adapted(modules_to_save=["embed_tokens", "lm_head"]),
}


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("recompute", [0, 2])
def test_whatever_is_trained_its_gradients_equal_transformers(name: str, recompute: int) -> None:
    rows = token_rows()
    loss, grads, measured = plain_step(TRAINED[name](), rows)
    model = TRAINED[name]()
    policy = AutogradPolicy(model, logits_bytes=199 * 4 * 16)  # several pieces of logits
    policy.recompute = recompute
    found = packed_step(model, rows, policy)
    assert found[0] == pytest.approx(loss, rel=1e-6)
    assert_close(found[1], grads)
    assert found[2] == pytest.approx(measured, rel=1e-5)


def test_neither_packing_nor_padding_nor_recomputing_changes_a_step() -> None:
    rows = token_rows(12)
    apart = [{"input_ids": ids.tolist(), "labels": labels.tolist()} for ids, labels in texts(rows)]
    model = build()
    loss, grads, measured = packed_step(model, rows, FusedPolicy(model))
    for other, budget, recompute, levels in (
        (apart, 10_000, 0, False),
        (rows, 40, 2, False),
        (rows, 90, 1, True),
    ):
        model = build()
        policy = FusedPolicy(model)
        policy.recompute = recompute
        found = packed_step(model, other, policy, budget, levels=levels)
        assert found[0] == pytest.approx(loss, rel=1e-6)
        assert_close(found[1], grads, 1e-6)
        assert found[2] == pytest.approx(measured, rel=1e-6)


def test_a_text_of_which_nothing_is_learned_costs_nothing() -> None:
    silent = {
        "input_ids": [3, 4, 5, 6],
        "labels": [3, -100, -100, -100],
    }  # the first token is nothing to predict
    units = units_of_tokens([*token_rows(), silent])
    assert sum(u.tokens for u in units) == sum(len(r["input_ids"]) for r in token_rows())
    model = build()
    loss, grads, _ = packed_step(model, [silent], FusedPolicy(model))
    assert loss == 0 and not any(g.any() for g in grads.values())


def test_dropout_is_drawn_again_alike_after_a_resume_and_never_in_measuring(tmp_path: Path) -> None:
    rows = token_rows(12)
    options = {"max_steps": 8, "save_steps": 3, "eval_strategy": "steps", "eval_steps": 4}

    def trainer(dropout: float = 0.3) -> PackedTrainer:
        made = arguments(tmp_path / str(dropout), **options)
        return PackedTrainer(adapted(lora_dropout=dropout), made, rows, rows[:5], objective=tokens)

    torch.manual_seed(1)
    calm = trainer(0.0)
    assert calm.evaluate()["eval_loss"] == trainer().evaluate()["eval_loss"]
    noisy = trainer()
    noisy.train()
    losses = [h["loss"] for h in noisy.state.log_history if "loss" in h]
    again = trainer()
    again.train(resume_from_checkpoint=str(tmp_path / "0.3" / "checkpoint-3"))
    assert [h["loss"] for h in again.state.log_history if "loss" in h] == losses
    calm.train()
    assert [h["loss"] for h in calm.state.log_history if "loss" in h] != losses
    for a, b in zip(noisy.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("begin", [lambda: build(trained=False), whole], ids=["lora", "full"])
def test_training_learns_resumes_and_evaluates(tmp_path: Path, begin) -> None:
    rows = token_rows(12)
    options = {"max_steps": 12, "save_steps": 4, "eval_strategy": "steps", "eval_steps": 6}

    def trainer() -> PackedTrainer:
        made = arguments(tmp_path, **options)
        return PackedTrainer(begin(), made, rows, rows[:5], objective=tokens, each_text=True)

    first = trainer()
    first.train()
    losses = [h["loss"] for h in first.state.log_history if "loss" in h]
    assert losses[0] == pytest.approx(np.log(199), rel=0.05)
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
    assert first.state.num_input_tokens_seen == 4 * sum(len(r["input_ids"]) for r in rows)
    final = next(h for h in reversed(first.state.log_history) if "eval_loss" in h)
    assert {"eval_mean_token_accuracy", "eval_entropy", "eval_accuracy"} <= set(final)
    with torch.no_grad():
        assert final["eval_loss"] == pytest.approx(plain_loss(first.model, rows[:5]), rel=1e-4)
    again = trainer()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [h["loss"] for h in again.state.log_history if "loss" in h] == losses
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def plain_loss(model, rows: list[dict]) -> float:
    scored = [
        model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)[mask].gather(1, labels[1:][mask, None])
        for ids, labels in texts(rows)
        if (mask := labels[1:] != -100).any()
    ]
    return -torch.cat(scored).mean().item()


def test_a_whole_model_in_float32_computes_in_bfloat16_where_that_is_asked_for(tmp_path: Path) -> None:
    model, seen = whole(), []
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *given: seen.append(given[-1].dtype))
    before = [p.data.clone() for p in model.parameters()]
    made = arguments(tmp_path, max_steps=2, bf16=True)
    PackedTrainer(model, made, token_rows(), objective=tokens).train()
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
