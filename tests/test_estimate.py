"""The memory formulas: against counted parameters, against what a real step keeps, and monotone where they
must be."""

import pytest
import torch
from tiny_packed import CPU, MIXTURES, build, pair_rows

from tuner.config.config import make
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.policy import FusedPolicy
from tuner.engine.packed.rows import pack_row
from tuner.engine.packed.units import units_of_step
from tuner.plan.facts import Data, Machine, Model
from tuner.plan.memory import multiplied
from tuner.plan.plan import plan
from tuner.plan.rows import autograd_activations, layer_activations, packed_memory, packed_rows
from tuner.plan.shape import Experts, Lengths, ModelShape

GIB = 2**30
QWEN_18 = ModelShape(2048, 24, 16, 16, 128, 5504, 151936)
INTERNLM2_18 = ModelShape(2048, 24, 16, 8, 128, 8192, 92544)
QWEN3_8 = ModelShape(4096, 36, 32, 8, 128, 12288, 151936, normed_heads=True)
PAIRS, INSTRUCTIONS = Lengths(200, 136, 934), Lengths(175, 129, 585)
MEASURED = [
    # GiB that torch had allocated at the peak on an H200: Anthropic's pairs and alpaca's instructions, LoRA of rank 8
    (QWEN_18, PAIRS, 8.95, {}),
    (QWEN_18, PAIRS, 4.14, {"engine_preset": "memory"}),
    (INTERNLM2_18, PAIRS, 9.87, {}),
    (INTERNLM2_18, PAIRS, 4.34, {"engine_preset": "memory"}),
    (QWEN3_8, PAIRS, 30.2, {}),
    (QWEN3_8, PAIRS, 16.8, {"engine_preset": "memory"}),
    (QWEN_18, PAIRS, 4.4, {"engine": "trl", "gradient_checkpointing": True}),
    (QWEN_18, PAIRS, 11.9, {"engine": "trl", "gradient_checkpointing": False}),
    (QWEN_18, PAIRS, 36.6, {"engine": "trl", "gradient_checkpointing": False, "per_device_train_batch_size": 8,
                            "gradient_accumulation_steps": 1}),
    (QWEN_18, INSTRUCTIONS, 3.9, {"stage": "sft", "engine": "trl", "gradient_checkpointing": True}),
    (QWEN_18, INSTRUCTIONS, 6.4, {"stage": "sft", "engine": "trl", "gradient_checkpointing": False}),
    (QWEN_18, INSTRUCTIONS, 14.5, {"stage": "sft", "engine": "trl", "gradient_checkpointing": False,
                                   "per_device_train_batch_size": 8}),
    (QWEN_18, INSTRUCTIONS, 7.8, {"stage": "sft", "engine": "trl", "gradient_checkpointing": False, "packing": True,
                                  "per_device_train_batch_size": 1}),
    # the same on packed rows, on an H100: 8 and 64 examples a step
    (QWEN_18, INSTRUCTIONS, 8.59, {"stage": "sft"}),
    (QWEN_18, INSTRUCTIONS, 25.6, {"stage": "sft", "per_device_train_batch_size": 16}),
    (QWEN_18, INSTRUCTIONS, 4.06, {"stage": "sft", "engine_preset": "memory", "per_device_train_batch_size": 16}),
]  # fmt: skip


def a_run(**values):
    plain = {"stage": "dpo", "do_train": True, "model_name_or_path": "m", "dataset": "d", "bf16": True}
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "cutoff_len": 2048}
    return make({**plain, **batch, **values})


def run_memory(config, shape, lengths, free):
    """What the plan of a run says that it holds, on a GPU with so much free, on a CPU for 0."""
    names = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
    }
    more = {"num_key_value_heads": shape.kv_heads, "head_dim": shape.head_size, "vocab_size": shape.vocab}
    kind = "qwen3" if shape.normed_heads else "llama"
    model = Model({**names, **more, "intermediate_size": shape.ffn, "model_type": kind}, {})
    assert model.shape == shape
    return plan(config, Machine(free > 0, free), Data(1000, lengths), model).memory


@pytest.mark.parametrize(("shape", "lengths", "gib", "values"), MEASURED)
def test_a_whole_run_is_estimated_as_a_gpu_measured_it(shape, lengths, gib, values) -> None:
    assert run_memory(a_run(**values), shape, lengths, 130 * GIB).total / GIB == pytest.approx(gib, rel=0.13)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_autograd_keeps_what_is_estimated(half: bool, whole: bool) -> None:
    kept = [kept_by_autograd(layers, half, whole) for layers in (1, 3)]
    shape = ModelShape(128, 1, 4, 2, 32, 320, 64)
    measured = (kept[1] - kept[0]) / 2 / 96
    assert autograd_activations(shape, half=half, whole=whole) == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_autograd_keeps_of_experts_what_is_estimated(half: bool, whole: bool) -> None:
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 192, "head_dim": 32}
    kept = [[kept_by_autograd(n, half, whole, experts, tokens) for tokens in (96, 192)] for n in (1, 3)]
    shape = ModelShape(128, 1, 4, 2, 32, 0, 64, experts=Experts(8, 2, 192))
    measured = (kept[1][1] - kept[1][0] - kept[0][1] + kept[0][0]) / 2 / 96
    assert autograd_activations(shape, half=half, whole=whole) == pytest.approx(measured, rel=0.15)
    apart = (kept[1][0] - kept[0][0]) / 2 - 96 * measured  # what does not grow with the tokens
    run = a_run(bf16=half, finetuning_type="full" if whole else "lora")
    slack = 3 * 128 * 128 * 2 + 2 * 4 * 8 * (2 * 128 + 3 * 192)  # weights and adapters that autocast copies
    assert apart == pytest.approx(multiplied(run, shape), abs=slack)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_weights_of_experts_are_counted(name: str) -> None:
    model = build(name)
    shape = ModelShape.from_config(model.config.to_dict())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert shape.parameters == pytest.approx(frozen, rel=0.03)  # norms and routers are not
    learnt = sum(
        p.numel()
        for n, p in model.named_parameters()
        if p.requires_grad and "gate" not in n.split(".lora")[0].split(".")[-1:] and "expert_gate" not in n
    )
    assert shape.lora_parameters(4) == pytest.approx(learnt, rel=0.02)


def kept_by_autograd(layers: int, half: bool, whole: bool, experts=None, tokens: int = 96) -> int:
    """Bytes that a forward pass over so many tokens keeps for its backward, weights left out."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = "qwen3_moe" if experts else "llama"
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, vocab_size=64, num_hidden_layers=layers, **sizes, **experts or {})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if not whole:
        model = get_peft_model(
            model.to(torch.bfloat16 if half else torch.float32), LoraConfig(r=4, target_modules="all-linear")
        )
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    ids = torch.arange(tokens)[None] % 64
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, half),
    ):
        model(input_ids=ids, labels=ids)
    return sum(size for size, _ in kept.values())


def test_trl_s_trainers_keep_their_activations_where_they_fit_well() -> None:
    """The measured 36.6 GiB of a batch of 8 pairs fit into 80 GiB and not into 48; what was asked for is obeyed."""
    run = {"engine": "trl", "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    kept, small = (run_memory(a_run(**run), QWEN_18, PAIRS, free * GIB).total for free in (80, 48))
    assert kept / GIB == pytest.approx(36.6, rel=0.13) and small < kept / 2
    for asked, expected in ((True, small), (False, kept)):
        held = run_memory(a_run(**run, gradient_checkpointing=asked), QWEN_18, PAIRS, 60 * GIB).total
        assert held == expected
    assert run_memory(a_run(**run, flash_attn="disabled"), QWEN_18, PAIRS, 80 * GIB).total == small


def test_what_a_run_trains_decides_its_optimizer() -> None:
    """Adam holds two numbers for each that is trained, 8-bit Adam two bytes, and a frozen base has neither."""
    full, small = (run_memory(a_run(stage="sft", finetuning_type="full", optim=o), QWEN_18, PAIRS, 0)
                   for o in ("adamw_torch", "adamw_8bit"))  # fmt: skip
    assert full.optimizer == 8 * QWEN_18.parameters and small.optimizer == 2 * QWEN_18.parameters
    assert full.weights == full.gradients == 4 * QWEN_18.parameters and full.adapters == 0
    quantized = run_memory(a_run(stage="sft", quantization_bit=4), QWEN_18, PAIRS, 0)
    assert quantized.weights < run_memory(a_run(stage="sft"), QWEN_18, PAIRS, 0).weights / 1.5


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


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma2", "gemma3_text", "glm4", "olmo2"])
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


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3"])
def test_a_head_that_no_file_tells_of_is_the_one_that_the_library_makes(family: str) -> None:
    config = build(family).get_base_model().config.to_dict()
    tied = config.pop("tie_word_embeddings")
    assert ModelShape.from_config(config).tied == tied


def test_recomputing_and_shorter_rows_need_less() -> None:
    sizes = {"tokens": 1700, "scored": 800}
    whole, half, none = (packed_memory(QWEN_18, **sizes, recompute=n).total for n in (0, 12, 24))
    assert whole > half > none > packed_memory(QWEN_18, tokens=100, scored=50, recompute=24).total
    assert 6 * 2**30 < whole < 9 * 2**30 and none < 5 * 2**30


def test_the_plan_gives_up_activations_before_tokens() -> None:
    plans = [packed_rows(QWEN_18, gib << 30) for gib in (60, 10, 4, 2)]
    assert plans[0] == (16384, 0)
    assert [p[1] for p in plans] == sorted(p[1] for p in plans) and plans[-1][1] == 24
    assert all(p[0] >= 512 for p in plans)


def test_a_config_without_a_size_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="intermediate_size"):
        ModelShape.from_config({"num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 1})
