"""One declaration drives flags, YAML, help and validation."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuner.config import config as c
from tuner.config import reading, writing
from tuner.config.knobs import ConfigError, Section, sections_of
from tuner.config.training_arguments import NAMES
from tuner.config.without_effect import REASONS, unheeded
from tuner.text.lookup import speaking

ROOT = Path(__file__).parents[1]
TUTORIAL = (
    "--stage dpo --do_train True --model_name_or_path Qwen/Qwen-1_8B --preprocessing_num_workers 16 "
    "--finetuning_type lora --template default --flash_attn auto --dataset_dir data --dataset hh_rlhf_en "
    "--cutoff_len 2048 --learning_rate 5e-05 --num_train_epochs 1.0 --max_samples 1000 "
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 --lr_scheduler_type cosine --max_grad_norm 1.0 "
    "--logging_steps 5 --save_steps 100 --warmup_steps 0 --packing False --report_to none "
    "--output_dir saves/Qwen-1.8B/lora/train_2025-01-04-12-04-07 --bf16 True --plot_loss True "
    "--trust_remote_code True --ddp_timeout 180000000 --include_num_input_tokens_seen True --optim adamw_torch "
    "--lora_rank 8 --lora_alpha 16 --lora_dropout 0 --lora_target all --pref_beta 0.1 --pref_ftx 0 --pref_loss sigmoid"
)
MINIMAL = {"model_name_or_path": "m", "stage": "dpo", "do_train": True, "dataset": "d"}


def refusal(words: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        c.make(reading.parse_words(words))
    return str(caught.value)


def test_the_tutorials_command_is_understood_whole() -> None:
    config = c.make(reading.parse_words(shlex.split(TUTORIAL)))
    assert config.model_name_or_path == "Qwen/Qwen-1_8B"
    assert config.dataset == ("hh_rlhf_en",)
    assert config.learning_rate == 5e-5
    assert config.trust_remote_code is True
    assert config.ddp_timeout == 180000000
    assert config.include_num_input_tokens_seen == "all"
    assert config.lora_target == ("all",)
    assert config.report_to == ("none",)


def test_the_shown_command_gives_the_same_config_back() -> None:
    config = c.make({**reading.parse_words(shlex.split(TUTORIAL)), "run_name": "it's a $(name) with; spaces"})
    words = shlex.split(writing.command(config).replace("\\\n", " "))
    assert words[:2] == ["tuner", "train"]
    assert c.make(reading.parse_words(words[2:])) == config


def test_yaml_gives_the_same_config_back(tmp_path: Path) -> None:
    config = c.make({**reading.parse_words(shlex.split(TUTORIAL)), "lr_scheduler_kwargs": {"num_cycles": 2}})
    file = tmp_path / "run.yaml"
    file.write_text(writing.to_yaml(config.changed()))
    assert c.make(reading.parse_words([str(file)])) == config
    file.write_text(writing.to_yaml(config.plain()))
    assert c.make(reading.read(file)) == config


def test_later_words_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-4\nstage: dpo\nmodel_name_or_path: m\n")
    values = reading.parse_words(
        [str(file), "learning_rate=2e-4", "--lora_rank", "4", "--no_ignore_pad_token_for_loss"]
    )
    config = c.make(values)
    assert (config.learning_rate, config.lora_rank, config.ignore_pad_token_for_loss) == (2e-4, 4, False)


WARM = st.sampled_from([None, 0, 0.0, 3, 0.5, 0.9, "0", "0.3", "7"])


@given(WARM, WARM, st.booleans())
def test_warm_up_follows_transformers_rule_whatever_the_order(steps: Any, ratio: Any, turned: bool) -> None:
    """Steps above 0 win, else the ratio: TrainingArguments.get_warmup_steps of transformers 4."""
    pair = [("warmup_steps", steps), ("warmup_ratio", ratio)]
    given = {name: value for name, value in (reversed(pair) if turned else pair) if value is not None}
    wanted = float(steps or 0) or float(ratio or 0)
    assert c.make(MINIMAL | given).warmup_steps == wanted
    words = [f"{name}={value}" for name, value in given.items()]
    assert c.make(reading.parse_words(["model_name_or_path=m", "stage=pt", *words])).warmup_steps == wanted


@given(
    st.permutations(
        ["evaluation_strategy", "eval_strategy", "no_cuda", "use_cpu", "group_by_length", "val_size"]
    )
)
def test_the_order_of_keys_never_matters(order: list[str]) -> None:
    said = {
        "evaluation_strategy": "steps", "eval_strategy": "steps", "no_cuda": True, "use_cpu": False,
        "group_by_length": True, "val_size": 2,
    }  # fmt: skip
    config = c.make(MINIMAL | {name: said[name] for name in order})
    assert (config.eval_strategy, config.use_cpu) == ("steps", True)
    assert config.train_sampling_strategy == "group_by_length"
    _, problems = c.check(MINIMAL | {name: (said | {"evaluation_strategy": "epoch"})[name] for name in order})
    assert [p.knob for p in problems] == ["eval_strategy"] and "keep one" in problems[0].sentence


def test_one_thing_said_twice_in_a_file_is_refused_and_later_words_win(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("model_name_or_path: m\nevaluation_strategy: steps\nval_size: 2\n")
    assert reading.parse_words([str(file), "eval_strategy=epoch"]).get("evaluation_strategy") is None
    assert c.make(reading.parse_words([str(file), "stage=pt", "eval_strategy=no"])).eval_strategy == "no"
    assert (
        c.make(
            reading.parse_words(["model_name_or_path=m", "eval_strategy=no", "evaluation_strategy=no"])
        ).eval_strategy
        == "no"
    )
    file.write_text("learning_rate: 1e-4\nstage: pt\nlearning_rate: 1e-5\n")
    with pytest.raises(ConfigError, match="learning_rate stands twice, again in line 3"):
        reading.read(file)


def test_one_e_minus_four_is_a_number_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-4\nmax_grad_norm: 1\n")
    assert reading.read(file) == {"learning_rate": 1e-4, "max_grad_norm": 1}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--lora_rnak", "8"], ["--lora_rnak", "--lora_rank"]),
        (["--lora_rank", "0"], ["--lora_rank", "'0'", "greater than or equal to 1"]),
        (["--pref_loss", "simgoid"], ["--pref_loss", "simgoid", "did you mean sigmoid"]),
        (["--learning_rate", "abc"], ["--learning_rate", "abc", "number"]),
        (["--optim", "adamw_tourch"], ["--optim", "adamw_torch"]),
        (["--learning_rate"], ["--learning_rate", "5e-05"]),
        (["--bf16", "True", "--fp16", "True"], ["--bf16", "--fp16", "keep one"]),
        (["nosuch.yaml"], ["nosuch.yaml"]),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(words: list[str], parts: list[str]) -> None:
    start = [] if words == ["nosuch.yaml"] else ["model_name_or_path=m"]
    said = refusal(start + words)
    assert all(part in said for part in parts), said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("learning_rate=abc", "--learning_rate 的值是 'abc'：应为数字。"),
        ("learning_rate=-1", "--learning_rate 的值是 '-1'：应大于 0。"),
        ("max_steps=1.5", "--max_steps 的值是 '1.5'：应为整数。"),
        ("bf16=maybe", "--bf16 的值是 'maybe'：应为 true 或 false。"),
        ("lora_dropout=2", "--lora_dropout 的值是 '2'：应小于或等于 1。"),
    ],
)
def test_a_wrong_value_is_explained_in_the_language_of_the_moment(word: str, said: str) -> None:
    with speaking("zh_CN"):
        assert said in refusal(["model_name_or_path=m", word])


def test_any_training_argument_of_transformers_is_a_knob() -> None:
    config = c.make({**MINIMAL, "adam_beta2": "0.95", "dataloader_num_workers": 2, "label_names": "a,b"})
    assert (config.adam_beta2, config.dataloader_num_workers, config.label_names) == (0.95, 2, ("a", "b"))
    assert "adam_beta2" in refusal([*(f"{k}={v}" for k, v in MINIMAL.items()), "adam_beta2=x"])


@pytest.mark.slow
def test_the_table_of_training_arguments_is_the_installed_one() -> None:
    from tools.training_arguments import FILE, formatted, ours, text

    assert FILE.read_text() == formatted(text(ours())), "run `python -m tools.training_arguments`"


def test_every_knob_says_what_it_does() -> None:
    for section in sections_of(c.Config):
        for name in section.model_fields:
            knob = c.KNOBS[name]
            assert knob.help.endswith("."), name
            if knob.shown and knob.kind in ("int", "float"):
                assert knob.usual or knob.raised or knob.lowered or knob.advanced, f"{name} teaches nothing"


def test_a_knob_is_declared_once() -> None:
    seen: dict[str, type[Section]] = {}
    for section in sections_of(c.Config):
        for name in section.model_fields:
            assert name not in seen, f"{name} stands in {seen.get(name)} and {section}"
            seen[name] = section


def test_secrets_are_in_no_record() -> None:
    config = c.make({**MINIMAL, "hf_hub_token": "hf_CANARY"})
    records = [
        writing.command(config),
        writing.to_yaml(config.plain()),
        str(writing.params(config)),
        writing.to_yaml(config.changed()),
    ]
    assert not any("CANARY" in r for r in records)
    assert config.secrets() == {"hf_hub_token": "hf_CANARY"}


def test_a_wrong_flag_is_answered_fast_and_without_torch() -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tuner", "train", "--lora_rnak", "8"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 2
    assert "--lora_rank" in done.stderr
    assert " torch" not in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("name", reading.recipes())
def test_every_recipe_is_a_config(name: str) -> None:
    config = c.make({**MINIMAL, **reading.read(name)})
    assert config.stage


def _read_outside_config() -> set[str]:
    """Every attribute that the studio's code asks of anything, config/ left out."""
    root = Path(c.__file__).parents[1]
    files = [path for path in root.rglob("*.py") if path.parent != root / "config"]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_knob_is_obeyed_or_said_to_have_no_effect() -> None:
    by_name = {"auto_resume"}  # read from a folder by its name, where the config is not loaded
    obeyed = _read_outside_config() | set(NAMES) | by_name
    assert set(c.KNOBS) - obeyed - set(REASONS) == {"predict_with_generate"}
    assert not set(REASONS) & (obeyed - set(NAMES)), "obeyed now: take it out of REASONS"


def test_whoever_sets_a_knob_without_effect_is_told() -> None:
    said = list(
        unheeded(c.make(MINIMAL | {"export_dir": "x", "export_size": 2, "use_fast_tokenizer": False}))
    )
    assert [line.split(" ha")[0] for line in said] == ["--use_fast_tokenizer", "--export_dir, --export_size"]
    assert list(unheeded(c.make(MINIMAL))) == []
    assert "infer_dtype" in next(unheeded(c.make(MINIMAL | {"infer_dtype": "float16"})))


@given(st.text(max_size=12), st.floats(allow_nan=False, allow_infinity=False))
@example("0E0", 5e-5)
@example("-1.5e+3", 1e22)
def test_what_is_stored_is_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, text: str, number: float
) -> None:
    file = tmp_path_factory.getbasetemp() / "stored.yaml"
    values = {
        "default_system": text,
        "learning_rate": number,
        "run_name": "${learning_rate}",
        "dataset": [text],
    }
    file.write_text(writing.to_yaml(values), encoding="utf-8")
    assert reading.stored(file) == values == reading.read(file)
