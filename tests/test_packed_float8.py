"""Frozen weights in 8-bit floats: what is rounded and how, a step near that of whole numbers, and who may ask for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from test_packed import packed_step
from tiny_packed import build, pair_rows

from tuner import hardware
from tuner.config.config import make
from tuner.engine.packed import kernels_torch
from tuner.engine.packed.float8 import Float8Weight, takes
from tuner.engine.packed.policy import FusedPolicy
from tuner.engine.packed.reference import weights_fingerprint
from tuner.hardware import Gpu
from tuner.plan import memory, preflight
from tuner.plan.shape import ModelShape


def test_each_row_has_a_scale_by_which_its_largest_number_is_448() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-3, 3e4, -1.0]])
    codes, scales = kernels_torch.to_float8(x)
    assert codes.dtype == torch.float8_e4m3fn and scales.shape == (3, 1)
    assert codes.float()[0].tolist() == [224.0, -448.0, 112.0]
    assert not codes.float()[1].any() and float(codes.float()[2, 1]) == 448.0
    assert torch.allclose(codes.float() * scales, x, rtol=2**-4, atol=3e4 / 448 * 2**-9)


def test_a_weight_is_multiplied_as_it_was_rounded_both_ways() -> None:
    torch.manual_seed(0)
    weight, x, dy = torch.randn(48, 32), torch.randn(7, 32), torch.randn(7, 48)
    made = Float8Weight(weight, kernels_torch)

    def rounded(values: torch.Tensor) -> torch.Tensor:
        codes, scales = kernels_torch.to_float8(values)
        return codes.float() * scales

    forth, back = rounded(x) @ rounded(weight).t(), rounded(dy) @ rounded(weight.t().contiguous()).t()
    assert torch.allclose(made.forward(x), forth, atol=1e-3)
    assert torch.allclose(made.backward(dy), back, atol=1e-3)
    assert takes(weight) and not takes(weight[:40])


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_is_near_that_of_whole_numbers_and_not_the_same(recompute: bool) -> None:
    rows = pair_rows()
    loss, wanted, _ = packed_step(build(), rows)
    policy = FusedPolicy(model := build(), float8=True)
    policy.recompute = policy.layers if recompute else 0
    near, found, _ = packed_step(model, rows, policy=policy)
    one, other = (torch.cat([grads[name].flatten() for name in wanted]) for grads in (found, wanted))
    assert near != loss and near == pytest.approx(loss, rel=0.05)
    assert 0.001 < float((one - other).norm() / other.norm()) < 0.3
    assert float(torch.cosine_similarity(one, other, dim=0)) > 0.95


def test_references_of_8_bit_weights_are_kept_apart() -> None:
    model = build()
    assert weights_fingerprint(model, torch.float32) != weights_fingerprint(model, torch.float32, float8=True)


STARTER = Path(__file__).parents[1] / "data" / "starter"
HOPPER = Gpu(0, "a card", 80 << 30, 1 << 30, (9, 0))


def said(data: Path, cards: tuple[Gpu, ...], monkeypatch: pytest.MonkeyPatch, **more: object) -> list[str]:
    monkeypatch.setattr(hardware, "gpus", lambda: cards)
    given = {"stage": "sft", "model_name_or_path": str(STARTER), "dataset": "chat", "do_train": True}
    config = make({**given, "bf16": True, "fp8": True, "dataset_dir": str(data), **more})
    return [p.sentence for p in preflight.problems(config) if p.knob == "fp8"]


def test_it_is_refused_before_launch_where_it_would_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.data(tmp_path / "data")
    old = Gpu(0, "a card", 80 << 30, 1 << 30, (8, 0))
    assert said(data, (HOPPER,), monkeypatch) == []
    assert "8-bit floats (Ada 8.9" in said(data, (old,), monkeypatch)[0]
    assert "8-bit floats (Ada 8.9" in said(data, (), monkeypatch)[0]
    assert "in bfloat16" in said(data, (HOPPER,), monkeypatch, bf16=False)[0]
    for given in ({"lora_dropout": 0.1}, {"finetuning_type": "full"}, {"engine": "trl"}):
        assert "written out" in said(data, (HOPPER,), monkeypatch, **given)[0]


def test_a_plan_counts_the_weights_once_more() -> None:
    shape = ModelShape.from_config({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100,
                           "intermediate_size": 128, "num_attention_heads": 4})  # fmt: skip
    plain = make({"stage": "sft", "model_name_or_path": "m", "dataset": "d", "bf16": True})
    more = memory.weights(plain.with_values(fp8=True), shape) - memory.weights(plain, shape)
    assert more == 2 * (shape.parameters - shape.vocab * shape.hidden * (1 if shape.tied else 2))
