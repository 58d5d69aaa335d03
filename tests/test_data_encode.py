"""Where the loss is, and what survives when tokens have to go."""

from __future__ import annotations

from typing import Any

import pytest
from data_world import config, tokenizer
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_templates import PUBLIC

from tuner.data.batches import Batcher
from tuner.data.encode import MASKED, Encoded, Encoder, encode
from tuner.data.formats import Dropped
from tuner.data.pack import groups, pack, positions
from tuner.data.rows import Rows
from tuner.data.template_choice import template_of
from tuner.data.templates import Written

NATIVE = [*PUBLIC, "default", "empty", "alpaca", "qwen3"]
# Surrogates and the special tokens' own signs are apart: the report tells of them, and they change what is a token.
ANY_TEXT = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="<[|"), min_size=1, max_size=40
).filter(lambda t: bool(t.strip()))
TK = tokenizer("<s>", "</s>")


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, Any]]:
    chat = [{"role": "system", "content": draw(ANY_TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        chat += [
            {"role": "user", "content": draw(ANY_TEXT)},
            {"role": "assistant", "content": draw(ANY_TEXT)},
        ]
    return chat


def encoded(row: dict[str, Any], **values: Any) -> Encoded:
    wanted = config(**{"cutoff_len": 100_000, "template": "default", **values})
    found = encode(row, wanted, template_of(wanted, TK), TK)
    assert isinstance(found, Encoded), found
    return found


def runs(row: dict[str, Any]) -> list[str]:
    """The texts of each run of learnt tokens."""
    found: list[list[int]] = [[]]
    for label in row["labels"]:
        if label == MASKED:
            found.append([])
        else:
            found[-1].append(label)
    return [TK.decode(ids) for ids in found if ids]


@pytest.mark.parametrize("name", NATIVE)
def test_the_mask_covers_exactly_the_assistants_tokens(name: str) -> None:
    template = template_of(config(template=name), TK)
    assert isinstance(template, Written)

    @settings(max_examples=30)
    @given(chats())
    def holds(chat: list[dict[str, Any]]) -> None:
        row = encoded({"messages": chat}, template=name).row
        answers = [m["content"] for m in chat if m["role"] == "assistant"]
        slot, empty = template.assistant, template.thinking.empty if template.thinking else ""
        said = [slot.before + empty + (a.strip() if template.trim else a) + slot.after for a in answers]
        if template.eos_between:
            # Between turns the next turn's first token is learnt as the end of text; at the end it stands there.
            said = [text + template.eos for text in said]
        assert runs(row) == said
        for token, label in zip(row["input_ids"], row["labels"], strict=True):
            assert label in (MASKED, token) or (template.eos_between and label == TK.id_of(template.eos))

    holds()


@settings(max_examples=examples(60))
@given(chats())
def test_no_character_is_lost_or_changed(chat: list[dict[str, Any]]) -> None:
    text = TK.decode(encoded({"messages": chat}, template="chatml").row["input_ids"])
    for message in chat:
        assert message["content"] in text


def test_train_on_prompt_learns_everything() -> None:
    row = encoded({"messages": CHAT}, train_on_prompt=True).row
    assert row["labels"] == row["input_ids"]


def test_mask_history_learns_the_last_answer_only() -> None:
    assert runs(encoded({"messages": CHAT}, mask_history=True).row) == ["second</s>\n"]
    assert runs(encoded({"messages": CHAT}).row) == ["first</s>\n", "second</s>\n"]


CHAT = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "first"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "second"},
]
LONG = "word " * 200


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("stage", ["sft", "dpo", "kto"])
@pytest.mark.parametrize("lengths", [(200, 3), (3, 200), (200, 200)])
def test_the_prompts_end_and_the_end_of_turn_survive(name: str, stage: str, lengths: tuple[int, int]) -> None:
    question, answer = ("word " * n for n in lengths)
    asked = [{"role": "user", "content": question}]
    reply = {"role": "assistant", "content": answer}
    row = {
        "sft": {"messages": [*asked, reply]},
        "dpo": {"messages": asked, "chosen": reply, "rejected": {"role": "assistant", "content": "no"}},
        "kto": {"messages": asked, "completion": reply, "label": True},
    }[stage]
    found = encoded(row, template=name, stage=stage, cutoff_len=64)
    template = template_of(config(template=name), TK)
    exchange = template.answers(asked, [reply])[0]
    prompt, said = prompt_and_answer(found.row)
    assert found.cut and found.length > 64 >= len(prompt) + len(said)
    assert TK.decode(prompt).endswith(exchange.header) and TK.decode(prompt).startswith(template.opening)
    assert TK.decode(said).endswith(exchange.ending)


def prompt_and_answer(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    if "labels" in row:
        cut = next(i for i, label in enumerate(row["labels"]) if label != MASKED)
        return row["input_ids"][:cut], row["input_ids"][cut:]
    return row["prompt_ids"], row.get("chosen_ids") or row["completion_ids"]


def test_what_cannot_fit_is_dropped() -> None:
    wanted = config(template="llama3", cutoff_len=8)
    row = {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": LONG}]}
    found = encode(row, wanted, template_of(wanted, TK), TK)
    assert isinstance(found, Dropped) and found.reason == "too long"


def test_a_long_chat_keeps_its_first_turns_whole() -> None:
    chat = [
        turn
        for i in range(20)
        for turn in ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"})
    ]
    whole = encoded({"messages": chat})
    found = encoded({"messages": chat}, cutoff_len=100)
    assert found.cut and found.tokens <= 100
    assert found.row["input_ids"] == whole.row["input_ids"][: found.tokens]
    assert runs(found.row) == runs(whole.row)[: len(runs(found.row))]


def test_answers_that_differ_beyond_the_cutoff_only_are_dropped() -> None:
    asked = [{"role": "user", "content": "q"}]
    sides = {s: {"role": "assistant", "content": LONG + s} for s in ("chosen", "rejected")}
    wanted = config(template="default", stage="dpo", cutoff_len=32)
    found = encode({"messages": asked, **sides}, wanted, template_of(wanted, TK), TK)
    assert isinstance(found, Dropped) and found.reason == "identical answers"


@settings(max_examples=examples(100))
@given(st.integers(1, 400), st.integers(1, 400), st.integers(16, 200))
def test_a_cut_row_fills_the_cutoff_and_never_passes_it(source: int, target: int, cutoff: int) -> None:
    wanted = config(template="default", stage="dpo", cutoff_len=cutoff)
    encoder = Encoder(wanted, template_of(wanted, TK), TK)
    room = encoder._room(source, target, opening=len(encoder.opening), header=3, ending=2)
    assert room is not None
    assert sum(room) == min(source + target, cutoff) and room[0] <= source and room[1] <= target


@settings(max_examples=examples(60))
@given(st.lists(ANY_TEXT, max_size=30), st.sampled_from(["chatml", "llama3", "zephyr", "default"]))
def test_tokenising_by_sections_changes_nothing(texts: list[str], name: str) -> None:
    wanted = config(template=name)
    encoder = Encoder(wanted, template_of(wanted, TK), TK)
    batcher = Batcher(TK, encoder.frame())
    rendered = [e.prompt + e.answer for t in texts for e in encoder.template.exchanges(chat_of(t))]
    for _ in range(2):  # the second time sections are remembered
        batch = batcher.start(rendered)
        assert [batch.ids(i) for i in range(len(rendered))] == [TK.encode(t) for t in rendered]
        assert batch.counts() == [len(TK.encode(t)) for t in rendered]


def chat_of(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]


@settings(max_examples=examples(80))
@given(st.lists(st.integers(1, 40), max_size=60))
def test_packing_loses_and_doubles_nothing(lengths: list[int]) -> None:
    shared = groups(lengths, 40)
    assert sorted(i for group in shared for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= 40 for group in shared)


@pytest.mark.parametrize("stage", ["pt", "sft"])
def test_packed_rows_say_where_each_example_ends(stage: str) -> None:
    rows = Rows()
    for i in range(30):
        ids = list(range(i, i + 3 + i % 7))
        rows.append({"input_ids": ids, "labels": [MASKED, *ids[1:]] if stage == "sft" else ids})
    packed = pack(rows, config(stage=stage, packing=True, cutoff_len=16))
    parts = []
    for row in packed:
        assert len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"]) <= 16
        assert positions(row["seq_lengths"])[: row["seq_lengths"][0]] == list(range(row["seq_lengths"][0]))
        start = 0
        for length in row["seq_lengths"]:
            parts.append(row["input_ids"][start : start + length])
            start += length
    flat = [t for part in parts for t in part]
    assert sorted(flat) == sorted(t for row in rows for t in row["input_ids"])
    if stage == "sft":
        assert sorted(parts) == sorted(row["input_ids"] for row in rows)


def test_a_word_mark_is_put_where_the_whole_text_has_one() -> None:
    """Tokenizers of the sentencepiece kind: parts tokenised apart equal the text tokenised whole."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    from tuner.data.tokens import Tokenizer

    words = [
        "▁Hello",
        "▁there",
        "▁Hi",
        "[",
        "INST",
        "]",
        "/",
        "▁",
        "H",
        "i",
        "e",
        "l",
        "o",
        "t",
        "h",
        "r",
    ] + ["▁[", "▁[/", "</s>", "<s>", "<unk>"]
    backend = Backend(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Replace("▁", " ")
    backend.add_special_tokens(["<s>", "</s>"])
    tk = Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})
    assert tk.prefixes
    wanted = config(template="llama2")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}] * 2
    found = encode({"messages": chat}, wanted, template_of(wanted, tk), tk)
    assert isinstance(found, Encoded)
    assert found.row["input_ids"] == tk.encode(
        "<s>[INST] Hi [/INST] Hello </s><s>[INST] Hi [/INST] Hello </s>"
    )
