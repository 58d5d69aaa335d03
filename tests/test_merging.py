"""A merged adapter answers as the adapter on its model does, also where input and output embeddings are one tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from subsets import some
from test_stages import config_of
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tuner.models.loading import Source
from tuner.models.merging import merge_once

SIZES: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip
FAMILIES = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
}
TOUCHED: dict[str, dict[str, Any]] = {
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    "tied by PEFT": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "embeddings whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "ends whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "one whole, one not": {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]},
    "neither": {"target_modules": ["q_proj", "down_proj"]},
}
IDS = torch.tensor([[1, 4, 260, 270, 280, 5, 290, 300, 2]])


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("merging")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        for name, kind in FAMILIES.items():
            torch.manual_seed(1)
            AutoModelForCausalLM.from_config(kind(**SIZES)).save_pretrained(home / name)
            tiny.tokenizer(home / name)
        yield home


def source_of(folder: Path) -> Source:
    return Source(folder, str(folder))


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def adapter(base: Path, folder: Path, settings: Any) -> torch.Tensor:
    """Save an adapter that says something; the logits of the model with it on."""
    made = get_peft_model(load(base), settings).eval()
    torch.manual_seed(2)
    for weight in made.parameters():
        if weight.requires_grad:
            weight.data += 0.3 * torch.randn_like(weight)
    made.save_pretrained(folder)
    on_it = PeftModel.from_pretrained(load(base), str(folder)).eval()
    return logits(on_it)


def logits(model: torch.nn.Module) -> torch.Tensor:
    """In float64, so that only what merging rounds is seen and not the order in which a machine adds."""
    with torch.no_grad():
        return model.double()(input_ids=IDS).logits


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
@pytest.mark.parametrize("touched", TOUCHED)
@pytest.mark.parametrize("family", some(FAMILIES, "qwen2", "gemma2"))
def test_a_merged_model_is_the_unmerged_one(studio: Path, family: str, touched: str) -> None:
    base, folder = studio / family, studio / f"{family} {touched}"
    wanted = adapter(base, folder, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **TOUCHED[touched]))
    found = merge_once(config_of("sft", model_name_or_path=str(base)), source_of(base), [folder])
    model = load(found.folder)
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    assert (wanted - logits(load(base))).abs().max() > 0.1
    tied = json.loads((found.folder / "config.json").read_text())["tie_word_embeddings"]
    assert tied is (touched == "neither")


def test_one_adapter_after_another(studio: Path) -> None:
    """The second was trained on the first's merge, whose ends are two tensors by then."""
    base, one, two = studio / "qwen2", studio / "one", studio / "two"
    config = config_of("sft", model_name_or_path=str(base))
    kind = {"r": 4, "task_type": "CAUSAL_LM"}
    adapter(base, one, LoraConfig(**kind, target_modules=["embed_tokens"]))
    between = merge_once(config, source_of(base), [one])
    wanted = adapter(between.folder, two, LoraConfig(**kind, target_modules=["lm_head"]))
    assert torch.allclose(
        logits(load(merge_once(config, source_of(base), [one, two]).folder)), wanted, atol=1e-5
    )


def test_trained_tokens_merge_into_both_ends(studio: Path) -> None:
    base, folder = studio / "llama", studio / "tokens"
    wanted = adapter(base, folder, TrainableTokensConfig(token_indices=[4, 260], task_type="CAUSAL_LM"))
    found = merge_once(config_of("sft", model_name_or_path=str(base)), source_of(base), [folder])
    assert torch.allclose(logits(load(found.folder)), wanted, atol=1e-5)


def test_a_merge_is_found_again_by_all_that_it_is_made_of(studio: Path) -> None:
    base, folder = studio / "llama", studio / "again"
    adapter(base, folder, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    config = config_of("sft", model_name_or_path=str(base))
    first = merge_once(config, source_of(base), [folder]).folder
    assert merge_once(config, source_of(base), [folder]).folder == first
    stretched = config.with_values(rope_scaling="linear", cutoff_len=4096, upcast_layernorm=True)
    assert merge_once(stretched, source_of(base), [folder]).folder == first
    assert "factor" not in (first / "config.json").read_text()
    half = merge_once(config.with_values(bf16=True), source_of(base), [folder]).folder
    assert half != first
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(said | {"lora_alpha": 32}))
    stronger = merge_once(config, source_of(base), [folder]).folder
    assert not torch.allclose(logits(load(stronger)), logits(load(first)), atol=1e-2)
    os.utime(base / "model.safetensors", ns=(1, 1))  # another model in the same folder
    assert merge_once(config, source_of(base), [folder]).folder != stronger
