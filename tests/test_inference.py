"""Runs that use a model take LLaMA-Factory's inference files, and load the model as training does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.config.inference import InferenceConfig, read_words
from tuner.config.knobs import ConfigError, knobs_of

FILE = """\
model_name_or_path: data/starter
adapter_name_or_path: saves/one,saves/two
template: qwen
finetuning_type: lora
infer_backend: huggingface
infer_dtype: float32
trust_remote_code: true
"""


def test_a_file_of_llama_factory_is_read(tmp_path: Path) -> None:
    file = tmp_path / "chat.yaml"
    file.write_text(FILE)
    config, unused = read_words(InferenceConfig, [str(file), "temperature=0.2", "--top_k", "5"])
    assert config.adapter_name_or_path == ("saves/one", "saves/two")
    assert (config.temperature, config.top_k, config.trust_remote_code) == (0.2, 5, True)
    assert unused == ["finetuning_type"]
    loading = config.loading()
    assert (loading.template, loading.infer_dtype, loading.trust_remote_code) == ("qwen", "float32", True)
    assert not loading.do_train and loading.temperature == 0.2


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tempratur is not known; did you mean --temperature"):
        read_words(InferenceConfig, ["--tempratur", "1"])
    with pytest.raises(ConfigError, match="--infer_dtype is 'int8'.*one of auto, float16"):
        read_words(InferenceConfig, ["--infer_dtype", "int8"])
    with pytest.raises(ConfigError, match="--infer_backend vllm is refused"):
        read_words(InferenceConfig, ["--infer_backend", "vllm"])
    with pytest.raises(ConfigError, match="--top_k is '-3'"):
        read_words(InferenceConfig, ["--top_k", "-3"])


def test_shared_knobs_are_training_s_own() -> None:
    from tuner.config.config import KNOBS

    for name, knob in knobs_of(InferenceConfig).items():
        assert (knob.default, knob.help, knob.kind) == (
            KNOBS[name].default,
            KNOBS[name].help,
            KNOBS[name].kind,
        ), name
