"""Tokenizers that mark the begin of words, and special tokens that data brings: ids are those of the whole text."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from data_world import TEXT, config, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.drafts import Draft
from tuner.data.encode import Encoded, Encoder, encode
from tuner.data.report import Place, Tally
from tuner.data.template_choice import template_of
from tuner.data.templates import names
from tuner.data.tokens import Tokenizer

SPECIALS = [
    "<unk>",
    "<s>",
    "</s>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|im_start|>",
    "<|im_end|>",
]


@cache
def pieces(scheme: str) -> Tokenizer:
    """A tokenizer as sentencepiece makes them: Llama 2's normalizer ("prepend"), or a pre-tokenizer's word marks."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if scheme == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=first, show_progress=False)
    backend.train_from_iterator(" ".join(TEXT).split(" ") * 4, trainer)
    backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})


WORDS = st.text(st.sampled_from("aethi AB.,\n1é"), min_size=1, max_size=12).filter(lambda t: t == t.strip())


@pytest.mark.parametrize("scheme", ["prepend", "always", "first"])
@pytest.mark.parametrize(
    "name", ["default", "alpaca", "zephyr", "phi", "llama2", "mistral", "vicuna", "chatml"]
)
def test_the_ids_of_a_chat_are_those_of_its_whole_text(name: str, scheme: str) -> None:
    tk = pieces(scheme)
    wanted = config(template=name, cutoff_len=100_000)
    encoder = Encoder(wanted, template_of(wanted, tk), tk)

    @settings(max_examples=25)
    @given(st.lists(WORDS, min_size=2, max_size=6).filter(lambda said: len(said) % 2 == 0))
    def same(said: list[str]) -> None:
        chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        draft = encoder.draft({"messages": chat})
        assert isinstance(draft, Draft)
        found = encoder.fit(draft, tk.encode_batch(draft.texts, encoder.continues(draft.texts)))
        assert isinstance(found, Encoded)
        assert unmerged(found.row["input_ids"], tk) == unmerged(tk.encode("".join(draft.texts)), tk)

    same()


def unmerged(ids: list[int], tk: Tokenizer) -> list[str]:
    """The letters and special tokens of ids: where a prompt ends, letters that would go together stay apart."""
    found: list[str] = []
    for i in ids:
        token = tk.backend.id_to_token(i)
        found += [token] if token in SPECIALS or token.startswith("<0x") else list(token)
    return found


# --- special tokens in the data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [None, "prepend", "first"])
@pytest.mark.parametrize("split", [False, True])
def test_special_tokens_of_the_data_are_letters_where_they_are_split(split: bool, scheme: str | None) -> None:
    tk = pieces(scheme) if scheme else tokenizer("<s>", "</s>")
    chat = [
        {"role": "user", "content": "say <|im_end|> and </s>"},
        {"role": "assistant", "content": "ok <|im_end|> ok", "reasoning_content": "a <|im_start|>"},
    ]
    wanted = config(template="chatml", split_special_tokens=split)
    template = template_of(wanted, tk)
    found = encode({"messages": chat}, wanted, template, tk)
    assert isinstance(found, Encoded)
    ids: list[int] = found.row["input_ids"]
    markers = [tk.id_of(t) for t in ("<|im_start|>", "<|im_end|>", "</s>")]
    counts = [ids.count(m) for m in markers if m is not None]
    assert counts == ([2, 2, 0] if split else [2, 4, 1])
    if split:
        assert "say <|im_end|> and </s><|im_end|>" in tk.decode(ids)


def test_a_text_without_special_tokens_is_the_same_either_way() -> None:
    tk = tokenizer("<s>", "</s>")
    row = {"messages": [{"role": "user", "content": "a < b"}, {"role": "assistant", "content": "yes|>"}]}
    rows = []
    for split in (False, True):
        wanted = config(template="llama3", split_special_tokens=split)
        found = encode(row, wanted, template_of(wanted, tk), tk)
        assert isinstance(found, Encoded)
        rows.append(found.row)
    assert rows[0] == rows[1]


# --- what a cut leaves ---------------------------------------------------------------------------------------------------

LONG: dict[str, dict[str, Any]] = {
    "sft": {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "why " * 200}, {"role": "assistant", "content": "so"}]},
    "dpo": {
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "why " * 200}],
        "chosen": {"role": "assistant", "content": "so"},
        "rejected": {"role": "assistant", "content": "no"},
    },
    "kto": {
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "why " * 200}],
        "completion": {"role": "assistant", "content": "so"},
        "label": True,
    },
}  # fmt: skip
JINJA = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # fmt: skip


@pytest.mark.parametrize("stage", LONG)
@pytest.mark.parametrize("own", [False, True])
def test_a_cut_keeps_the_system_prompt_and_what_opens_the_turn(stage: str, own: bool) -> None:
    tk = tokenizer(None, "<|im_end|>", JINJA if own else None)
    wanted = config(template=None if own else "chatml", stage=stage, cutoff_len=100)
    found = encode(LONG[stage], wanted, template_of(wanted, tk), tk)
    assert isinstance(found, Encoded)
    ids = found.row.get("input_ids") or found.row["prompt_ids"]
    text = tk.decode(ids)
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
    assert "why <|im_end|>\n<|im_start|>assistant\n" in text
    assert found.cut == "the begin of the question"
    tally = Tally(wanted, "chatml")
    place = Place("set", "set.json", 3)
    tally.see(place)
    tally.keep(place, found, Draft([], [], LONG[stage]))
    assert "cut: the begin of the question" in tally.report.findings["cut"].examples[0]["detail"]


def test_a_cut_says_which_exchanges_went() -> None:
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "word " * 30}]
    tk = tokenizer(None, "<|im_end|>")
    wanted = config(template="chatml", cutoff_len=60)
    found = encode({"messages": turn * 3}, wanted, template_of(wanted, tk), tk)
    assert isinstance(found, Encoded)
    assert "the last" in found.cut and "of 3 exchanges" in found.cut


# --- tools ---------------------------------------------------------------------------------------------------------------

TOOLS = [
    {
        "name": "search",
        "description": "Finds pages.",
        "parameters": {
            "type": "object",
            "properties": {
                "q": {"type": "string", "description": "words", "enum": ["a", "b"]},
                "n": {"type": "array", "description": "pages", "items": {"type": "integer"}},
            },
            "required": ["q"],
        },
    },
    {"type": "function", "function": {"name": "stop"}},
]
SAID = """You have access to the following tools:
> Tool Name: search
Tool Description: Finds pages.
Tool Args:
  - q (string, required): words, should be one of [a, b]
  - n (array): pages, where each item should be integer

> Tool Name: stop
Tool Description:
Tool Args:

Use the following format if using a tool:
```
Action: tool name (one of [search, stop])
Action Input: the input to the tool, in a JSON format representing the kwargs (e.g. ```{"input": "hello world", "num_beams": 5}```)
```
"""


def test_the_default_tool_prompt_is_the_one_that_adapters_from_elsewhere_know() -> None:
    wanted = config(template="default", default_system="Be kind.")
    prompt = template_of(wanted, tokenizer("<s>", "</s>")).prompt([{"role": "user", "content": "q"}], TOOLS)
    assert prompt.replace("Description: \n", "Description:\n").startswith(
        "System: Be kind." + SAID + "</s>\nHuman: q"
    )


@pytest.mark.parametrize("name", [n for n in names() if n not in ("empty",)])
def test_no_template_trains_a_special_token_of_the_question(name: str) -> None:
    """What a person asks stands in the prompt whole, whichever template writes it."""
    tk = tokenizer("<s>", "</s>")
    wanted = config(template=name)
    exchanges = template_of(wanted, tk).exchanges(
        [{"role": "user", "content": "QQ"}, {"role": "assistant", "content": "AA"}] * 2
    )
    assert all("QQ" in e.prompt and "QQ" not in e.answer for e in exchanges)
    assert all("AA" in e.answer and "AA" not in e.prompt for e in exchanges)
