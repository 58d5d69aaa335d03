"""What a name or a folder says about a model before anything is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tuner.config import models
from tuner.config.models import (
    hub_cache_folder,
    hub_cache_models,
    known_models,
    local_models,
    model_name,
    model_roots,
    native_model_types,
    needs_remote_code,
    template_for,
)

FACTS = Path(__file__).resolve().parents[2] / "shared" / "facts" / "llamafactory.md"


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("Qwen/Qwen-1_8B", "default"),
        ("Qwen/Qwen-1_8B-Chat", "qwen"),
        ("Qwen/Qwen1.5-0.5B-Chat-GPTQ-Int4", "qwen"),
        ("Qwen/Qwen2.5-7B", "default"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen"),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "qwen"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_vl"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("Qwen/Qwen3-8B-Base", "default"),
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3_nothink"),
        ("Qwen/Qwen3-4B-Thinking-2507", "qwen3"),
        ("Qwen/Qwen3-Embedding-0.6B", None),
        ("Qwen/Qwen3.5-9B", "qwen3_5"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama2"),
        ("meta-llama/Llama-2-7b-hf", "default"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        ("meta-llama/Llama-3.2-1B", "default"),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "mllama"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4"),
        ("shenzhi-wang/Llama3-8B-Chinese-Chat", "llama3"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "zephyr"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral"),
        ("mistralai/Mistral-7B-v0.1", "default"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "ministral"),
        ("google/gemma-2b-it", "gemma"),
        ("google/gemma-2-9b-it", "gemma2"),
        ("google/gemma-2-9b", "default"),
        ("google/gemma-3-12b-it", "gemma3"),
        ("google/gemma-3n-E2B-it", "gemma3n"),
        ("google/gemma-4-31B-it", None),
        ("microsoft/phi-2", "default"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi"),
        ("microsoft/phi-4", "phi4"),
        ("microsoft/Phi-4-mini-instruct", "phi4_mini"),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek"),
        ("deepseek-ai/DeepSeek-V2-Lite", "default"),
        ("deepseek-ai/DeepSeek-V3", "deepseek3"),
        ("deepseek-ai/DeepSeek-V3-Base", "default"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseekr1"),
        ("internlm/internlm2-chat-1_8b", "intern2"),
        ("internlm/internlm2-1_8b", "default"),
        ("internlm/internlm2_5-7b-chat", "intern2"),
        ("internlm/internlm3-8b-instruct", "intern2"),
        ("zai-org/glm-4-9b-chat-hf", "glm4"),
        ("zai-org/GLM-4-9B-0414", "glm4"),
        ("zai-org/GLM-4-32B-Base-0414", "default"),
        ("01-ai/Yi-1.5-6B-Chat", "yi"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        ("HuggingFaceTB/SmolLM3-3B", None),
        ("ibm-granite/granite-3.1-2b-instruct", "granite3"),
        ("ibm-granite/granite-4.0-micro-base", "default"),
        ("allenai/OLMo-2-0425-1B-Instruct", "olmo"),
        ("tiiuae/falcon-7b-instruct", "falcon"),
        ("HuggingFaceH4/zephyr-7b-beta", "zephyr"),
        ("lmsys/vicuna-7b-v1.5", "vicuna"),
        ("openbmb/MiniCPM4-8B", "cpm4"),
        ("baichuan-inc/Baichuan2-7B-Chat", None),
        ("somebody/dolphin-2.9-llama3-8b", None),
        ("", None),
        # folders
        ("/data/models/Qwen2.5-0.5B-Instruct/", "qwen"),
        ("saves\\Llama-3.1-8B-Instruct", "llama3"),
        ("~/.cache/huggingface/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/0123abcd", "qwen"),
        ("~/.cache/modelscope/hub/models/Qwen/Qwen2___5-7B-Instruct", "qwen"),
        ("mlruns/models/Qwen-1_8B-Chat-0f3c5a9d12ab", "qwen"),
        ("mlruns/models/internlm2_5-1_8b-0f3c5a9d12ab", "default"),
    ],
)
def test_picking_a_model_picks_its_template(name: str, template: str | None) -> None:
    assert template_for(name) == template


def test_the_table_is_consistent() -> None:
    """Every hub id is given once, has no brace left, and is matched by the very family that lists it."""
    entries = known_models()
    ids = [entry.hub_id for entry in entries]
    assert len(ids) == len(set(ids)) > 300
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) for hub_id in ids)
    for family in models._families():
        for hub_id in family.hub_ids:
            first = next(other for other in models._families() if other.match.match(model_name(hub_id)))
            assert first is family, f"{hub_id} is listed under {family.name} and matched by {first.name}"


def test_every_template_exists() -> None:
    if not FACTS.is_file():
        pytest.skip("../shared/facts is not on this machine")
    table = FACTS.read_text(encoding="utf-8").split("### 5.5")[1]
    names = set(re.findall(r"^\| ([\w.-]+) \|", table, re.MULTILINE))
    assert {family.template for family in models._families()} - names - {None} == set()


def test_native_types_are_those_of_transformers() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert native_model_types() == set(CONFIG_MAPPING_NAMES)


def write_model(folder: Path, weights: str = "model.safetensors", **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "qwen2"}))
    if weights:
        (folder / weights).write_bytes(b"weights")
    return folder


LEGACY = {
    "model_type": "qwen",
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {"AutoModel": "modeling_qwen.X"},
}


def test_local_models_are_found(tmp_path: Path) -> None:
    wanted = [
        write_model(tmp_path / "a"),
        write_model(tmp_path / "b" / "org" / "model"),
        write_model(tmp_path / "c", "pytorch_model.bin", **LEGACY),
    ]
    write_model(tmp_path / "pickled", "pytorch_model.bin")
    write_model(tmp_path / "no-weights", "")
    write_model(tmp_path / ".hidden")
    write_model(tmp_path / "a" / "checkpoint-20")
    write_model(tmp_path / "1" / "2" / "3" / "too-deep")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert local_models([tmp_path, tmp_path / "b", tmp_path / "absent"]) == wanted


def test_model_roots_move_with_the_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    assert {tmp_path / "data", tmp_path / "mlruns" / "models", tmp_path / "saves"} <= set(model_roots())


def test_the_hub_cache_is_read_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "home" / "hub"
    write_model(hub / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "0a")
    write_model(hub / "models--gpt2" / "snapshots" / "0a")
    write_model(hub / "models--only--config" / "snapshots" / "0a", "")
    half = write_model(hub / "models--half--fetched" / "snapshots" / "0a", "")
    (half / "model.safetensors").symlink_to("../../blobs/gone")
    (hub / "datasets--a--b" / "snapshots").mkdir(parents=True)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert hub_cache_models() == ["Qwen/Qwen2.5-0.5B", "gpt2"]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert hub_cache_folder() == tmp_path / "elsewhere" and hub_cache_models() == []
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub_cache_folder() == tmp_path / "xdg" / "huggingface" / "hub"


def test_who_needs_remote_code(tmp_path: Path) -> None:
    custom = {"AutoModelForCausalLM": "modeling_x.X"}
    remote = write_model(tmp_path / "Baichuan2-7B-Chat", model_type="baichuan", auto_map=custom)
    sentence = needs_remote_code(remote)
    assert sentence is not None and "\n" not in sentence
    for said in ("Baichuan2-7B-Chat", "baichuan", "Python code", "--trust_remote_code True"):
        assert said in sentence
    assert needs_remote_code(write_model(tmp_path / "native", model_type="qwen2", auto_map=custom)) is None
    assert needs_remote_code(write_model(tmp_path / "plain", model_type="baichuan")) is None
    assert needs_remote_code(write_model(tmp_path / "legacy", **LEGACY)) is None
    assert needs_remote_code(tmp_path / "absent") is None
    (tmp_path / "plain" / "config.json").write_text("[" * 100_000)
    assert needs_remote_code(tmp_path / "plain") is None
