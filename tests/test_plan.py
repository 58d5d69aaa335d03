"""What is planned before launch is what the worker does: the same engine, steps, recomputed layers, rows and devices."""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from examples import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_stages import config_of, trained

from tests import counting
from tuner import hardware
from tuner.config.config import Config, make
from tuner.config.kinds import KINDS, ONLY_TRL, STAGES
from tuner.config.knobs import ConfigError
from tuner.engine import trainer as engine_trainer
from tuner.engine.losses import PAIR_LOSSES
from tuner.engine.packed.forms import ACTIVATIONS, NORMS
from tuner.engine.packed.memory import rows_with
from tuner.engine.packed.trainer import PackedTrainer
from tuner.jobs import planning, slots
from tuner.jobs.live import Outcome
from tuner.models.llama_family import LAYER_CLASSES
from tuner.plan import engine, schedule
from tuner.plan.engine import PACKED, TRL, WRITTEN_OUT, refusal, written_out
from tuner.plan.facts import Data, Machine, model_of
from tuner.plan.memory import weights
from tuner.plan.plan import Plan, Truth, as_plain, plan_of, truth_of
from tuner.runs import checkpoints
from tuner.runs.run import Run


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        tiny.model(home / "model", hidden=64)
        tiny.data(home / "data", rows=11)
        tiny.model(home / "experts", hidden=64, layers=1, experts=2)
        for name, made in FAMILIES.items():
            made().save_pretrained(home / name)
            tiny.tokenizer(home / name)
        yield home


# Heads of 16 numbers, which the kernels on a GPU take: the worker here only pretends that it has one.
SIZES = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _family(name: str, **more: Any) -> Callable[[], Any]:
    def made() -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SIZES | more))

    return made


FAMILIES = {
    "qwen3": _family("qwen3", head_dim=16, num_key_value_heads=2),
    "neox": _family("gpt_neox"),
    "gemma2": _family("gemma2", head_dim=16, num_key_value_heads=2),
    "windowed": _family("mistral", num_key_value_heads=2, sliding_window=8),
    "wide": _family("mistral", num_key_value_heads=2, sliding_window=4096),
}
TWISTS: list[dict[str, Any]] = [
    *({"model_name_or_path": name} for name in (*FAMILIES, "experts")),
    *({"pref_loss": name} for name in ("ipo", "simpo", "orpo", "aot", "sigmoid,bco_pair", "sppo_hard")),
    *({"finetuning_type": name} for name in ("full", "freeze", "oft")),
    {"engine": "trl"}, {"lora_dropout": 0.1}, {"use_dora": True}, {"optim": "adafactor"},
    {"loraplus_lr_ratio": 8.0}, {"neftune_noise_alpha": 5.0}, {"additional_target": "lm_head"},
    {"add_tokens": "<a>,<b>", "resize_vocab": True}, {"pissa_init": True}, {"ref_model": "model"},
    {"upcast_layernorm": True}, {"lora_target": "q_proj,v_proj"}, {"lora_rank": 2}, {"lora_rank": 64},
    {"engine_preset": "memory"}, {"engine_token_budget": 64}, {"gradient_checkpointing": True},
    {"gradient_checkpointing": False}, {"disable_gradient_checkpointing": True}, {"pure_bf16": True},
    {"dataloader_drop_last": True}, {"val_size": 3}, {"val_size": 0.3}, {"max_samples": 7}, {"streaming": True},
    {"packing": True}, {"cutoff_len": 8}, {"max_steps": -1, "num_train_epochs": 2.5},
]  # fmt: skip
NONE_SUCH = (("decide", "cutoff_len"), ("rm", "additional_target"))
"""What ends as it begins, whatever was planned: a question is never cut, and none is of 8 tokens; a model that scores has
no lm_head."""
GPUS = {"cpu": 0, "one": 1, "four": 4}


def drawn() -> st.SearchStrategy[tuple[dict[str, Any], str, int]]:
    """A config's knobs, the GPUs of a machine and the bytes that each has free."""
    plain = st.fixed_dictionaries(
        {
            "stage": st.sampled_from((*STAGES, "dpo", "dpo", "kto")),
            "per_device_train_batch_size": st.integers(1, 4),
            "gradient_accumulation_steps": st.integers(1, 4),
            "max_steps": st.sampled_from((-1, -1, 5)),
            "num_train_epochs": st.sampled_from((1.0, 2.0, 0.5)),
        }
    )
    twists = st.lists(st.sampled_from(TWISTS), max_size=2)
    values = st.builds(lambda p, t: {k: v for one in (p, *t) for k, v in one.items()}, plain, twists)
    values = values.filter(
        lambda made: not any(made["stage"] == stage and knob in made for stage, knob in NONE_SUCH)
    )
    free = st.integers(22, 36).map(lambda power: 1 << power)
    return st.tuples(values, st.sampled_from(sorted(GPUS)), free)


def built(config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """The trainer of a run, ready to train on its rows, and the step at which it would end."""
    module = importlib.import_module(f"tuner.stages.{config.stage}")
    kept: list[Any] = []

    def fit(trainer: Any, config: Config, run: Any, start: Any, **_: Any) -> Outcome:
        engine_trainer._prepare(trainer, config, run, start)
        kept.extend((trainer, engine_trainer._last_step(trainer)))
        return Outcome()

    monkeypatch.setattr(module, "fit", fit)
    trained(config, uuid.uuid4().hex)
    return kept[0], kept[1]


def hold_plan_against_worker(values: dict[str, Any], machine: str, free: int) -> None:
    try:
        config = config_of(values["stage"], **{k: v for k, v in values.items() if k != "stage"})
    except ConfigError:
        return  # knobs that contradict each other
    cards = tuple(hardware.Gpu(i, "A100", free, 0, (8, 0)) for i in range(GPUS[machine]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "gpus", lambda: cards)
        patch.setattr(engine_trainer, "on_gpu", lambda config: bool(cards) and not config.use_cpu)
        made = planning.planned(config)
        if list(schedule.problems(config, made.data.rows)):  # the worker says so too
            with pytest.raises(ConfigError):
                built(config, patch)
            return
        trainer, last = built(config, patch)
        wanted = slots.wanted(None, config.use_cpu, [g.index for g in cards], made.devices)
    assert wanted[1] == made.devices == trainer.args.world_size == 1
    padded = getattr(trainer, "padded", False)  # sized as packed rows are
    packed = isinstance(trainer, PackedTrainer) and not padded
    assert (made.engine == PACKED) == packed, (made.why, config.changed())
    if not made.roughly:
        assert made.steps == last, config.changed()
    if padded:
        return
    if not packed:
        assert bool(made.recompute) == trainer.args.gradient_checkpointing, config.changed()
        return
    model = model_of(config)
    left = free - (weights(config, model.shape) if model.shape else 0)
    alone = replace(trainer.engine, planned=None)
    assert rows_with(trainer.model, bool(cards), left, alone) == made.budget, config.changed()
    assert made.budget is not None
    if not cards:
        assert trainer.in_use() == (made.token_budget, made.recompute), config.changed()


@settings(max_examples=examples(6), suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(({"stage": "dpo", "per_device_train_batch_size": 1, "max_steps": 5}, "four", 1 << 22))
@example(({"stage": "grpo", "per_device_train_batch_size": 1, "max_steps": -1}, "cpu", 1 << 30))
@example(({"stage": "ppo", "per_device_train_batch_size": 2, "max_steps": -1}, "cpu", 1 << 30))
@given(drawn())
def test_the_worker_does_what_was_planned(studio: Path, run: tuple[dict[str, Any], str, int]) -> None:
    hold_plan_against_worker(*run)


@pytest.mark.slow
@settings(max_examples=examples(250), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn())
def test_the_worker_does_what_was_planned_in_many_more_runs(
    studio: Path, run: tuple[dict[str, Any], str, int]
) -> None:
    hold_plan_against_worker(*run)


@pytest.mark.slow
@pytest.mark.parametrize("twist", TWISTS, ids=str)
@pytest.mark.parametrize("machine", ["cpu", "four"])
def test_each_knob_alone(studio: Path, twist: dict[str, Any], machine: str) -> None:
    hold_plan_against_worker({"stage": "dpo"} | twist, machine, 1 << 30)


# --- the rules themselves --------------------------------------------------------------------------------------------


def test_a_run_takes_one_of_four_gpus_and_the_plan_counts_with_one(
    studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = tuple(hardware.Gpu(i, "A100", 80 << 30, 60 << 30 if i else 0, (8, 0)) for i in range(4))
    config = config_of("dpo", max_steps=-1, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    alone = planning.planned(config)
    monkeypatch.setattr(hardware, "gpus", lambda: cards)
    four = planning.planned(config)
    assert (four.devices, four.on_gpu, four.free) == (1, True, 80 << 30)
    assert (four.steps, four.examples_per_step) == (alone.steps, alone.examples_per_step) == (9, 4)
    assert planning.planned(config, gpus=(2,)).free == 20 << 30
    assert slots.wanted(None, False, range(4), four.devices) == (("gpu0", "gpu1", "gpu2", "gpu3"), 1)


def test_a_kind_that_takes_more_devices_waits_for_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "count", replace(counting.KIND, devices=2))
    made = planning.planned(counting.CountConfig())
    assert made == Plan(devices=2, on_gpu=False, free=made.free)
    assert slots.wanted(None, False, range(4), made.devices)[1] == 2


def test_a_plan_is_read_back_as_it_was_written(studio: Path) -> None:
    for config in (config_of("dpo"), config_of("sft", model_name_or_path="nobody/nowhere"), config_of("rm")):
        made = planning.planned(config)
        assert plan_of(json.loads(json.dumps(as_plain(made)))) == made
    came = Truth(steps=3, engine=TRL, why=made.why, disk=9)
    assert truth_of(json.loads(json.dumps(as_plain(came)))) == came
    assert plan_of(None) is None and plan_of([]) is None and truth_of(None) == Truth()


def test_what_came_true_stands_beside_the_plan(studio: Path) -> None:
    live, _ = trained(config_of("dpo", max_steps=3, save_strategy="steps", save_steps=2), "true")
    made, came = planning.of(live.run), planning.truth(live.run)
    assert made is not None and made.memory is not None and made.disk is not None
    assert (came.steps, came.engine, came.why) == (made.steps, made.engine, made.why) == (3, PACKED, made.why)
    assert (came.recompute, came.token_budget) == (made.recompute, made.token_budget)
    assert came.memory and came.memory == live.run.status().memory_peak
    assert made.saves == len(checkpoints.of(live.run)) == 2
    assert came.disk and came.disk > made.disk  # the tokenizer and the trainer's own files come on top
    live, _ = trained(config_of("sft", max_steps=1, neftune_noise_alpha=5.0), "not-packed")
    came, why = planning.truth(live.run), "neftune_noise_alpha adds noise to the embeddings."
    assert (came.engine, came.token_budget, str(came.why)) == (TRL, None, why)
    assert live.run.status().notes == [f"Engine: TRL, because {why}"]


def test_a_plan_that_cannot_hold_is_told(studio: Path) -> None:
    """A budget that was planned for a device with less free memory than there was, and an engine that was not known."""
    config = config_of("dpo", max_steps=1)
    trainer, _ = _trainer_of(config)
    big = planning.plan(config, Machine(True, 1 << 40), Data(), model_of(config)).budget
    engine = replace(trainer.engine, planned=big)
    assert rows_with(trainer.model, True, 1 << 40, engine) == big
    small = rows_with(trainer.model, True, 1 << 22, engine)
    assert big is not None and small.token_budget < big.token_budget


def _trainer_of(config: Config) -> tuple[Any, int]:
    with pytest.MonkeyPatch.context() as patch:
        return built(config, patch)


def test_a_run_without_a_plan_has_none(studio: Path) -> None:
    run = Run("older")
    run.create(config_of("sft"), "older")
    assert planning.of(run) is None and planning.truth(run) == Truth()
    planning.record(run, steps=3)
    assert not (run.folder / "plan.json").exists()


def test_packed_rows_asked_for_in_vain_are_refused_before_launch(studio: Path) -> None:
    from tuner.plan.preflight import problems

    (problem,) = problems(config_of("dpo", engine="packed", neftune_noise_alpha=5.0))
    assert "--engine packed" in problem.sentence and "neftune_noise_alpha" in problem.sentence
    assert problem.mend == {"engine": "auto"}
    assert problems(config_of("dpo", engine="packed")) == []


def test_what_the_tables_of_both_towers_hold_is_the_same() -> None:
    assert set(KINDS["dpo"].losses) - ONLY_TRL == set(PAIR_LOSSES)
    assert NORMS.keys() == WRITTEN_OUT and ACTIVATIONS.keys() == engine.ACTIVATIONS
    assert {name.lower().removesuffix("decoderlayer") for name in LAYER_CLASSES} <= WRITTEN_OUT


def test_a_running_mean_over_several_processes_is_left_to_trl() -> None:
    alone = config_of("dpo", pref_bco_weight=0.5, use_cpu=True)
    assert not refusal(alone, {"model_type": "llama"})
    several = config_of("dpo", pref_bco_weight=0.5, use_cpu=True, nproc_per_node=2)
    assert "running mean" in str(refusal(several, {"model_type": "llama"}))
    assert not refusal(config_of("dpo", use_cpu=True, nproc_per_node=2), {"model_type": "llama"})


def test_why_not_packed_is_said_of_a_model_that_only_its_files_describe() -> None:
    config = config_of("dpo")
    for model, word in [
        ({"model_type": "llama", "quantization_config": {"bits": 4, "quant_method": "gptq"}}, "quantized"),
        ({"model_type": "llama4_text", "layer_types": ["chunked_attention"]}, "plain causal"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "plain causal"),
        ({"model_type": "llama", "is_causal": False}, "plain causal"),
        ({"model_type": "recurrent_gemma", "block_types": ["recurrent", "attention"]}, "plain causal"),
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}, "length of the input"),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "dynamic"}}},
            "length of",
        ),
        ({"model_type": "gemma3", "vision_config": {}}, "more than text"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "decoder"),
        ({"model_type": "gpt_oss", "num_local_experts": 8}, "plain causal"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 8, "kv_lora_rank": 16}, "plain causal"),
        ({"model_type": "cohere", "logit_scale": 0.1}, "rescales"),
    ]:
        assert word in str(refusal(config, model)), model
    mixture = {"model_type": "qwen3_moe", "num_experts": 8}
    assert not refusal(config, mixture)
    assert "balances experts" in str(refusal(config.with_values(moe_aux_loss_coef=0.01), mixture))
    assert not refusal(
        config, {"model_type": "cohere2", "layer_types": ["sliding_attention", "full_attention"]}
    )
    continued = config_of("dpo", pref_loss="simpo", adapter_name_or_path="a")
    assert "not LoRA" in str(refusal(continued, {}, {"peft_type": "OFT"}))
    assert not refusal(continued, {}, {"peft_type": "LORA", "r": 4, "modules_to_save": ["lm_head"]})


def test_attention_with_dropout_is_left_to_trl_where_it_would_count() -> None:
    """Packed attention has none; where answers are compared with a reference, it is off in either engine."""
    model = {"model_type": "llama", "attention_dropout": 0.1}
    assert "dropout" in str(refusal(config_of("sft"), model)) and "dropout" in str(
        refusal(config_of("rm"), model)
    )
    assert not refusal(config_of("dpo"), model)
    assert not refusal(config_of("sft"), model | {"attention_dropout": 0.0})


def test_heads_that_no_kernel_takes_are_not_planned_to_be_recomputed() -> None:
    """OpenLLaMA-3B's heads have 100 numbers: on a GPU its own layers run, which keep what they computed."""
    config = make({"stage": "dpo", "model_name_or_path": "m", "dataset": "d"})
    model = {"model_type": "llama", "hidden_size": 3200, "num_attention_heads": 32}
    assert not written_out(config, model, True) and written_out(config, model, False)
    assert written_out(config, model | {"head_dim": 64}, True)
