"""What would stop a run is said before it starts, in one sentence beside its knob."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny

from tuner import hardware, paths
from tuner.cli import training
from tuner.config.config import make
from tuner.config.knobs import ConfigError
from tuner.jobs.planning import planned
from tuner.plan import preflight


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("preflight")
    tiny.model(root / "model")
    tiny.data(root / "data")
    return root


@pytest.fixture(autouse=True)
def at_home(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_HOME", str(studio))


def config(**values: Any) -> Any:
    plain = {"model_name_or_path": "model", "stage": "dpo", "do_train": True, "dataset": pair_set()}
    return make({**plain, **values})


def pair_set() -> str:
    catalog = json.loads((Path(paths.home()) / "data" / "dataset_info.json").read_text())
    return next(name for name, entry in catalog.items() if entry.get("ranking"))


def said(**values: Any) -> str:
    found = preflight.problems(config(**values))
    assert all("\n" not in p.sentence and p.knob for p in found)
    return " ".join(p.sentence for p in found)


def test_a_sound_run_has_no_problems() -> None:
    assert preflight.problems(config()) == []


def test_settings_that_are_damaged_stop_a_run_before_it_is_made_and_none_that_began(
    studio: Path,
) -> None:
    file = studio / "settings.yaml"
    file.write_text("executor: slurm")
    try:
        assert "settings.yaml cannot be used: executor" in said()
        preflight.notes(config(bf16=True))  # what a worker says first
        with pytest.raises(ConfigError, match="settings.yaml cannot be used"):
            training.run_here(config())
        assert not list((studio / "mlruns").glob("runs/*"))
    finally:
        file.unlink()
    assert "settings" not in said()


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"model_name_or_path": "./nowhere"}, ["./nowhere", "no folder"]),
        ({"model_name_or_path": "data"}, ["config.json"]),
        ({"adapter_name_or_path": "model"}, ["adapter_config.json"]),
        ({"dataset": "nosuchset"}, ["nosuchset"]),
        ({"stage": "sft", "dataset": None}, ["stage sft needs"]),
        ({"template": "chatmll"}, ["chatmll", "chatml"]),
        ({"eval_dataset": "nosuchset"}, ["nosuchset"]),
        ({"eval_dataset": "text"}, ["text", "dpo"]),
        ({"fp16": True}, ["--fp16", "GPU"]),
        ({"do_train": False}, ["nothing to do"]),
    ],
)
def test_what_would_stop_it_is_said(values: dict[str, Any], parts: list[str]) -> None:
    if "fp16" in values and hardware.gpus():
        pytest.skip("there is a GPU here, which can")
    values = {k: pair_set() if v is None else v for k, v in values.items()}
    sentence = said(**values)
    assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize("knob", ["bf16", "pure_bf16"])
@pytest.mark.parametrize("flags", [{"sse2"}, {"avx2"}, {"avx2", "avx512bw"}])
def test_bfloat16_is_taken_on_any_processor_with_a_word_on_its_time(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], knob: str
) -> None:
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    monkeypatch.setattr(hardware, "gpus", lambda: ())
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset(flags))
    assert preflight.problems(config(**{knob: True})) == []
    assert "times as long" in " ".join(preflight.notes(config(**{knob: True})))
    assert preflight.notes(config()) == []
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert preflight.notes(config(**{knob: True})) == []


def test_what_is_slow_where_a_run_lives_is_said_there(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    monkeypatch.setattr(hardware, "gpus", lambda: ())
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx2"}))
    file = studio / "settings.yaml"
    file.write_text("executor: ray")
    try:
        assert preflight.notes(config(bf16=True)) == []
        assert "times as long" in " ".join(preflight.notes(config(bf16=True), at_work=True))
    finally:
        file.unlink()


@pytest.mark.parametrize("knob", ["bf16", "pure_bf16"])
def test_bfloat16_is_refused_on_a_gpu_that_has_none(monkeypatch: pytest.MonkeyPatch, knob: str) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: (hardware.Gpu(0, "Tesla T4", 16 << 30, 0, (7, 5)),))
    (problem,) = preflight.problems(config(**{knob: True}))
    assert problem.knob == knob and problem.mend == {knob: False, "fp16": True}
    assert preflight.problems(config(**{knob: True}, use_cpu=True)) == []


def test_more_gpus_than_are_here_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = preflight.problems(config(num_gpus=2))
    assert "--nproc_per_node 2" in problem.sentence and problem.mend == {"num_gpus": 1}
    assert preflight.problems(config(nproc_per_node=2)) == []
    (problem,) = preflight.problems(config(nproc_per_node=2, fsdp="full_shard"))
    assert problem.knob == "fsdp" and "computes on the CPU" in problem.sentence
    cards = tuple(hardware.Gpu(i, "A100", 80 << 30, 0, (8, 0)) for i in range(2))
    monkeypatch.setattr(hardware, "gpus", lambda: cards)
    assert preflight.problems(config(num_gpus=2)) == []
    for knob in ("num_gpus", "nproc_per_node"):
        (problem,) = preflight.problems(config(**{knob: 4}))
        assert problem.knob == knob and problem.mend == {knob: 2} and "has 2" in problem.sentence


def test_experts_that_an_adapter_of_all_linears_does_not_reach_are_told(studio: Path) -> None:
    for kind, told in (("qwen2_moe", True), ("qwen3_moe", False)):
        folder = studio / kind
        tiny.model(folder)
        made = json.loads((folder / "config.json").read_text())
        made |= {"model_type": kind, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        (folder / "config.json").write_text(json.dumps(made))
        noted = " ".join(preflight.notes(config(model_name_or_path=kind)))
        assert ("leaves its 4 experts a layer as they are" in noted) == told
        assert "experts" not in " ".join(
            preflight.notes(config(model_name_or_path=kind, lora_target="q_proj"))
        )


def test_more_processes_than_the_memory_holds_are_refused() -> None:
    (problem,) = preflight.problems(config(nproc_per_node=100_000))
    assert problem.knob == "nproc_per_node" and problem.mend is not None
    assert "cores" in problem.sentence and preflight.problems(config(**problem.mend)) == []


def test_of_several_gpus_the_run_takes_one_and_the_card_counts_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = planned(config())
    cards = tuple(hardware.Gpu(i, "A100", 80 << 30, 0, (8, 0)) for i in range(4))
    monkeypatch.setattr(hardware, "gpus", lambda: cards)
    (said,) = preflight.notes(config())
    assert "4 GPUs and this run takes one" in said and "--num_gpus 4" in said
    assert preflight.notes(config(num_gpus=2)) == []
    four = planned(config())
    assert (four.steps, four.examples_per_step) == (one.steps, one.examples_per_step)


def test_patience_without_the_best_checkpoint_is_said_to_keep_the_worse_one() -> None:
    patient = {
        "early_stopping_steps": 3,
        "eval_strategy": "steps",
        "val_size": 2,
        "save_steps": 500,
        "eval_steps": 500,
    }
    (said,) = preflight.notes(config(**patient))
    assert "3 measurements after the best one" in said and "--load_best_model_at_end True" in said
    assert preflight.notes(config(**patient, load_best_model_at_end=True)) == []


def test_held_out_questions_that_are_not_there_are_told_with_a_way_on() -> None:
    (problem,) = preflight.problems(config(probe="nowhere"))
    assert problem.knob == "probe" and problem.mend == {"probe": None}
    assert "nowhere" in problem.sentence and "--probe" in problem.sentence
    assert said(probe="chat") == "" and said(**problem.mend) == ""


def test_weights_that_can_run_code_are_refused(studio: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((studio / "model" / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "safetensors" in said(model_name_or_path=str(folder))


def test_remote_code_needs_a_yes(studio: Path, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}})
    )
    (folder / "model.safetensors").write_bytes(b"")
    assert "trust_remote_code" in said(model_name_or_path=str(folder))
    assert said(model_name_or_path=str(folder), trust_remote_code=True) == ""


def test_the_card_counts_steps_as_transformers_does() -> None:
    card = planned(config(per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=2))
    rows = card.rows
    assert rows
    batches = -(-rows // 2)
    assert card.steps == 2 * -(-batches // 4)
    assert planned(config(max_steps=7)).steps == 7
    dropping = {"dataloader_drop_last": True, "num_train_epochs": 1}
    for size in (1, 3, 5, rows):
        assert planned(config(per_device_train_batch_size=size, **dropping)).steps == rows // size
    (problem,) = preflight.problems(config(per_device_train_batch_size=rows + 1, **dropping))
    assert "make none" in problem.sentence and problem.mend == {"dataloader_drop_last": False}
    assert planned(config(max_samples=3, per_device_train_batch_size=1, num_train_epochs=1)).steps == 3


def test_the_card_counts_the_rows_that_are_kept_aside_as_the_run_does() -> None:
    whole = planned(config()).rows
    assert whole
    for val_size, aside in ((0.1, math.ceil(whole * 0.1)), (3, 3), (whole - 1, whole - 1)):
        card = planned(config(val_size=val_size, per_device_train_batch_size=1, num_train_epochs=1))
        assert card.rows == whole - aside
    assert f"give a count up to {whole - 1:,}" in said(val_size=whole)
    assert "neither a share below 1 nor a count" in said(val_size=2.5)
    assert "neither a share below 1 nor a count" in said(val_size=2.5, streaming=True, max_steps=1)
    assert said(val_size=whole - 1) == ""


def test_the_card_tells_memory_from_the_model_and_the_rows() -> None:
    card = planned(config())
    assert card.memory is not None and card.memory.total > card.memory.weights > 0
    assert 0 < card.free <= hardware.usage(Path("/")).memory_total
    larger = planned(config(per_device_train_batch_size=32, engine="trl"))
    assert larger.memory is not None and larger.memory.activations > card.memory.activations
    assert planned(config(model_name_or_path="nobody/nowhere")).memory is None
