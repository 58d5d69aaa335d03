"""The memory formulas: against counted parameters, against what a real step keeps, and monotone where they
must be."""

import pytest
import torch
from tiny_packed import CPU, build, pair_rows

from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.policy import FusedPolicy
from tuner.engine.packed.rows import pack_row, units_of_step
from tuner.estimate import ModelShape, layer_activations, packed_memory, packed_plan

QWEN_18 = ModelShape(2048, 24, 16, 16, 128, 5504, 151936)


def test_parameters_of_a_known_model() -> None:
    assert QWEN_18.parameters == pytest.approx(1.837e9, rel=1e-3)
    assert QWEN_18.lora_parameters(8) == 24 * 8 * (4 * 4096 + 3 * (2048 + 5504))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_shape_and_adapters_match_a_real_model(family: str) -> None:
    model = build(family)
    inner = model.get_base_model()
    shape = ModelShape.from_config(inner.config.to_dict())
    frozen = sum(p.numel() for n, p in model.named_parameters() if "lora_" not in n and p.ndim == 2)
    assert shape.parameters == frozen
    assert shape.lora_parameters(4) == sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_activations_per_layer_match_what_a_step_keeps(family: str) -> None:
    model = build(family)
    policy = FusedPolicy(model)
    row = DeviceRow(pack_row(units_of_step(pair_rows(), 2)), CPU)
    _, ((saved, _), _) = policy.forward(row, keep=True)
    first = saved[0]
    storages = {}
    for value in [*vars(first).values(), *first.attention[:3]]:
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    shape = ModelShape.from_config(model.get_base_model().config.to_dict())
    want = layer_activations(shape, weight_bytes=4) * row.shape.tokens
    # the adapters' extra columns (at most 12 here, in four inputs) and 1/rms per head come on top
    assert want <= sum(storages.values()) <= want + row.shape.tokens * 4 * (4 * 16 + 8)


def test_recomputing_and_shorter_rows_need_less() -> None:
    sizes = {"tokens": 1700, "scored": 800}
    whole, half, none = (packed_memory(QWEN_18, **sizes, recompute=n).total for n in (0, 12, 24))
    assert whole > half > none > packed_memory(QWEN_18, tokens=100, scored=50, recompute=24).total
    assert 6 * 2**30 < whole < 9 * 2**30 and none < 5 * 2**30


def test_the_plan_gives_up_activations_before_tokens() -> None:
    plans = [packed_plan(QWEN_18, gib << 30) for gib in (60, 10, 4, 2)]
    assert plans[0] == (16384, 0)
    assert [p[1] for p in plans] == sorted(p[1] for p in plans) and plans[-1][1] == 24
    assert all(p[0] >= 512 for p in plans)


def test_a_config_without_a_size_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="intermediate_size"):
        ModelShape.from_config({"num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 1})
