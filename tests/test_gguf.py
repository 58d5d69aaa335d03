"""GGUF as llama.cpp itself reads it: the same tokens, the same prompts, the same answers, or a sentence why not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
import texts
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from subsets import some
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tuner.config.knobs import ConfigError
from tuner.export.gguf import lora, pretokenizers
from tuner.export.gguf.llama import Llama
from tuner.export.gguf.write import write

STARTER = Path(__file__).parents[1] / "data" / "starter"
SIZES: dict[str, Any] = {
    "vocab_size": 416, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.15, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOWS = {"query_pre_attn_scalar": 16, "sliding_window": 32}


def rope(kind: str, **how: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind, **how}}


SHAPES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama, tied, with biases": (LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True}),
    "llama, linear": (LlamaConfig, rope("linear", factor=2.0)),
    "llama 3": (LlamaConfig, rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)),
    "llama, yarn": (LlamaConfig, rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "mistral": (MistralConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen2, tied, yarn": (Qwen2Config, {"tie_word_embeddings": True, **rope("yarn", factor=4.0, original_max_position_embeddings=64)}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": True}),
    "gemma": (GemmaConfig, {}),
    "gemma2": (Gemma2Config, WINDOWS | {"num_hidden_layers": 4}),
    "gemma3": (Gemma3TextConfig, WINDOWS | {"num_hidden_layers": 7}),
    "phi3": (Phi3Config, rope("default", partial_rotary_factor=0.5)),
}  # fmt: skip
ATOL = 2e-4
GELU = 5e-3
"""llama.cpp on a CPU looks GELU up in a table of float16: Gemma's activation, and all of its difference."""


def quiet(share: float) -> None:
    pass


def made(folder: Path, kind: type[Any], **more: Any) -> Path:
    """A random model of a shape, with norms and biases that are not what they begin as."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(kind(**{**SIZES, **more}))
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    tiny.tokenizer(folder)
    return folder


def exported(folder: Path, outtype: str = "f32", file: Path | None = None) -> Path:
    file = file or folder / f"{outtype}.gguf"
    write(folder, AutoTokenizer.from_pretrained(folder), file, outtype, "a model", quiet)
    return file


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logps(model: Any, ids: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([list(ids)])).logits[0, -1].double().log_softmax(-1)


@torch.no_grad()
def greedy(model: Any, ids: Sequence[int], longest: int) -> list[int]:
    asked = torch.tensor([list(ids)])
    found = model.generate(
        asked, attention_mask=torch.ones_like(asked), max_new_tokens=longest, do_sample=False
    )
    return found[0, len(ids) :].tolist()


def prompts(model: Any, count: int, length: int = 48) -> list[list[int]]:
    """Random prompts, longer than any window, whose likeliest next token is text: llama.cpp tells no probabilities of the
    end of an answer, nor of half a character."""
    torch.manual_seed(3)
    found: list[list[int]] = []
    while len(found) < count:
        ids = torch.randint(6, 400, (length,)).tolist()
        if 262 <= int(logps(model, ids).argmax()) < 380:  # the merges of tiny's tokenizer
            found.append(ids)
    return found


def differences(llama: Llama, model: Any, asked: Sequence[Sequence[int]]) -> list[float]:
    """The largest difference of the 20 likeliest first tokens' log probabilities, prompt by prompt."""
    found = []
    for ids in asked:
        ours, theirs = logps(model, ids), llama.likeliest(ids, 20)
        assert len(theirs) == 20
        found.append(max(abs(ours[token].item() - value) for token, value in theirs.items()))
    return found


@pytest.fixture(scope="module", autouse=True)
def _llama_cpp() -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")


# --- weights


# One of each architecture that llama.cpp has code of its own for; the slow ones are its other ropes and biases.
@pytest.mark.parametrize("shape", some(SHAPES, "llama", "qwen2, tied, yarn", "gemma3", "phi3"))
def test_every_shape_answers_in_llama_cpp_as_in_transformers(shape: str, tmp_path: Path) -> None:
    kind, more = SHAPES[shape]
    folder = made(tmp_path, kind, **more)
    model = loaded(folder)
    asked = prompts(model, 1)
    with Llama(exported(folder), context=256) as llama:
        assert max(differences(llama, model, asked)) < (GELU if "gemma" in shape else ATOL)
        for ids in asked:
            assert llama.answer(ids, 10) == greedy(model, ids, 10)


def test_phi_reads_long_and_short_texts_by_factors_of_their_own(tmp_path: Path) -> None:
    """llama.cpp takes those for long texts when it is started with a context beyond the first; transformers for each."""
    factors = {"short_factor": [1.0, 1.5, 2, 3, 4, 5, 6, 7], "long_factor": [2.0, 3, 5, 8, 12, 16, 24, 32]}
    stretched = rope("longrope", original_max_position_embeddings=256, **factors)
    folder = made(
        tmp_path, Phi3Config, **stretched, max_position_embeddings=1024, original_max_position_embeddings=256
    )
    model = loaded(folder)
    file = exported(folder)
    for context, asked in ((256, prompts(model, 1)), (512, prompts(model, 1, 300))):
        with Llama(file, context=context) as llama:
            assert max(differences(llama, model, asked)) < ATOL


@pytest.mark.parametrize(
    ("outtype", "far"), [("f16", 0.02), pytest.param("bf16", 0.1, marks=pytest.mark.slow), ("q8_0", 0.2)]
)
def test_smaller_types_are_near(outtype: str, far: float, tmp_path: Path) -> None:
    folder = made(tmp_path, Qwen2Config)
    model = loaded(folder)
    file = exported(folder, outtype)
    assert file.stat().st_size < exported(folder).stat().st_size
    with Llama(file, context=256) as llama:
        assert 0 < max(differences(llama, model, prompts(model, 2))) < far


def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path: Path) -> None:
    refused = {
        "its shape is mixtral": tiny.model(tmp_path / "experts", experts=2),
        "stretched by dynamic are not known": made(tmp_path / "dynamic", LlamaConfig, **rope("dynamic", factor=2.0)),
        "its feed-forward layers have biases": made(tmp_path / "biases", LlamaConfig, mlp_bias=True),
        "llama.cpp knows silu here, and it has gelu": made(tmp_path / "gelu", LlamaConfig, hidden_act="gelu"),
        "scaled in its own way": made(tmp_path / "scale", Gemma2Config, **WINDOWS | {"query_pre_attn_scalar": 32}),
        "its weight lm_head.weight has no place": made(tmp_path / "untied", GemmaConfig, tie_word_embeddings=False),
    }  # fmt: skip
    for said, folder in refused.items():
        with pytest.raises(ConfigError, match=said):
            exported(folder)
        assert not (folder / "f32.gguf").exists()


def test_a_window_that_llama_cpp_does_not_have_bounds_the_context(tmp_path: Path) -> None:
    folder = made(tmp_path, MistralConfig, sliding_window=64)
    said = write(folder, AutoTokenizer.from_pretrained(folder), tmp_path / "m.gguf", "f32", "m", quiet)
    assert str(said[0]).endswith("so the file says that it reads 64 and not 256.")
    field = gguf.GGUFReader(tmp_path / "m.gguf").fields["llama.context_length"]
    assert field.contents() == 64


def test_numbers_too_large_for_f16_are_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, LlamaConfig)
    model = loaded(folder)
    model.lm_head.weight.data[0, 0] = 1e6
    model.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"numbers of lm_head.weight are too large for f16; .* bf16"):
        exported(folder, "f16")


def test_only_one_weight_is_held_at_a_time(tmp_path: Path) -> None:
    """The largest weight of this model is 3.3 MB of its 11; the file is made in less than what all take."""
    import tracemalloc

    folder = made(tmp_path, LlamaConfig, vocab_size=4096, hidden_size=200, num_hidden_layers=8)
    tracemalloc.start()
    file = exported(folder, "f32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < file.stat().st_size * 0.6


# --- tokenizers


def steps_of(steps: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    words = {
        pretokenizers.DIGITS: pre_tokenizers.Digits(individual_digits=True),
        pretokenizers.GPT2: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    }
    made = [words.get(step) or pre_tokenizers.Split(Regex(step), "isolated") for step in steps]
    last = [] if pretokenizers.GPT2 in steps else [pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence([*made, *last])


def byte_level(steps: Sequence[str]) -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = steps_of(steps), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=tiny.SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(texts.texts(1000, [], 7), trainer)
    return found


def pieces(normalizer: Any, splitter: Any) -> Tokenizer:
    """BPE over pieces with bytes to fall back on, as transformers makes it of SentencePiece's models."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="never" if splitter or not normalizer else "always"
    )
    learned.train_from_iterator(
        texts.texts(1000, [], 7), trainers.BpeTrainer(vocab_size=1200, show_progress=False)
    )
    said = json.loads(learned.to_str())["model"]
    first = [*tiny.SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: number for number, token in enumerate(first)}
    for token in said["vocab"]:
        vocabulary.setdefault(token, len(vocabulary))
    found = Tokenizer(
        models.BPE(vocabulary, [tuple(m) for m in said["merges"]], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )  # fmt: skip
    found.normalizer, found.pre_tokenizer = normalizer, splitter
    return found


LOW = "\u2581"
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    **{name: (lambda steps=steps: byte_level(steps)) for steps, name in pretokenizers.NAMES.items()},  # type: ignore[misc]
    "Llama 2": lambda: pieces(normalizers.Sequence([normalizers.Prepend(LOW), normalizers.Replace(" ", LOW)]), None),
    "Gemma": lambda: pieces(normalizers.Replace(" ", LOW), pre_tokenizers.Split(" ", "merged_with_previous")),
}  # fmt: skip
MARKS = ("tekken", "gpt-4o")
"""llama.cpp's own expressions for these do not keep a mark with the letter before it; elsewhere they are the same."""


def with_tokenizer(folder: Path, found: Tokenizer) -> Any:
    base = LlamaConfig(**SIZES | {"vocab_size": 2500, "num_hidden_layers": 1})
    AutoModelForCausalLM.from_config(base).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        unk_token="<unk>" if "<unk>" in found.get_vocab() else None,
        extra_special_tokens=["<|user|>"],
        chat_template=tiny.CHAT,
    ).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def read_otherwise(folder: Path, found: Tokenizer, count: int) -> list[str]:
    tokenizer = with_tokenizer(folder, found)
    with Llama(exported(folder)) as llama:
        asked = texts.texts(count, ["<|user|>", "<|end|>"])
        return [text for text in asked if llama.tokens(text) != tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "gpt-4o", "Llama 2", "Gemma"])
def test_a_tokenizer_is_found_from_its_own_file(name: str, tmp_path: Path) -> None:
    differ = read_otherwise(tmp_path, TOKENIZERS[name](), 40)
    assert not [text for text in differ if name not in MARKS or not texts.has_marks(text)]


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_thousand_texts_are_the_same_tokens(name: str, tmp_path: Path) -> None:
    differ = read_otherwise(tmp_path, TOKENIZERS[name](), 1000)
    assert not [text for text in differ if name not in MARKS or not texts.has_marks(text)]


def test_a_tokenizer_without_a_name_is_refused(tmp_path: Path) -> None:
    found = byte_level([r"\p{N}{1,2}", pretokenizers.GPT2])
    with_tokenizer(tmp_path, found)
    with pytest.raises(ConfigError, match="no name for the way its tokenizer splits text"):
        exported(tmp_path)
    assert not (tmp_path / "f32.gguf").exists()


# --- the starter


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(STARTER, file=tmp_path_factory.mktemp("starter") / "starter.gguf")


def test_the_starter_reads_a_thousand_texts_alike(starter: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    with Llama(starter) as llama:
        asked = texts.texts(1000, ["<|im_start|>", "<|im_end|>"])
        assert not [text for text in asked if llama.tokens(text) != tokenizer(text)["input_ids"]]


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}


def conversations(count: int) -> list[tuple[list[dict[str, Any]], list[Any] | None]]:
    """Conversations with and without a system text, tools and their calls."""
    said = [text.strip() or "?" for text in texts.texts(count * 4, [], 5)]
    found: list[tuple[list[dict[str, Any]], list[Any] | None]] = []
    for i in range(count):
        one, two, three, system = said[4 * i : 4 * i + 4]
        chat: list[dict[str, Any]] = [{"role": "system", "content": system}] if i % 2 else []
        chat.append({"role": "user", "content": one})
        if i % 3 == 1:
            chat += [{"role": "assistant", "content": two}, {"role": "user", "content": three}]
        if i % 4 == 3:
            call = {"type": "function", "function": {"name": "weather", "arguments": {"town": two}}}
            chat.append({"role": "assistant", "content": "", "tool_calls": [call]})
            chat.append({"role": "tool", "content": three})
        found.append((chat, [TOOL] if i % 4 >= 2 else None))
    return found


def test_prompts_are_rendered_alike(starter: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    with Llama(starter) as llama:
        for chat, tools in conversations(20):
            wanted = tokenizer.apply_chat_template(
                chat, tools=tools, tokenize=False, add_generation_prompt=True
            )
            assert llama.rendered(chat, tools) == wanted
    told = gguf.GGUFReader(starter).fields["tokenizer.chat_template"].contents()
    assert not re.search(r"\{%-?\s*(end)?generation\b", told)


def asked_of_the_starter(count: int) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    rows = json.loads((STARTER.parent / "starter_eval_sft.json").read_text())[:count]
    chats = [[{"role": "user", "content": row["instruction"]}] for row in rows]
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats
    ]


def adapter(folder: Path, **more: Any) -> Path:
    """A LoRA of the starter that changes what it says."""
    settings: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", **more}
    model = get_peft_model(loaded(STARTER), LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.02 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


def merged_with(folder: Path, target: Path) -> Any:
    model = PeftModel.from_pretrained(loaded(STARTER), str(folder)).merge_and_unload().eval()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(STARTER).save_pretrained(target)
    return model


def same_answers(folder: Path, count: int) -> None:
    model = merged_with(adapter(folder / "adapter"), folder / "merged")
    asked = asked_of_the_starter(count)
    assert len(asked) == count
    with Llama(exported(folder / "merged")) as llama:
        assert max(differences(llama, model, asked)) < ATOL
        assert [llama.answer(ids, 32) for ids in asked] == [greedy(model, ids, 32) for ids in asked]


@pytest.mark.slow  # a random model answers alike above, the starter's tokens and prompts too
def test_a_tuned_starter_answers_alike(tmp_path: Path) -> None:
    same_answers(tmp_path, 4)


@pytest.mark.slow
def test_a_tuned_starter_answers_fifty_of_fifty_alike(tmp_path: Path) -> None:
    same_answers(tmp_path, 50)


# --- adapters


@pytest.mark.parametrize(
    "more",
    [{}, {"use_rslora": True, "alpha_pattern": {"q_proj": 64}, "rank_pattern": {"k_proj": 4}}],
    ids=["plain", "of its own scale"],
)
def test_an_adapter_on_the_base_is_the_merged_model(
    more: dict[str, Any], starter: Path, tmp_path: Path
) -> None:
    model = merged_with(adapter(tmp_path / "adapter", **more), tmp_path / "merged")
    base = loaded(STARTER)
    file = tmp_path / "lora.gguf"
    lora.write(tmp_path / "adapter", AutoConfig.from_pretrained(STARTER), file, "f32", "a")
    asked = asked_of_the_starter(2)
    with Llama(starter, file) as llama:
        assert max(differences(llama, model, asked)) < 1e-3
        assert max(differences(llama, base, asked)) > 0.05


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"use_dora": True}, "it is DoRA"),
        ({"modules_to_save": ["lm_head"]}, "it trained whole modules"),
        ({"target_modules": ["embed_tokens"]}, "has no place there"),
        ({"target_modules": ["q_proj"], "bias": "lora_only"}, "it trained biases"),
    ],
)
def test_what_an_adapter_s_file_cannot_hold_is_refused(
    more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "adapter", **more)
    with pytest.raises(ConfigError, match=f"{said}.*--export_format gguf"):
        lora.write(folder, AutoConfig.from_pretrained(STARTER), tmp_path / "lora.gguf", "f32", "a")
    assert not (tmp_path / "lora.gguf").exists()
