"""Packed rows over weights in few bits: equal to the same model with its weights multiplied out, recomputed or not."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_packed import arguments, assert_close
from test_packed_tokens import packed_step, plain_step, tokens
from tiny_packed import build, token_rows
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tuner.engine.packed.autograd_policy import AutogradPolicy
from tuner.engine.packed.policy import FusedPolicy, fused_refusal
from tuner.engine.packed.trainer import PackedTrainer
from tuner.models.quantized import LINEARS, plain_weight, quantized

pytest.importorskip("bitsandbytes")
BITS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build("llama", trained=False).unload().save_pretrained(folder)
    return folder


def loaded(folder: Path, bits: str) -> torch.nn.Module:
    """The model quantized as it is loaded, with LoRA that has something to say."""
    settings = BitsAndBytesConfig(**BITS[bits], bnb_4bit_quant_storage=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32, device_map={"": "cpu"}
    )
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.1)
    return model.eval()


def multiplied_out(model: torch.nn.Module) -> torch.nn.Module:
    """The same with plain linears."""
    plain = build("llama").eval()
    given = dict(model.named_modules())
    for name, module in plain.named_modules():
        if type(module) is torch.nn.Linear and quantized(given.get(name)):
            module.weight.data = plain_weight(given[name]).float().clone()
    values = dict(model.named_parameters())
    for name, weight in plain.named_parameters():
        if "lora_" in name or weight.shape == values[name].shape and "proj" not in name:
            weight.data = values[name].data.float().clone()
    return plain


@pytest.mark.parametrize("bits", BITS)
def test_a_step_is_that_of_the_weights_multiplied_out(saved: Path, bits: str) -> None:
    rows = token_rows()
    model = loaded(saved, bits)
    assert {type(m).__name__ for m in model.modules() if quantized(m)} <= LINEARS
    want = packed_step(plain := multiplied_out(model), rows, FusedPolicy(plain))
    assert want[0] == pytest.approx(plain_step(multiplied_out(model), rows)[0], rel=1e-6)
    for recompute in (0, 2):
        again = copy.deepcopy(model)
        assert fused_refusal(again) is None
        policy = FusedPolicy(again)
        policy.recompute = recompute
        loss, grads, measured = packed_step(again, rows, policy)
        assert loss == pytest.approx(want[0], rel=1e-6)
        assert_close(grads, want[1])
        assert measured == pytest.approx(want[2], rel=1e-5)


def test_four_bits_through_the_models_own_layers_agree(saved: Path) -> None:
    rows = token_rows()
    found = packed_step(model := loaded(saved, "nf4"), rows, FusedPolicy(model))
    other = packed_step(model := loaded(saved, "nf4"), rows, AutogradPolicy(model))
    assert other[0] == pytest.approx(found[0], rel=1e-5)
    assert_close(other[1], found[1], 1e-4)


def test_training_learns_and_the_base_stays_as_it_was(saved: Path, tmp_path: Path) -> None:
    model = loaded(saved, "nf4")
    before = {n: p.data.clone() for n, p in model.named_parameters() if not p.requires_grad}
    rows = token_rows(12)
    trainer = PackedTrainer(model, arguments(tmp_path, max_steps=12), rows, objective=tokens)
    trainer.train()
    losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    bits = lambda p: p.data.view(torch.int32)  # codes may look like a NaN  # noqa: E731
    assert all(torch.equal(bits(p), bits(before[n])) for n, p in model.named_parameters() if n in before)
