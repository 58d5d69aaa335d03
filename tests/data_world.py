"""What the data tests share: a small tokenizer made on the spot, catalogs in a folder, and where real files lie."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tuner.config.config import Config, make
from tuner.data.tokens import Tokenizer, load_tokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
REAL = REPOSITORY.parent / "shared" / "data"
QWEN = REPOSITORY.parent / "shared" / "tokenizers" / "qwen"

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data files are not beside this checkout")
needs_qwen = pytest.mark.skipif(not QWEN.is_dir(), reason="the real tokenizer is not beside this checkout")

SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|end|>", "[gMASK]", "<sop>", "<think>", "</think>",
    "[INST]", "[/INST]", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
]  # fmt: skip
TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Human: what is the answer?\nAssistant: the answer is forty two.\nSystem: be kind and brief.\n",
    "How do I make bread? Mix flour, water, salt and yeast; wait; bake it in a hot oven.\n\n",
    "你好，世界。今天天气很好。Grüße aus Köln! Ça va? Привет. 🙂",
    '{"name": "search", "arguments": {"query": "weather", "limit": 10}}\nASSISTANT: USER: ### Response: ### Instruction:',
]


# Where today's byte-level tokenizers (Llama 3, Qwen, GLM) part words.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def tokenizer(
    bos: str | None = None, eos: str = "<|endoftext|>", chat_template: str | None = None
) -> Tokenizer:
    """A byte-level BPE with the special tokens of every family, trained here in a few milliseconds."""
    settings: dict[str, Any] = {"eos_token": eos, "pad_token": "<|endoftext|>"}
    settings |= {"bos_token": bos} if bos else {}
    settings |= {"chat_template": chat_template} if chat_template else {}
    return Tokenizer(_backend(), settings)


@cache
def _trained() -> str:
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT * 4, trainer)
    return str(backend.to_str())


def _backend() -> Any:
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(_trained())


@cache
def qwen() -> Tokenizer:
    """The real Qwen tokenizer."""
    return load_tokenizer(QWEN)


def model_folder(folder: Path, chat_template: str | None = None, eos: str = "<|endoftext|>") -> Path:
    """A folder that holds the small tokenizer as a model's does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_trained(), encoding="utf-8")
    settings = {"eos_token": eos, "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return folder


def catalog(folder: Path, **sets: tuple[dict[str, Any], Any]) -> Path:
    """A data folder: each set is its attributes and its rows (a list of records, or the file's text)."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {}
    for name, (attributes, rows) in sets.items():
        info[name] = {"file_name": f"{name}.json", **attributes}
        text = rows if isinstance(rows, str) else json.dumps(rows, ensure_ascii=False)
        (folder / info[name]["file_name"]).write_text(text, encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


def config(**values: Any) -> Config:
    """A config with what every config needs."""
    return make({"model_name_or_path": "model", "dataset": "set", **values})


RANKED = {
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}
LABELLED = {"formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "label"}}


def pair(question: str, better: str, worse: str) -> dict[str, Any]:
    """A preference record in sharegpt's form."""
    return {
        "conversations": [{"from": "human", "value": question}],
        "chosen": {"from": "gpt", "value": better},
        "rejected": {"from": "gpt", "value": worse},
    }
