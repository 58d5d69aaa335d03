"""What the loop, PEFT and TRL would refuse is told before launch, and nothing that they take is."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stages import IDS, SETS, config_of, reloaded, trained
from transformers import TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR, get_scheduler

from tuner.config import loop_rules
from tuner.config.config import KNOBS, check, make
from tuner.config.knobs import ConfigError
from tuner.config.libraries import TRACKERS
from tuner.engine import adapters
from tuner.models.loading import Source
from tuner.plan import model_checks, preflight


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("rules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        tiny.model(home / "model")
        tiny.data(home / "data")
        catalog = json.loads((home / "data" / "dataset_info.json").read_text())
        for name in SETS.values():
            shutil.copy(home / "data" / f"{name}.json", home / "data" / f"{name}2.json")
            catalog[f"{name}2"] = catalog[name] | {"file_name": f"{name}2.json"}
        (home / "data" / "dataset_info.json").write_text(json.dumps(catalog))
        yield home


MINIMAL = {"model_name_or_path": "m", "stage": "sft", "do_train": True, "dataset": "d"}
STEPS = st.sampled_from([0.1, 0.2, 0.25, 0.5, 1, 2, 3, 4, 2.5, 500])


@settings(max_examples=examples(150))
@given(
    best=st.booleans(),
    evaluates=st.sampled_from(["no", "steps", "epoch"]),
    saves=st.sampled_from(["no", "steps", "epoch", "best"]),
    eval_steps=st.one_of(st.none(), STEPS),
    save_steps=STEPS,
    logging_steps=STEPS,
    schedule=st.sampled_from(["linear", "reduce_lr_on_plateau", "greedy"]),
    prefetch=st.sampled_from([None, None, 2]),
)
def test_transformers_and_the_rules_refuse_the_same(
    best: bool, evaluates: str, saves: str, eval_steps: float | None,
    save_steps: float, logging_steps: float, schedule: str, prefetch: int | None,
) -> None:  # fmt: skip
    said = {
        "load_best_model_at_end": best, "eval_strategy": evaluates, "save_strategy": saves, "eval_steps": eval_steps,
        "save_steps": save_steps, "logging_steps": logging_steps, "lr_scheduler_type": schedule,
        "dataloader_prefetch_factor": prefetch,
    }  # fmt: skip
    try:
        logging.disable(logging.WARNING)
        TrainingArguments(output_dir="unused", use_cpu=True, **said)
        # Its constructor does not ask what saving the best goes by; its trainer does, at the end of the loop.
        theirs = (saves == "best" or best) and evaluates == "no"
    except ValueError:
        theirs = True
    finally:
        logging.disable(logging.NOTSET)
    every = eval_steps or logging_steps
    if best and evaluates == saves == "steps" and every < 1 < save_steps:
        theirs = True  # it takes 500 with 0.25, which have no remainder and do not meet
    values = MINIMAL | said | ({"val_size": 2} if evaluates != "no" else {})
    _, found = check(values)
    assert bool(found) == theirs, found
    assert all("\n" not in p.sentence and p.mend for p in found)
    for _ in range(4):  # every mend leads out, if need be one after the other
        for problem in found:
            values |= problem.mend
        values |= {"val_size": 2} if values["eval_strategy"] != "no" else {}
        _, found = check(values)
    assert not found


def test_the_schedules_know_what_transformers_knows() -> None:
    own = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for kind, make_one in TYPE_TO_SCHEDULER_FUNCTION.items():
        source: Any = {
            "greedy": GreedyLR,
            "reduce_lr_on_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
        }.get(kind.value, make_one)
        assert set(inspect.signature(source).parameters) - own == loop_rules.SCHEDULES[kind.value], kind
    assert set(KNOBS["lr_scheduler_type"].choices) == {kind.value for kind in TYPE_TO_SCHEDULER_FUNCTION}


@pytest.mark.parametrize("schedule", KNOBS["lr_scheduler_type"].choices)
@pytest.mark.parametrize(
    "said", [None, {"num_cycles": 1}, {"foo": 1}, {"min_lr": 1e-6}, {"num_decay_steps": 3}]
)
def test_a_schedule_that_cannot_be_made_is_told(schedule: str, said: dict[str, Any] | None) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(schedule, optimizer, 2, 10, said or {})
        theirs = False
    except (TypeError, ValueError):
        theirs = True
    values = MINIMAL | {
        "lr_scheduler_type": schedule,
        "lr_scheduler_kwargs": said,
        "eval_strategy": "steps",
        "val_size": 2,
    }
    _, found = check(values)
    assert bool(found) == theirs
    for problem in found:
        values |= problem.mend
    assert not check(values)[1]


# --- what an evaluation tells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"stage": "pt"}, marks=pytest.mark.slow),  # as sft, without answers
        {"stage": "sft", "compute_accuracy": True},
        pytest.param({"stage": "sft", "use_eaft_loss": True}, marks=pytest.mark.slow),  # names what sft does
        {"stage": "rm"},
        {"stage": "dpo"},
        {"stage": "dpo", "engine": "trl"},
        {"stage": "dpo", "pref_loss": "sigmoid,aot"},
        {"stage": "kto"},
        {"stage": "kto", "engine": "trl"},
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
def test_best_can_be_any_result_of_any_set(studio: Path, changes: dict[str, Any]) -> None:
    """Each set measured by itself has names of its own, and each of them can be what best means."""
    one = SETS[changes["stage"]]
    config = config_of(
        **changes, eval_dataset=f"{one},{one}2", eval_on_each_dataset=True, eval_strategy="steps", eval_steps=1,
        max_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model=f"eval_{one}2_loss",
    )  # fmt: skip
    names = {f"eval_{name}" for name in loop_rules.results(config)}
    last = sorted(names)[-1]
    config = config.with_values(metric_for_best_model=last)
    live, outcome = trained(config, "-".join([*changes, *map(str, changes.values())]).replace(",", "-"))
    assert outcome.weights is not None
    found = {name for row in live.run.metrics()[0] for name in row if name.startswith("eval_")}
    assert names <= found
    assert all(name.startswith((f"eval_{one}_", f"eval_{one}2_")) for name in found), found
    state = json.loads((outcome.weights / "trainer_state.json").read_text())
    assert state["best_metric"] is not None


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"load_best_model_at_end": True}, ["eval_chat_loss", "eval_chat2_loss"]),
        ({"early_stopping_steps": 1}, ["eval_chat_loss"]),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ["eval_chat_loss"]),
        ({"metric_for_best_model": "eval_chat3_loss"}, ["eval_chat3_loss", "eval_chat_loss"]),
        ({"eval_on_each_dataset": False, "metric_for_best_model": "rouge"}, ["rouge", "eval_loss"]),
        ({"eval_on_each_dataset": False, "metric_for_best_model": "accuracy"}, ["--compute_accuracy True"]),
    ],
)
def test_best_by_what_is_not_measured_is_refused(changes: dict[str, Any], parts: list[str]) -> None:
    base = {
        "eval_dataset": "chat,chat2",
        "eval_on_each_dataset": True,
        "eval_strategy": "steps",
        "save_steps": 500,
    }
    values = MINIMAL | base | {"eval_steps": 500} | changes
    (problem,) = check(values)[1]
    assert all(part in problem.sentence for part in parts)
    assert not check(values | dict(problem.mend))[1]


def test_a_reward_model_is_asked_no_questions() -> None:
    values = MINIMAL | {"stage": "rm", "probe": "starter_eval_dpo"}
    (problem,) = check(values)[1]
    assert problem.knob == "probe" and "writes none" in problem.sentence
    assert not check(values | dict(problem.mend))[1]


# --- names of layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "knob", "parts"),
    [
        ({"lora_target": "q_prj"}, "lora_target", ["q_prj", "did you mean q_proj"]),
        ({"lora_target": "q_proj,c_attn"}, "lora_target", ["c_attn", "q_proj", "down_proj"]),
        ({"lora_target": r".*\.c_attn"}, "lora_target", ["c_attn", "q_proj"]),
        ({"additional_target": "lm_haed"}, "additional_target", ["did you mean lm_head"]),
        ({"finetuning_type": "oft", "oft_target": "w_pack"}, "oft_target", ["w_pack"]),
        ({"lora_rank": 60_000}, "lora_rank", ["60000", "GiB", "8 to 64"]),
        (
            {"use_llama_pro": True, "freeze_trainable_layers": 3},
            "freeze_trainable_layers",
            ["does not divide", "2 layers"],
        ),
        ({"probe": "nosuch"}, "probe", ["nosuch"]),
        ({"probe": "text"}, "probe", ["text", "no questions"]),
        ({"resume_from_checkpoint": "checkpoint-7"}, "resume_from_checkpoint", ["checkpoint-7"]),
        ({"deepspeed": "ds.json"}, "deepspeed", ["ds.json is no file"]),
        ({"optim": "grokadamw"}, "optim", ["grokadamw", "pip install"]),
        ({"report_to": "wandb"}, "report_to", ["wandb", "pip install wandb"]),
        ({"use_galore": True, "finetuning_type": "full"}, "use_galore", ["GaLore", "pip install"]),
        ({"tf32": True}, "tf32", ["Ampere"]),
    ],
)
def test_it_is_said_before_launch(
    studio: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], knob: str, parts: list[str]
) -> None:
    if "lora_rank" in values:
        monkeypatch.setattr(model_checks.hardware, "whole_memory", lambda use_cpu: 1 << 28)
    found = [p for p in preflight.problems(config_of("sft", **values)) if p.knob == knob]
    assert any(all(part in p.sentence for part in parts) for p in found), found


def test_trackers_are_those_of_transformers() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(INTEGRATION_TO_CALLBACK) - set(TRACKERS) == {"mlflow", "kubeflow"}
    assert set(TRACKERS) <= set(INTEGRATION_TO_CALLBACK)


@pytest.mark.parametrize("target", ["lm_head", "lm_head,q_proj", "all,lm_head"])
def test_an_adapter_on_the_head_is_refused_with_a_mend(target: str) -> None:
    values = MINIMAL | {"lora_target": target}
    (problem,) = check(values)[1]
    assert problem.knob == "lora_target" and "--additional_target lm_head" in problem.sentence
    mended = make(values | dict(problem.mend))
    assert mended.additional_target == ("lm_head",) and "lm_head" not in mended.lora_target


@pytest.mark.parametrize("target", [r".*(q_proj|lm_head)", "nosuch", r"layers\.7\..*"])
def test_the_worker_says_it_before_data_and_weights(studio: Path, target: str) -> None:
    from transformers import AutoModelForCausalLM

    source = Source(studio / "model", str(studio / "model"))
    with pytest.raises(ConfigError, match="lora_target"):
        adapters.check_layers(config_of("sft", lora_target=target), source, AutoModelForCausalLM)
    adapters.check_layers(config_of("sft", lora_target="all"), source, AutoModelForCausalLM)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("target", ["all", "q_proj,down_proj", r".*\.(k|v)_proj"])
def test_llama_pro_with_an_adapter_trains_the_new_blocks_alone(studio: Path, stage: str, target: str) -> None:
    config = config_of(stage, use_llama_pro=True, freeze_trainable_layers=1, lora_target=target, max_steps=2)
    live, outcome = trained(config, f"pro-{stage}-{len(target)}")
    changed = {n for n, p in live.model.named_parameters() if p.requires_grad}
    assert changed and all(".layers.1." in name for name in changed)
    with torch.no_grad():
        ours, theirs = (
            live.model.eval()(input_ids=IDS).logits,
            reloaded(config, outcome)(input_ids=IDS).logits,
        )
    assert torch.allclose(ours, theirs, atol=1e-5)
