"""The first Qwen's and InternLM2's checkpoints, converted: against the original code's numbers and against formulas.

`../shared/fixtures` holds tiny checkpoints with logits and ids from the original code; the rest makes its own.
"""

from __future__ import annotations

import base64
import json
import math
import shutil
import struct
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuner.config.models import ModelError
from tuner.data.legacy_tokenizers import (
    QWEN_SPECIALS,
    internlm2_tokenizer,
    qwen_tokenizer,
    tokenizer_folder,
)
from tuner.models.legacy import conversion_note, legacy_kind, native

SHARED = Path(__file__).resolve().parents[2] / "shared"
FIXTURES = SHARED / "fixtures"
NAMES = ["qwen1_tiny", "internlm2_tiny"]
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="../shared/fixtures is not on this machine")


# ---------------------------------------------------------------- against the original code's numbers


def golden(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / name / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    cache = tmp_path_factory.mktemp("models")
    return {name: native(FIXTURES / name, cache) for name in NAMES}


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@needs_fixtures
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_original(name: str, converted: dict[str, Path]) -> None:
    """All lengths in training, up to seq_length in evaluation; beyond it the first Qwen differs (NTK, logn)."""
    cases = [case for case in golden(name)["cases"] if "attention_mask" not in case]
    assert len(cases) == 12
    differences = {}
    for case in cases:
        # A fresh copy each: dynamic rope remembers the longest input it has seen.
        model = load(converted[name]).train(case["mode"] == "train")
        with torch.no_grad():
            logits = model(torch.tensor([case["input_ids"]])).logits[0]
        differences[case["name"]] = max(
            difference(logits[case["positions"]], case["logits"]),
            difference(logits.logsumexp(-1), case["logsumexp_all"]),
        )
    beyond = {"eval_129", "eval_200", "eval_300"} if name == "qwen1_tiny" else set()
    assert {case: value for case, value in differences.items() if value > 5e-5}.keys() == beyond
    assert all(differences[case] > 1 for case in beyond)


@needs_fixtures
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["pad_right", "pad_left"])
def test_padded_batches_equal_the_original(name: str, side: str, converted: dict[str, Path]) -> None:
    case = next(case for case in golden(name)["cases"] if case["name"] == side)
    mask = torch.tensor(case["attention_mask"])
    with torch.no_grad():
        logits = load(converted[name]).eval()(torch.tensor(case["input_ids"]), attention_mask=mask).logits
    assert difference(logits[[0, 1], case["positions"]], case["logits"]) < 5e-5


def difference(ours: Tensor, theirs: list[Any]) -> float:
    return (ours - torch.tensor(theirs)).abs().max().item()


# native parameters that together make an original one
ORIGINAL_NAMES = {
    "qwen1_tiny": {
        "transformer.wte": ["model.embed_tokens"],
        "transformer.ln_f": ["model.norm"],
        "lm_head": ["lm_head"],
        "ln_1": ["input_layernorm"],
        "ln_2": ["post_attention_layernorm"],
        "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attn.c_proj": ["self_attn.o_proj"],
        "mlp.w1": ["mlp.up_proj"],
        "mlp.w2": ["mlp.gate_proj"],
        "mlp.c_proj": ["mlp.down_proj"],
    },
    "internlm2_tiny": {
        "model.tok_embeddings": ["model.embed_tokens"],
        "model.norm": ["model.norm"],
        "output": ["lm_head"],
        "attention_norm": ["input_layernorm"],
        "ffn_norm": ["post_attention_layernorm"],
        "attention.wqkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attention.wo": ["self_attn.o_proj"],
        "feed_forward.w1": ["mlp.gate_proj"],
        "feed_forward.w3": ["mlp.up_proj"],
        "feed_forward.w2": ["mlp.down_proj"],
    },
}


@needs_fixtures
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_equal_the_original(name: str, converted: dict[str, Path]) -> None:
    wanted = golden(name)["loss"]
    ids = torch.tensor(wanted["input_ids"])
    model = load(converted[name]).train()
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.item() == pytest.approx(wanted["loss"], abs=2e-6)
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert len(wanted["grad_norms"]) >= 17
    for original, norm in wanted["grad_norms"].items():
        parts = [gradients[key] for key in native_names(name, original)]
        ours = math.sqrt(sum(part.square().sum().item() for part in parts))
        assert ours == pytest.approx(norm, abs=2e-5), original


def native_names(fixture: str, original: str) -> list[str]:
    stem, leaf = original.rsplit(".", 1)
    names = ORIGINAL_NAMES[fixture]
    if stem in names:
        return [f"{part}.{leaf}" for part in names[stem]]
    layer, module = stem.removeprefix("transformer.h.").removeprefix("model.layers.").split(".", 1)
    return [f"model.layers.{layer}.{part}.{leaf}" for part in names[module]]


@needs_fixtures
@pytest.mark.parametrize("name", NAMES)
def test_greedy_continuation_equals_the_original(name: str, converted: dict[str, Path]) -> None:
    wanted = golden(name)["greedy"]
    prompt = torch.tensor([wanted["input_ids"]])
    model = load(converted[name]).eval()
    new = len(wanted["output_ids"]) - prompt.shape[1]
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        top_p=None,
        top_k=None,
        max_new_tokens=new,
    )
    assert output[0].tolist() == wanted["output_ids"]


@needs_fixtures
@pytest.mark.parametrize("name", NAMES)
def test_auto_tokenizer_of_the_native_folder_gives_the_original_ids(
    name: str, converted: dict[str, Path], tmp_path: Path
) -> None:
    encodes = golden(name)["encode"]
    texts = encodes["tokenizer.model"] if isinstance(encodes, dict) else encodes
    tokenizer = AutoTokenizer.from_pretrained(converted[name])
    assert [tokenizer(case["text"])["input_ids"] for case in texts] == [case["ids"] for case in texts]
    alone = Tokenizer.from_file(str(tokenizer_folder(FIXTURES / name, tmp_path) / "tokenizer.json"))
    assert alone.to_str() == Tokenizer.from_file(str(converted[name] / "tokenizer.json")).to_str()


@needs_fixtures
def test_qwen_token_ids_equal_the_original() -> None:
    tokenizer = qwen_tokenizer(FIXTURES / "qwen1_tiny" / "qwen.tiktoken")
    wanted = golden("qwen1_tiny")
    assert [tokenizer.encode(case["text"]).ids for case in wanted["encode"]] == [
        c["ids"] for c in wanted["encode"]
    ]
    assert {name: tokenizer.token_to_id(name) for name in wanted["special_tokens"]} == wanted[
        "special_tokens"
    ]


@needs_fixtures
@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer_prefix.model"])
def test_internlm2_token_ids_equal_the_original(file: str) -> None:
    """With and without the dummy prefix; decoding too."""
    folder = FIXTURES / "internlm2_tiny"
    tokenizer = internlm2_tokenizer(folder / file, json.loads((folder / "tokenizer_config.json").read_text()))
    cases = golden("internlm2_tiny")["encode"][file]
    assert [tokenizer.encode(case["text"]).ids for case in cases] == [case["ids"] for case in cases]
    assert [tokenizer.decode(case["ids"]) for case in cases] == [case["decoded"] for case in cases]
    specials = golden("internlm2_tiny")["special_tokens"]
    assert {name: tokenizer.token_to_id(name) for name in specials} == specials


@needs_fixtures
def test_internlm2_chat_template_survives(converted: dict[str, Path]) -> None:
    chat = golden("internlm2_tiny")["chat"]
    tokenizer = AutoTokenizer.from_pretrained(converted["internlm2_tiny"])
    assert tokenizer.apply_chat_template(chat["messages"], tokenize=False) == chat["text"]


@needs_fixtures
def test_bin_shards_give_the_weights_of_the_safetensors(converted: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    shutil.copytree(FIXTURES / "qwen1_tiny" / "bin", folder)
    shutil.copy(FIXTURES / "qwen1_tiny" / "qwen.tiktoken", folder)
    target = native(folder, tmp_path / "models")
    assert len(list(target.glob("model-*.safetensors"))) == 4
    ours = load(target).state_dict()
    theirs = load(converted["qwen1_tiny"]).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.skipif(
    not (SHARED / "tokenizers/qwen").is_dir(), reason="../shared/tokenizers is not on this machine"
)
def test_the_real_qwen_vocabulary() -> None:
    """All 151,851 tokens and 151,387 merges, from the copy of the file with CRLF line ends."""
    folder = SHARED / "tokenizers" / "qwen"
    ours = qwen_tokenizer(folder / "qwen.tiktoken")
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ours.get_vocab(with_added_tokens=True) == theirs.get_vocab(with_added_tokens=True)
    assert len(ours.get_vocab(with_added_tokens=True)) == 151_851
    merges = [json.loads(tokenizer.to_str())["model"]["merges"] for tokenizer in (ours, theirs)]
    assert merges[0] == merges[1] and len(merges[0]) == 151_387
    text = "Hello, wörld! 通义千问 e\u0301 \u1100\u1161\r\n\r\n   x = 1_000  # 🏳️‍🌈 <|im_start|>"
    assert ours.encode(text).ids == theirs.encode(text).ids
    assert ours.token_to_id("<|endoftext|>") == 151_643


# ---------------------------------------------------------------- checkpoints made here

WORDS = ["th", "the", " t", " the", "in", "ing", " a", " an", "\n\n", "你", "hi"]


def write_qwen_vocabulary(path: Path, line_end: str = "\n") -> None:
    tokens = [bytes([byte]) for byte in reversed(range(256))]  # reversed: rank and byte must not be confused
    for word in WORDS:
        data = word.encode()
        tokens += [data[:size] for size in range(2, len(data) + 1) if data[:size] not in tokens]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_bytes(line_end.join([*lines, ""]).encode())


def field(number: int, value: bytes | int | float) -> bytes:
    """One protobuf field, numbers below 2**7 only."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def sentencepiece_file(trainer: bytes = b"", normalizer: bytes = b"") -> bytes:
    """A BPE ModelProto; later fields override, so `trainer` and `normalizer` can spoil it."""
    pieces: list[tuple[str, int]] = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    words = [word.replace(" ", "\u2581") for word in WORDS]
    merged = [word[:size] for word in words for size in range(2, len(word) + 1)]
    letters = dict.fromkeys("".join(words) + "\u2581eatonis,.")
    pieces += [(text, 1) for text in [*dict.fromkeys(merged), *letters]]
    body = b"".join(
        field(1, field(1, text.encode()) + field(2, -float(i)) + field(3, kind))
        for i, (text, kind) in enumerate(pieces)
    )
    trainer_spec = field(3, 2) + field(35, 1) + trainer
    normalizer_spec = field(1, b"identity") + field(3, 0) + field(4, 0) + field(5, 1) + normalizer
    return body + field(2, trainer_spec) + field(3, normalizer_spec)


QWEN_CONFIG = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
    "model_type": "qwen",
    "attn_dropout_prob": 0.0,
    "emb_dropout_prob": 0.0,
    "hidden_size": 32,
    "intermediate_size": 96,
    "kv_channels": 8,
    "layer_norm_epsilon": 1e-6,
    "no_bias": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 64,
    "tie_word_embeddings": False,
    "vocab_size": 512,
}
INTERNLM2_CONFIG = {
    "architectures": ["InternLM2ForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
    "model_type": "internlm2",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "vocab_size": 320,
}  # no "bias": the original class takes that for true


def write_checkpoint(folder: Path, kind: str, **changes: Any) -> dict[str, Tensor]:
    """A random checkpoint in the original layout; returns its weights."""
    folder.mkdir(parents=True)
    config = {**(QWEN_CONFIG if kind == "qwen" else INTERNLM2_CONFIG), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    if kind == "qwen":
        write_qwen_vocabulary(folder / "qwen.tiktoken")
    else:
        (folder / "tokenizer.model").write_bytes(sentencepiece_file())
    generator = torch.Generator().manual_seed(7)
    shapes = qwen_shapes() if kind == "qwen" else internlm2_shapes()
    weights = {
        name: torch.randn(shape, generator=generator) * (0.1 if len(shape) == 2 else 0.3)
        + ("norm" in name or "ln_" in name)
        for name, shape in shapes
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


def qwen_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "transformer.wte.weight", (512, 32)
    yield "transformer.ln_f.weight", (32,)
    yield "lm_head.weight", (512, 32)
    for layer in ("transformer.h.0", "transformer.h.1"):
        yield f"{layer}.ln_1.weight", (32,)
        yield f"{layer}.ln_2.weight", (32,)
        yield f"{layer}.attn.c_attn.weight", (96, 32)
        yield f"{layer}.attn.c_attn.bias", (96,)
        yield f"{layer}.attn.c_proj.weight", (32, 32)
        yield f"{layer}.mlp.w1.weight", (48, 32)
        yield f"{layer}.mlp.w2.weight", (48, 32)
        yield f"{layer}.mlp.c_proj.weight", (32, 48)


def internlm2_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.tok_embeddings.weight", (320, 32)
    yield "model.norm.weight", (32,)
    yield "output.weight", (320, 32)
    for layer in ("model.layers.0", "model.layers.1"):
        yield f"{layer}.attention_norm.weight", (32,)
        yield f"{layer}.ffn_norm.weight", (32,)
        yield f"{layer}.attention.wqkv.weight", (64, 32)
        yield f"{layer}.attention.wqkv.bias", (64,)
        yield f"{layer}.attention.wo.weight", (32, 32)
        yield f"{layer}.attention.wo.bias", (32,)
        yield f"{layer}.feed_forward.w1.weight", (48, 32)
        yield f"{layer}.feed_forward.w3.weight", (48, 32)
        yield f"{layer}.feed_forward.w2.weight", (32, 48)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x: Tensor, theta: float) -> Tensor:
    """Rotary embedding of x [positions, size], pairs (i, i + size/2)."""
    n, size = x.shape
    angles = torch.outer(
        torch.arange(n, dtype=x.dtype), theta ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    )
    a, b = x[:, : size // 2], x[:, size // 2 :]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def attended(q: Tensor, k: Tensor, v: Tensor, theta: float) -> Tensor:
    """Causal attention of one head, [positions, size] each."""
    scores = rotated(q, theta) @ rotated(k, theta).T / math.sqrt(q.shape[1])
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf).softmax(-1) @ v


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def qwen_logits(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The first Qwen's forward, written down from its architecture, on its own parameter names."""
    x = w["transformer.wte.weight"][ids]
    for layer in ("transformer.h.0", "transformer.h.1"):
        y = norm(x, w[f"{layer}.ln_1.weight"], 1e-6)
        qkv = y @ w[f"{layer}.attn.c_attn.weight"].T + w[f"{layer}.attn.c_attn.bias"]
        heads = [
            attended(
                *(qkv[:, 32 * part + 8 * head : 32 * part + 8 * head + 8] for part in range(3)), theta=1e4
            )
            for head in range(4)
        ]
        x = x + torch.cat(heads, -1) @ w[f"{layer}.attn.c_proj.weight"].T
        y = norm(x, w[f"{layer}.ln_2.weight"], 1e-6)
        inner = (y @ w[f"{layer}.mlp.w1.weight"].T) * silu(y @ w[f"{layer}.mlp.w2.weight"].T)
        x = x + inner @ w[f"{layer}.mlp.c_proj.weight"].T
    return norm(x, w["transformer.ln_f.weight"], 1e-6) @ w["lm_head.weight"].T


def internlm2_logits(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """InternLM2's: wqkv holds, for each of the 2 kv heads, its 2 query heads, then its key, then its value."""
    x = w["model.tok_embeddings.weight"][ids]
    for layer in ("model.layers.0", "model.layers.1"):
        y = norm(x, w[f"{layer}.attention_norm.weight"], 1e-5)
        qkv = y @ w[f"{layer}.attention.wqkv.weight"].T + w[f"{layer}.attention.wqkv.bias"]
        slots = qkv.split(8, dim=-1)
        heads = [
            attended(slots[4 * group + query], slots[4 * group + 2], slots[4 * group + 3], theta=1e6)
            for group in range(2)
            for query in range(2)
        ]
        x = x + torch.cat(heads, -1) @ w[f"{layer}.attention.wo.weight"].T + w[f"{layer}.attention.wo.bias"]
        y = norm(x, w[f"{layer}.ffn_norm.weight"], 1e-5)
        inner = silu(y @ w[f"{layer}.feed_forward.w1.weight"].T) * (
            y @ w[f"{layer}.feed_forward.w3.weight"].T
        )
        x = x + inner @ w[f"{layer}.feed_forward.w2.weight"].T
    return norm(x, w["model.norm.weight"], 1e-5) @ w["output.weight"].T


@pytest.mark.parametrize(("kind", "formula"), [("qwen", qwen_logits), ("internlm2", internlm2_logits)])
def test_converted_weights_compute_the_architecture(kind: str, formula: Any, tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / kind, kind)
    assert legacy_kind(tmp_path / kind) == kind
    target = native(tmp_path / kind, tmp_path / "models")
    ids = torch.randint(3, 320, (40,), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float64).eval()
    with torch.no_grad():
        ours = model(ids[None]).logits[0]
    wanted = formula({name: tensor.double() for name, tensor in weights.items()}, ids)
    assert wanted.abs().max() > 1
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)  # rope's tables are fp32


def test_bin_and_half_precision_are_kept(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "Qwen-tiny", "qwen")
    (tmp_path / "Qwen-tiny" / "model.safetensors").unlink()
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    half["transformer.h.0.attn.rotary_emb.inv_freq"] = torch.ones(4)  # old releases ship this buffer
    torch.save(half, tmp_path / "Qwen-tiny" / "pytorch_model.bin")
    target = native(tmp_path / "Qwen-tiny", tmp_path / "models")
    tensors = load_file(target / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    w1 = half["transformer.h.1.mlp.w1.weight"]
    assert torch.equal(tensors["model.layers.1.mlp.up_proj.weight"], w1)


def test_end_of_text_keeps_learning(tmp_path: Path) -> None:
    """The original has no padding row; a pad id in the config would freeze the embedding of <|endoftext|>."""
    write_checkpoint(tmp_path / "q", "qwen")
    model = load(native(tmp_path / "q", tmp_path / "models"))
    end = model.config.eos_token_id
    ids = torch.tensor([[5, end, 6, 7]])
    model(ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[end].abs().sum() > 0


def test_a_chat_model_ends_its_turns(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "Qwen-1_8B-Chat", "qwen")
    generation = {"chat_format": "chatml", "eos_token_id": 277, "top_p": 0.5, "stop_words_ids": [[1]]}
    (tmp_path / "Qwen-1_8B-Chat" / "generation_config.json").write_text(json.dumps(generation))
    target = native(tmp_path / "Qwen-1_8B-Chat", tmp_path / "models")
    assert target.name.startswith("Qwen-1_8B-Chat-")
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    written = json.loads((target / "generation_config.json").read_text())
    assert tokenizer.eos_token_id in written["eos_token_id"] and written["top_p"] == 0.5
    assert "stop_words_ids" not in written


# ---------------------------------------------------------------- made once


def test_a_model_that_is_not_legacy_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    assert legacy_kind(tmp_path) is None
    assert native(tmp_path, tmp_path / "models") == tmp_path
    assert conversion_note(tmp_path) is None
    assert tokenizer_folder(tmp_path, tmp_path / "models") == tmp_path
    assert not (tmp_path / "models").exists()


def test_converted_once_until_the_checkpoint_changes(tmp_path: Path) -> None:
    source, cache = tmp_path / "InternLM2-tiny", tmp_path / "models"
    write_checkpoint(source, "internlm2")
    first = native(source, cache)
    assert conversion_note(first) == f"Converted from {source} into native classes."
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert native(source, cache) == first and (first / "model.safetensors").stat().st_mtime_ns == stamp
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps(config | {"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    )
    assert native(source, cache) != first
    tokens = tokenizer_folder(source, cache)
    assert tokenizer_folder(source, cache) == tokens


def test_two_at_once_and_after_a_killed_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "q", "qwen")
    target = native(tmp_path / "q", tmp_path / "models")
    assert "beyond 64 tokens" in str(conversion_note(target))
    shutil.rmtree(target)
    left = tmp_path / "models" / f".{target.name}.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(native(tmp_path / "q", tmp_path / "models")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [target] * 3 and not left.exists()
    load(target)


# ---------------------------------------------------------------- refusals

CONFIG_REFUSALS = [
    ("qwen", {"rotary_pct": 0.25}, "rotary_pct"),
    ("qwen", {"kv_channels": 16}, "kv_channels"),
    ("qwen", {"no_bias": False}, "no_bias"),
    ("qwen", {"emb_dropout_prob": 0.1}, "emb_dropout_prob"),
    ("qwen", {"tie_word_embeddings": True}, "ties its embeddings"),
    ("qwen", {"quantization_config": {"bits": 4}}, "quantized"),
    ("qwen", {"seq_length": ...}, "no 'seq_length'; download the current revision"),
    ("qwen", {"vocab_size": "large"}, "wrong kind"),
    ("qwen", {"intermediate_size": 64}, "does not fit its config.json"),
    ("qwen", {"num_hidden_layers": 3}, "lack model.layers.2"),
    ("qwen", {"num_hidden_layers": 1}, "does not fit its config.json"),
    ("internlm2", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, '"yarn"'),
    ("internlm2", {"hidden_act": "gelu"}, "silu"),
    ("internlm2", {"num_key_value_heads": 4}, "does not fit its config.json"),
    ("internlm2", {"bias": False}, "does not fit its config.json"),
]


@pytest.mark.parametrize(("kind", "changes", "said"), CONFIG_REFUSALS)
def test_configs_outside_what_was_verified_are_refused(
    kind: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "m", kind, **changes)
    assert said in refusal(tmp_path / "m", tmp_path / "models")
    assert [path for path in (tmp_path / "models").glob("*") if path.suffix != ".lock"] == []


def refusal(folder: Path, cache: Path) -> str:
    with pytest.raises(ModelError) as error:
        native(folder, cache)
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence and str(folder) in sentence
    assert error.value.problems[0].knob == "model_name_or_path"
    return sentence


class Evil:
    def __reduce__(self) -> Any:
        return print, ("code from a checkpoint ran",)


def test_damaged_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, cache = tmp_path / "m", tmp_path / "models"
    weights = write_checkpoint(folder, "qwen")
    file = folder / "model.safetensors"
    save_file(weights | {"transformer.h.0.attn.c_attn.qweight": torch.ones(2)}, file)
    assert "not part of this format" in refusal(folder, cache)
    file.write_bytes(file.read_bytes()[:5000])
    assert "damaged or incomplete" in refusal(folder, cache)
    file.unlink()
    assert "neither model.safetensors nor pytorch_model.bin" in refusal(folder, cache)
    torch.save({"transformer.wte.weight": Evil()}, folder / "pytorch_model.bin")
    assert "other than tensors and was not loaded" in refusal(folder, cache)
    assert "ran" not in capsys.readouterr().out
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.bin"}}))
    assert "outside the folder" in refusal(folder, cache)
    index.write_text(json.dumps({"weight_map": {"a": "pytorch_model-2.bin"}}))
    assert "pytorch_model-2.bin is missing" in refusal(folder, cache)
    index.write_text("{")
    assert "index.json is damaged" in refusal(folder, cache)


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", "qwen")
    (tmp_path / "m" / "qwen.tiktoken").unlink()
    assert "has no qwen.tiktoken" in refusal(tmp_path / "m", tmp_path / "models")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"IQ== 0\nIg== x\n", "damaged"),
        (b"IQ== 0\nIg==\n", "damaged"),
        (b"!! 0\n", "damaged"),
        (b"IQ== 0\nIg== 1\n", "incomplete"),
        (b"", "incomplete"),
    ],
)
def test_damaged_qwen_vocabularies_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        qwen_tokenizer(tmp_path / "qwen.tiktoken")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (sentencepiece_file(trainer=field(3, 1)), "not of the type BPE"),
        (sentencepiece_file(trainer=field(35, 0)), "no byte fallback"),
        (sentencepiece_file(trainer=field(24, 1)), "suffixes"),
        (sentencepiece_file(normalizer=field(2, b"charsmap")), "normalization rule"),
        (sentencepiece_file(normalizer=field(4, 1)), "extra whitespace"),
        (sentencepiece_file(normalizer=field(5, 0)), "escape whitespace"),
        (sentencepiece_file()[:-3], "not a sentencepiece model"),
        (b"\xff" * 40, "not a sentencepiece model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a sentencepiece model"),
        (b"", "empty"),
    ],
)
def test_other_sentencepiece_models_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        internlm2_tokenizer(tmp_path / "tokenizer.model", {})


@settings(max_examples=examples(200))
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_sentencepiece_reader(data: bytes) -> None:
    path = SCRATCH / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        internlm2_tokenizer(path, {})


# ---------------------------------------------------------------- tokenizers, any text


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    global SCRATCH, QWEN, INTERNLM2
    SCRATCH = tmp_path_factory.mktemp("scratch")
    write_qwen_vocabulary(SCRATCH / "qwen.tiktoken")
    QWEN = qwen_tokenizer(SCRATCH / "qwen.tiktoken")
    (SCRATCH / "internlm2.model").write_bytes(sentencepiece_file())
    INTERNLM2 = internlm2_tokenizer(SCRATCH / "internlm2.model", {})


texts = st.text() | st.lists(st.sampled_from([*WORDS, " ", "<|im_start", "e\u0301", "\x00", "🏳️‍🌈"])).map(
    "".join
)


@settings(max_examples=examples(300))
@given(texts)
def test_qwen_round_trip(text: str) -> None:
    """Text comes back in Unicode's NFC form, as the original normalizes."""
    normal = unicodedata.normalize("NFC", text)
    ids = QWEN.encode(text).ids
    assert QWEN.decode(ids, skip_special_tokens=False) == normal
    assert max(ids, default=0) < QWEN.get_vocab_size()


@settings(max_examples=examples(300))
@given(texts.filter(lambda text: "\u2581" not in text and "<s>" not in text))
def test_internlm2_round_trip(text: str) -> None:
    encoded = INTERNLM2.encode(text)
    assert encoded.ids[0] == 1
    assert INTERNLM2.decode(encoded.ids) == text


def test_merges_specials_and_line_ends() -> None:
    assert [QWEN.id_to_token(i) for i in QWEN.encode("the thing").ids] == ["the", "Ġth", "ing"]
    assert QWEN.encode("<|im_end|>").ids == [QWEN.get_vocab_size() - 206]
    assert [QWEN.token_to_id(name) for name in QWEN_SPECIALS] == list(
        range(QWEN.get_vocab_size() - 208, QWEN.get_vocab_size())
    )
    write_qwen_vocabulary(SCRATCH / "crlf.tiktoken", "\r\n")
    assert qwen_tokenizer(SCRATCH / "crlf.tiktoken").to_str() == QWEN.to_str()
    assert INTERNLM2.encode("the thing").tokens == ["<s>", "the", "\u2581th", "ing"]
    assert INTERNLM2.encode("\x01").tokens == ["<s>", "<0x01>"]
    # "th" and "hi" both fit: the better rank, and the better score, goes first
    assert QWEN.encode("thi").tokens == ["th", "i"]
    assert INTERNLM2.encode("thi").tokens == ["<s>", "th", "i"]


def test_tokenizing_needs_no_torch() -> None:
    code = (
        "import sys, tuner.config.models, tuner.data.legacy_tokenizers\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
