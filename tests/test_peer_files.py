"""What people bring along from LLaMA-Factory: its board's saved arguments, files of its other verbs, OmegaConf's ways."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from tuner.config import config as c
from tuner.config import reading
from tuner.config.board import from_board
from tuner.config.knobs import ConfigError

BOARD: dict[str, Any] = {
    "top.booster": "auto", "top.checkpoint_path": [], "top.finetuning_type": "lora", "top.model_name": "Qwen2.5-0.5B-Instruct",
    "top.quantization_bit": "none", "top.quantization_method": "bnb", "top.rope_scaling": "none", "top.template": "qwen",
    "train.additional_target": "", "train.batch_size": 4, "train.compute_type": "bf16", "train.create_new_adapter": False,
    "train.cutoff_len": 1024, "train.dataset": ["alpaca_en_demo", "identity"], "train.dataset_dir": "data",
    "train.ds_offload": False, "train.ds_stage": "none", "train.extra_args": '{"optim": "adamw_torch", "seed": 7}',
    "train.freeze_extra_modules": "", "train.freeze_trainable_layers": 2, "train.freeze_trainable_modules": "all",
    "train.galore_rank": 16, "train.gradient_accumulation_steps": 2, "train.learning_rate": "2e-4", "train.logging_steps": 5,
    "train.lora_alpha": 32, "train.lora_dropout": 0, "train.lora_rank": 16, "train.lora_target": "", "train.loraplus_lr_ratio": 0,
    "train.lr_scheduler_type": "cosine", "train.mask_history": True, "train.max_grad_norm": "1.0", "train.max_samples": "1000",
    "train.neat_packing": False, "train.neftune_alpha": 0, "train.num_train_epochs": "2.0", "train.packing": False,
    "train.ppo_score_norm": False, "train.pref_beta": 0.1, "train.pref_loss": "sigmoid", "train.report_to": "none",
    "train.resize_vocab": False, "train.reward_model": [], "train.save_steps": 50, "train.swanlab_api_key": "",
    "train.train_on_prompt": False, "train.training_stage": "Supervised Fine-Tuning", "train.use_apollo": False,
    "train.use_badam": False, "train.use_dora": False, "train.use_galore": False, "train.use_llama_pro": False,
    "train.use_pissa": False, "train.use_rslora": True, "train.use_swanlab": False, "train.val_size": 0.1, "train.warmup_steps": 10,
    "train.enable_thinking": True, "train.image_max_pixels": "768*768", "train.freeze_vision_tower": True,
}  # fmt: skip


def write(folder: Path, values: dict[str, Any], name: str = "x.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def refused(words: list[str]) -> str:
    with pytest.raises(ConfigError) as error:
        c.make(reading.parse_words(words))
    return " ".join(p.sentence for p in error.value.problems)


def test_the_boards_saved_arguments_are_a_config(tmp_path: Path) -> None:
    config = c.make(reading.read(write(tmp_path, BOARD)))
    wanted = {
        "stage": "sft", "model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct", "finetuning_type": "lora", "template": "qwen",
        "dataset": ("alpaca_en_demo", "identity"), "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 2, "learning_rate": 2e-4, "num_train_epochs": 2.0, "max_samples": 1000, "lora_rank": 16,
        "lora_alpha": 32, "use_rslora": True, "mask_history": True, "val_size": 0.1, "eval_strategy": "steps", "eval_steps": 50,
        "save_steps": 50, "warmup_steps": 10, "bf16": True, "seed": 7, "optim": "adamw_torch", "cutoff_len": 1024,
        "trust_remote_code": False, "plot_loss": True, "do_train": True, "loraplus_lr_ratio": None, "neftune_noise_alpha": None,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_choices_of_the_board_bring_only_their_own_fields(tmp_path: Path) -> None:
    dpo = from_board(
        {**BOARD, "train.training_stage": "DPO", "train.pref_loss": "simpo", "top.quantization_bit": "4"}
    )
    assert (dpo["pref_loss"], dpo["quantization_bit"], dpo["stage"]) == ("simpo", 4, "dpo")
    assert "galore_rank" not in dpo and "galore_rank" in from_board({**BOARD, "train.use_galore": True})
    frozen = from_board({**BOARD, "top.finetuning_type": "freeze"})
    assert frozen["freeze_trainable_layers"] == 2 and "lora_rank" not in frozen
    more = from_board({**BOARD, "top.checkpoint_path": ["train_2024"], "train.use_pissa": True})
    assert more["adapter_name_or_path"] == ["saves/Qwen2.5-0.5B-Instruct/lora/train_2024"]
    assert more["pissa_init"] and more["pissa_convert"]
    assert from_board({**BOARD, "top.model_name": "My Own"})["model_name_or_path"] == "My Own"
    scored = {"train.reward_model": ["saves/rm"], "train.ppo_score_norm": True}
    ppo = from_board({**BOARD, "train.training_stage": "PPO", **scored})
    model = "saves/Qwen2.5-0.5B-Instruct/lora/saves/rm"
    assert (ppo["stage"], ppo["reward_model"], ppo["ppo_score_norm"]) == ("ppo", model, True)
    assert (ppo["reward_model_type"], ppo["top_k"], ppo["top_p"]) == ("lora", 0, 0.9)
    assert "eval_strategy" not in ppo
    assert "ppo_score_norm" not in dpo


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"model_name_or_path": "m", "adapter_name_or_path": "a", "template": "qwen", "export_dir": "out"},
            "`tuner export` takes it",
        ),
        (
            {"model_name_or_path": "m", "template": "qwen", "infer_backend": "huggingface"},
            "talking to a model",
        ),
        (
            {"model_name_or_path": "m", "template": "fewshot", "task": "mmlu_test", "n_shot": 5},
            "asks for a benchmark",
        ),
    ],
)
def test_files_of_other_verbs_are_told_by_their_keys(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write(tmp_path, values)
    assert said in refused([path])
    with pytest.raises(ConfigError, match=said):
        reading.read(path)


def test_a_file_that_only_begins_a_config_is_completed_on_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, {"model_name_or_path": "m", "template": "qwen"})
    assert c.make(reading.parse_words([path, "stage=sft", "dataset=d"])).template == "qwen"


def test_interpolations_are_filled_in_as_omegaconf_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "/tmp/here")
    path = write(
        tmp_path,
        {
            "stage": "sft",
            "model_name_or_path": "m",
            "dataset": "d",
            "output_dir": "${oc.env:WHERE}/${stage}/${seed}",
            "seed": 3,
        },
    )
    assert c.make(reading.read(path)).output_dir == "/tmp/here/sft/3"
    assert c.make(reading.parse_words([path, "seed=4"])).output_dir == "/tmp/here/sft/4"
    assert "cannot be filled in" in refused([path, "output_dir=${nothing_like_it}"])


def test_null_empties_and_nested_names_reach_inside(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "stage": "sft", "model_name_or_path": "m", "dataset": "d", "report_to": None, "learning_rate": 1e-3, "eval_dataset": "e",
            "fsdp": ["full_shard", "auto_wrap"], "gradient_checkpointing_kwargs": {"use_reentrant": True}, "deepspeed": None,
        },
    )  # fmt: skip
    found, problems = c.check(reading.read(path))
    assert found is not None and found.report_to == ("none",) and found.fsdp == "full_shard auto_wrap"
    assert [p.knob for p in problems] == ["fsdp"]  # a run takes one GPU unless it asks for more
    path = write(tmp_path, {k: v for k, v in yaml.safe_load(Path(path).read_text()).items() if k != "fsdp"})
    words = [
        path,
        "learning_rate=null",
        "eval_dataset=null",
        "gradient_checkpointing_kwargs.use_reentrant=false",
    ]
    config = c.make(reading.parse_words(words))
    assert config.learning_rate == c.KNOBS["learning_rate"].default and config.eval_dataset == ()
    assert config.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert c.make(reading.parse_words([path, "dataset=[a,b]"])).dataset == ("a", "b")
    assert (
        c.make(reading.parse_words([path, "--eval_dataset", "null", "--learning_rate", "null"])).eval_dataset
        == ()
    )


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("dpo_loss", "pref_loss"), ("model", "model_name_or_path"), ("lr", "learning_rate"), ("max_seq_length", "cutoff_len"),
     ("lora_r", "lora_rank"), ("batch_size", "per_device_train_batch_size"), ("dpo_beta", "pref_beta")],
)  # fmt: skip
def test_a_name_from_elsewhere_is_answered_with_the_one_that_is_meant(flag: str, meant: str) -> None:
    assert f"--{meant}" in refused(["stage=sft", "model_name_or_path=m", "dataset=d", f"--{flag}", "2"])


def test_every_meant_name_is_a_knob_and_none_is_one_already() -> None:
    from tuner.config.aliases import MEANT

    assert set(MEANT.values()) <= set(c.KNOBS)
    assert not set(MEANT) & set(c.KNOBS)


def test_verbs_of_the_other_tool_are_answered_with_what_to_do() -> None:
    for verb, said in (("webchat", "tuner chat"), ("eval", "tuner evaluate"), ("env", "tuner doctor")):
        done = subprocess.run(
            [sys.executable, "-m", "tuner", verb, "x.yaml"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 2 and said in done.stderr


def test_json_of_the_board_that_is_broken_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="train.extra_args of the board's file is not JSON"):
        from_board({**BOARD, "train.extra_args": "{optim: x}"})
    assert json.loads(BOARD["train.extra_args"])["seed"] == 7


PPO = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
reward_model: saves/llama3-8b/lora/reward
trust_remote_code: true
stage: ppo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/llama3-8b/lora/ppo
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-5
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
max_new_tokens: 512
top_k: 0
top_p: 0.9
"""
"""llama3_lora_ppo.yaml of its tag v0.9.3, the last with one."""


def test_its_ppo_file_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    file.write_text(PPO)
    config, problems = c.check(reading.read(file))
    assert config is not None and problems == []
    assert (config.stage, config.reward_model, config.reward_model_type) == (
        "ppo",
        "saves/llama3-8b/lora/reward",
        "lora",
    )
    assert (config.max_new_tokens, config.top_k, config.top_p, config.temperature) == (512, 0, 0.9, 0.95)
    assert (config.ppo_epochs, config.ppo_target, config.ppo_buffer_size, config.warmup_steps) == (
        4,
        6.0,
        1,
        0.1,
    )
    told = c.check({**reading.read(file), "reward_model": "http://127.0.0.1:8001/v1/score/evaluation"})[1]
    assert [p.mend for p in told] == [{"reward_model_type": "api"}]
    served = c.check(
        {**reading.read(file), "reward_model": "http://127.0.0.1:8001/score", "reward_model_type": "api"}
    )
    assert served[0] is not None and served[1] == []


def test_what_a_file_says_of_pictures_is_taken(tmp_path: Path) -> None:
    board = c.make(reading.read(write(tmp_path, BOARD | {"train.image_max_pixels": "512*512"})))
    assert (board.image_max_pixels, board.freeze_vision_tower) == (512 * 512, True)
    theirs = {
        "model_name_or_path": "m",
        "dataset": "d",
        "image_max_pixels": 262144,
        "video_max_pixels": 16384,
    }
    config = c.make(theirs | {"freeze_multi_modal_projector": False, "media_dir": "pictures"})
    assert (config.image_max_pixels, config.media_dir) == (262144, "pictures")
    assert not config.freeze_multi_modal_projector and config.image_min_pixels == 32 * 32


@pytest.mark.parametrize("knob", ["video_fps", "audio_sampling_rate", "crop_to_patches"])
def test_videos_sound_and_patches_are_refused_by_name(knob: str) -> None:
    assert f"--{knob} 4 is refused" in refused([f"--{knob}", "4", "--model_name_or_path", "m"])
