"""A tiny real model for tests: a Llama of two layers and a byte-level BPE tokenizer trained on the spot, in under a second.

folder = tiny.model(tmp_path / "model")          # config, safetensors, tokenizer with a chat template
tiny.data(tmp_path / "data")                    # data sets that can be learned by heart, with dataset_info.json
"""

from __future__ import annotations

import json
import random
from pathlib import Path

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
WORDS = [
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "cat",
    "dog",
    "bird",
    "sun",
    "moon",
    "sea",
    "warm",
    "cold",
    "near",
    "far",
    "old",
    "new",
    "big",
    "small",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Short texts over a small vocabulary, the same ones at every call."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(2, 5))) for _ in range(count)]


def tokenizer(folder: Path) -> None:
    """A byte-level BPE of 400 entries, in the files transformers reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        sentences(200),
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        chat_template=CHAT,
    )
    fast.save_pretrained(folder)


def model(
    folder: Path, *, hidden: int = 32, layers: int = 2, seed: int = 0, vocabulary: int = 400, experts: int = 0
) -> Path:
    """Write a random Llama, or with `experts` a Mixtral, with its tokenizer; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

    torch.manual_seed(seed)
    kind, more = (MixtralConfig, {"num_local_experts": experts}) if experts else (LlamaConfig, {})
    config = kind(
        **more,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        initializer_range=0.15,  # logits of a size that an adapter below the head can move
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer(folder)
    return folder


def data(folder: Path, rows: int = 16) -> Path:
    """Sets of every kind that a tiny model learns by heart, with their dataset_info.json; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, good, bad = sentences(rows, 1), sentences(rows, 2), sentences(rows, 3)
    answers = list(zip(asked, good, bad, strict=True))
    sets = {
        "text": [{"text": g} for g in good],
        "chat": [{"instruction": a, "input": "", "output": g} for a, g, _ in answers],
        "pairs": [{"instruction": a, "input": "", "chosen": g, "rejected": b} for a, g, b in answers],
        "labelled": [
            {"instruction": a, "input": "", "output": g if i % 2 else b, "kto_tag": bool(i % 2)}
            for i, (a, g, b) in enumerate(answers)
        ],
        "decisions": [
            {
                "state": a,
                "questions": {"which": {"type": "choice", "criteria": {g: None, b: None}}},
                "gold": {"which": g},
            }
            for a, g, b in answers
        ],
    }
    for name, records in sets.items():
        (folder / f"{name}.json").write_text(json.dumps(records))
    (folder / "dataset_info.json").write_text(
        json.dumps(
            {
                "text": {"file_name": "text.json", "columns": {"prompt": "text"}},
                "chat": {"file_name": "chat.json"},
                "pairs": {
                    "file_name": "pairs.json",
                    "ranking": True,
                    "columns": {
                        "prompt": "instruction",
                        "query": "input",
                        "chosen": "chosen",
                        "rejected": "rejected",
                    },
                },
                "decisions": {"file_name": "decisions.json", "formatting": "decisions"},
                "labelled": {
                    "file_name": "labelled.json",
                    "columns": {
                        "prompt": "instruction",
                        "query": "input",
                        "response": "output",
                        "kto_tag": "kto_tag",
                    },
                },
            }
        )
    )
    return folder
