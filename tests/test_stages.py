"""Every stage with every method: a tiny real model learns a set by heart, saves, and plain transformers and PEFT load it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch

from tuner.config.config import Config, make
from tuner.config.kinds import GROUPED, REWARDED
from tuner.config.reading import read
from tuner.engine.live import LiveRun
from tuner.engine.trainer_log import read as read_log
from tuner.jobs.live import Outcome
from tuner.runs.run import Run, series

SETS = {
    "pt": "text", "sft": "chat", "rm": "pairs", "dpo": "pairs", "kto": "labelled", "decide": "decisions"
} | dict.fromkeys(REWARDED, "chat")  # fmt: skip
IDS = torch.tensor([[1, 4, 260, 270, 280, 5, 290, 300, 2]])


class Case(NamedTuple):
    """A run, and the share of its first loss that is left at the end."""

    stage: str
    left: float
    changes: dict[str, Any] = {}
    needs: str = ""

    @property
    def name(self) -> str:
        return "-".join([self.stage, *(f"{k}={v}" for k, v in self.changes.items())]) or self.stage


FULL = {"finetuning_type": "full", "learning_rate": 3e-3}
FREEZE = {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_extra_modules": "lm_head"}
LEFT = {"pt": 0.9, "sft": 0.9, "rm": 0.8, "dpo": 0.8, "kto": 0.95, "decide": 0.9}
TABLE = [
    *(Case(stage, left) for stage, left in LEFT.items()),
    *(Case(stage, left, FULL) for stage, left in LEFT.items()),
    *(Case(s, left, FREEZE if s != "rm" else {"finetuning_type": "freeze"}) for s, left in LEFT.items()),
    Case("sft", 0.99, {"finetuning_type": "oft", "oft_block_size": 8}),
    Case("sft", 0.9, {"use_dora": True}),
    Case("sft", 0.9, {"use_rslora": True}),
    Case("sft", 0.9, {"pissa_init": True}),
    Case("sft", 0.9, {"loraplus_lr_ratio": 4.0}),
    Case("sft", 0.95, {"neftune_noise_alpha": 5.0}),
    Case("sft", 0.9, {"packing": True, "cutoff_len": 128}),
    Case("sft", 0.9, {"streaming": True, "buffer_size": 8}),
    Case("rm", 0.8, {"streaming": True, "buffer_size": 8}),
    Case("sft", 0.9, {"quantization_bit": 4}, needs="bitsandbytes"),
    Case("sft", 0.9, {"quantization_bit": 8}, needs="bitsandbytes"),
    Case("sft", 0.9, {"add_special_tokens": "<|think|>,<|done|>"}),
    Case("dpo", 0.9, {"pissa_init": True}),
    Case("dpo", 0.95, {"pref_bco_weight": 0.5, "engine": "trl"}),
    Case("dpo", 0.95, {"pref_loss": "sigmoid,aot,sft", "pref_loss_weights": "0.5,0.5,1"}),
]


class Watched(LiveRun):
    """Keeps the trained model as the loop had it."""

    model: Any = None

    @cached_property
    def callback(self) -> Any:
        made = super().callback

        def keep(args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.model = model

        made.on_train_end = keep
        return made


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        tiny.model(home / "model", hidden=64)
        tiny.data(home / "data")
        yield home


def config_of(stage: str, **changes: Any) -> Config:
    values = {
        "model_name_or_path": "model",
        "stage": stage,
        "do_train": True,
        "dataset": SETS[stage],
        "dataset_dir": "data",
        "max_steps": 16,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    if stage in REWARDED:
        values |= {"reward_funcs": ["json_valid"], "max_new_tokens": 8}
    if stage in GROUPED:
        values["num_generations"] = 2
    return make(values | changes)


def trained(config: Config, name: str, kind: type[Watched] = Watched) -> tuple[Watched, Outcome]:
    """Run a stage as the worker does, without the tracker; go on where a run of that name stopped."""
    run = Run(name)
    if not run.exists:
        run.create(config, name)
    live = kind(run, config)
    outcome = importlib.import_module(f"tuner.stages.{config.stage}").train(config, live)
    return live, outcome


def losses(live: LiveRun) -> list[float]:
    return series(live.run.metrics()[0], "loss")[1]


def reloaded(config: Config, outcome: Outcome) -> Any:
    """What somebody else gets from the output folder, with nothing of ours."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    kind = AutoModelForSequenceClassification if config.stage == "rm" else AutoModelForCausalLM
    more: dict[str, Any] = {"num_labels": 1} if config.stage == "rm" else {}
    if config.quantization_bit:
        said = {"load_in_8bit": True} if config.quantization_bit == 8 else _four_bits()
        more["quantization_config"] = BitsAndBytesConfig(**said)
    if not outcome.adapter:
        return kind.from_pretrained(outcome.weights, dtype=torch.float32, **more).eval()
    base = json.loads((outcome.weights / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(base).is_absolute()
    return PeftModel.from_pretrained(
        kind.from_pretrained(base, dtype=torch.float32, **more), str(outcome.weights)
    ).eval()


def _four_bits() -> dict[str, Any]:
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    }


def cases() -> list[Any]:
    """The table; in the fast suite each stage with LoRA, each method with SFT, and what is of one stage alone."""
    return [pytest.param(c, id=c.name, marks=[] if is_quick(c) else [pytest.mark.slow]) for c in TABLE]


def is_quick(case: Case) -> bool:
    """Whole and frozen weights take one way in every stage; what test_pissa.py holds to more is there."""
    method = case.changes.get("finetuning_type", "lora")
    again = case.stage != "sft" and (method in ("full", "freeze") or "streaming" in case.changes)
    return not again and "pissa_init" not in case.changes


@pytest.mark.parametrize("case", cases())
def test_learns_saves_and_loads_elsewhere(studio: Path, case: Case) -> None:
    if case.needs and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    config = config_of(case.stage, **case.changes)
    live, outcome = trained(config, f"run-{TABLE.index(case)}")
    curve = losses(live)
    assert curve[-1] < case.left * curve[0], curve
    assert outcome.weights is not None
    assert list(outcome.weights.glob("*.bin")) == []
    with torch.no_grad():
        ours = live.model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        theirs = reloaded(config, outcome)(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert torch.allclose(ours.float(), theirs.float(), atol=2e-4), (ours - theirs).abs().max()


def test_the_output_folder_has_what_scripts_of_the_other_tool_read(studio: Path) -> None:
    config = config_of("dpo", val_size=2, eval_strategy="steps", eval_steps=8, output_dir="out of dpo")
    live, outcome = trained(config, "files")
    assert outcome.weights == live.output
    rows = read_log(live.output / "trainer_log.jsonl")
    learnt = [row for row in rows if "loss" in row]
    assert [row["current_steps"] for row in learnt] == list(range(1, 17))
    wanted = {"current_steps", "total_steps", "loss", "accuracy", "lr", "epoch", "percentage", "elapsed_time",
              "remaining_time", "throughput", "total_tokens"}  # fmt: skip
    assert all(set(row) == wanted and row["total_steps"] == 16 for row in learnt)
    assert learnt[3]["percentage"] == 25.0 and learnt[-1]["remaining_time"] == "0:00:00"
    assert re.fullmatch(r"\d+:\d\d:\d\d", learnt[0]["elapsed_time"])
    assert [row["loss"] for row in learnt] == pytest.approx(losses(live))
    assert [row["current_steps"] for row in rows if "eval_loss" in row][:2] == [8, 16]
    for name, key in (
        ("train_results", "train_loss"),
        ("eval_results", "eval_loss"),
        ("all_results", "train_runtime"),
    ):
        assert key in json.loads((live.output / f"{name}.json").read_text())
    assert (live.output / "trainer_state.json").is_file()
    assert make(read(live.output / "training_args.yaml")) == config
    card = (live.output / "README.md").read_text()
    for part in (
        "base_model: model",
        "library_name: peft",
        "| pairs | ",
        "| eval_loss | ",
        "| learning_rate | 0.01 |",
    ):
        assert part in card
    assert str(studio) not in card
    code = (
        card.partition("```python\n")[2].partition("```")[0].replace("PATH_OF_THIS_FOLDER", str(live.output))
    )
    loaded: dict[str, Any] = {}
    exec(code, loaded)  # noqa: S102 what the card tells people to run
    assert type(loaded["model"]).__name__ == "PeftModelForCausalLM"


def test_a_resumed_log_has_every_step_once(studio: Path) -> None:
    config = config_of("sft", max_steps=6, save_strategy="steps", save_steps=3)
    live, _ = trained(config, "log again")
    path = live.output / "trainer_log.jsonl"
    first = read_log(path)
    shutil.rmtree(live.run.checkpoints / "checkpoint-6")
    path.write_text(path.read_text() + '{"current_steps": 6, "cut off')
    live, _ = trained(
        config.with_values(resume_from_checkpoint=str(live.run.checkpoints / "checkpoint-3")), "log again"
    )
    again = read_log(path)
    steps = [row["current_steps"] for row in again if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert again[:3] == first[:3]


def test_the_head_of_a_reward_model_is_drawn_by_the_seed(studio: Path) -> None:
    losses = []
    for name, seed in (("head-a", 5), ("head-b", 5), ("head-c", 6)):
        torch.rand(3)  # whatever was drawn before
        live, _ = trained(config_of("rm", max_steps=1, seed=seed), name)
        losses.append(series(list(live.run.metrics()[0]), "loss")[1][0])
    assert losses[0] == losses[1] != losses[2]
