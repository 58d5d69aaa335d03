"""Which characters are learnt: against independent renderers, over random chats that imitate the markup around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from data_world import config, tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_templates import CHATML, MARKED, PUBLIC, QWEN3

from tuner.data.chat_template import compile_template
from tuner.data.encode import MASKED, Encoded, encode
from tuner.data.template_choice import template_of
from tuner.data.templates import RefusedError
from tuner.data.tokens import Tokenizer

Chat = list[dict[str, Any]]
Segments = list[tuple[str, bool]]
"""A text in parts, each with whether it is learnt."""
drawn = pytest.mark.parametrize("count", [60, pytest.param(625, marks=pytest.mark.slow)])
"""Chats for each of 16 templates; the slow form draws 10,000 in all."""

# Short pieces of the markup itself, so that a search for an answer would find it in the wrong place.
PIECES = ["a", "i", "m", "st", "art", "user", "assistant", "\n", " ", "  ", "b", "1", "INST", "Assistant:", "think", "<", ">", "|", "é", "你"]  # fmt: skip
SAID = (
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join).filter(lambda t: bool(t.strip()))
)
THOUGHT = st.one_of(st.none(), SAID.map(str.strip))


@st.composite
def chats(draw: st.DrawFn, system: bool, thoughts: bool = False) -> Chat:
    chat: Chat = [{"role": "system", "content": draw(SAID)}] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        thought = draw(THOUGHT) if thoughts else None
        before = f"<think>\n{thought}\n</think>\n\n" if thought is not None else ""
        answer = draw(SAID).strip() if thoughts else draw(SAID)
        chat += [{"role": "user", "content": draw(SAID)}, {"role": "assistant", "content": before + answer}]
    return chat


def runs(row: dict[str, Any], tk: Tokenizer) -> Segments:
    """An encoded row's text as parts that are learnt and parts that are not."""
    found: list[tuple[list[int], bool]] = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        learnt = label != MASKED
        if found and found[-1][1] == learnt:
            found[-1][0].append(token)
        else:
            found.append(([token], learnt))
    return [(tk.decode(ids), learnt) for ids, learnt in found]


def joined(segments: Segments) -> Segments:
    """Neighbours of one kind as one."""
    found: Segments = []
    for text, learnt in segments:
        if found and found[-1][1] == learnt:
            found[-1] = (found[-1][0] + text, learnt)
        elif text:
            found.append((text, learnt))
    return found


def by_prompts(render: Callable[[Chat, bool], str], chat: Chat) -> Segments:
    """What a template that never looks back writes: an answer is all that is new behind the prompt that asks for it."""
    found: Segments = []
    for i, message in enumerate(chat):
        if message["role"] == "assistant":
            before = "".join(text for text, _ in found)
            prompt, whole = render(chat[:i], True), render(chat[: i + 1], False)
            assert prompt.startswith(before) and whole.startswith(prompt)
            found += [(prompt[len(before) :], False), (whole[len(prompt) :], True)]
    return joined(found)


@drawn
@pytest.mark.parametrize("name", PUBLIC)
def test_written_templates_train_the_assistants_characters(name: str, count: int) -> None:
    bos, eos, jinja, takes_system = PUBLIC[name]
    tk = tokenizer(bos, eos)
    public = compile_template(jinja)

    def render(chat: Chat, asks: bool) -> str:
        return public.render(messages=chat, bos_token=bos, eos_token=eos, add_generation_prompt=asks)

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(chats(takes_system or name == "llama2"))
    def same(chat: Chat) -> None:
        wanted = config(template=name, cutoff_len=100_000, default_system=None if name == "qwen" else "")
        found = encode({"messages": chat}, wanted, template_of(wanted, tk), tk)
        assert isinstance(found, Encoded)
        ours = runs(found.row, tk)
        theirs = by_prompts(render, chat)
        if name == "glm4":  # the end of text stands where the next turn begins, and at the very end
            assert ours[-1][0] == theirs[-1][0] + eos
            assert "".join(t for t, _ in ours) == "".join(t for t, _ in theirs) + eos
            return
        assert ours == theirs

    same()


# --- templates that rewrite earlier turns -------------------------------------------------------------------------------

R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content | trim }}"
    "{% elif m.role == 'system' %}{{ m.content }}"
    "{% else %}<|assistant|>{{ (m.content.split('</think>') | last).strip() }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
LAST = (  # keeps the thought of the last answer alone, in words that it builds with a macro, ~ and a set block
    "{% macro turn(who, text) %}[{{ who }}] {{ text }}{{ '\n' }}{% endmacro %}"
    "{% for m in messages %}{% set words %}{{ m.content }}{% endset %}"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in m.content %}"
    "{% set words = m.content.partition('</think>')[2].lstrip('\n') ~ '' %}{% endif %}"
    "{{ turn(m.role, words) }}{% if m.role == 'assistant' %}{{ eos_token ~ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def _parted(content: str) -> tuple[str | None, str]:
    """A content's thought, None without, and its words."""
    if "</think>" not in content:
        return None, content
    thought, _, words = content.partition("</think>")
    return thought.partition("<think>")[2].strip("\n"), words


def qwen3(chat: Chat) -> Segments:
    found: Segments = []
    for i, m in enumerate(chat):
        found.append((f"<|im_start|>{m['role']}\n", False))
        if m["role"] != "assistant":
            found.append((m["content"] + "<|im_end|>\n", False))
            continue
        thought, words = _parted(m["content"])
        words = words.lstrip("\n")
        shown = f"<think>\n{thought or ''}\n</think>\n\n" if i == len(chat) - 1 else ""
        found.append((shown + words + "<|im_end|>\n", True))
    return joined(found)


def r1(chat: Chat) -> Segments:
    found: Segments = [("<s>", False)]
    for i, m in enumerate(chat):
        if m["role"] != "assistant":
            found.append(("<|user|>" + m["content"].strip() if m["role"] == "user" else m["content"], False))
            continue
        thought, words = _parted(m["content"])
        if (
            i == len(chat) - 1 and thought is not None
        ):  # what the model says behind the prompt that opens its thought
            found += [
                ("<|assistant|><think>\n", False),
                (m["content"].strip().removeprefix("<think>").lstrip("\n") + "</s>", True),
            ]
        else:
            found += [("<|assistant|>", False), (words.strip() + "</s>", True)]
    return joined(found)


def last_thought(chat: Chat) -> Segments:
    found: Segments = []
    for i, m in enumerate(chat):
        found.append((f"[{m['role']}] ", False))
        if m["role"] != "assistant":
            found.append((m["content"] + "\n", False))
            continue
        words = m["content"]
        if i < len(chat) - 1 and "</think>" in words:
            words = words.partition("</think>")[2].lstrip("\n")
        found.append((words + "\n</s>\n", True))
    return joined(found)


@drawn
@pytest.mark.parametrize(
    ("jinja", "eos", "render"), [(QWEN3, "<|im_end|>", qwen3), (R1, "</s>", r1), (LAST, "</s>", last_thought)]
)
def test_rewriting_templates_train_the_assistants_characters(
    jinja: str, eos: str, render: Callable[[Chat], Segments], count: int
) -> None:
    tk = tokenizer("<s>", eos, jinja)
    template = template_of(config(template=None), tk)

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(chats(system=True, thoughts=True))
    def same(chat: Chat) -> None:
        found = encode({"messages": chat}, config(template=None, cutoff_len=100_000), template, tk)
        assert isinstance(found, Encoded)
        assert runs(found.row, tk) == render(chat)

    same()


@pytest.mark.parametrize(
    "write",
    [
        "{{ m.content | upper }}", "{{ m.content.replace('a', 'bb') }}", "{{ m.content[:1] ~ m.content[1:] }}",
        "{{ '%s' % m.content }}", "{{ '{}'.format(m.content) }}", "{{ ''.join([m.content]) }}", "{{ m.content * 1 }}",
        "{{ m.content.split('\n') | join('\n') }}", "{{ m.content | tojson }}", "{{ m.content.rsplit(' ', 1) | join(' ') }}",
        "{{ m.content.rpartition(' ') | join }}", "{{ m.content.splitlines(true) | join }}", "{{ m.content | replace('a', 'b') }}",
        "{% set ns = namespace(t='') %}{% set ns.t = ns.t + m.content %}{{ ns.t }}", "{% filter trim %}{{ m.content }}{% endfilter %}",
        "{% for c in m.content %}{{ c }}{% endfor %}", "{{ m.content | list | join }}", "{{ m['content'] | string | trim }}",
    ],
)  # fmt: skip
def test_an_answer_is_followed_through_whatever_a_template_does_with_it(write: str) -> None:
    # An earlier answer is written otherwise than the last, so that no prompt begins the next.
    end = "{% if m.role == 'user' or loop.last %}!{% else %}?!{% endif %}"
    jinja = f"{{% for m in messages %}}<{{{{ m.role }}}}>{write}{end}{{% endfor %}}{{% if add_generation_prompt %}}<assistant>{{% endif %}}"  # fmt: skip
    tk = tokenizer(None, "</s>", jinja)
    chat = [
        {"role": r, "content": c}
        for r, c in zip(["user", "assistant"] * 2, ["a b", "a b", "q a", "last a"], strict=True)
    ]
    found = encode({"messages": chat}, config(template=None), template_of(config(template=None), tk), tk)
    assert isinstance(found, Encoded), found
    learnt = [text for text, is_learnt in runs(found.row, tk) if is_learnt]
    whole = compile_template(jinja).render(messages=chat)
    parts = [p.rpartition(">")[2] + "!" for p in whole.split("!")[:-1]]
    assert "?" in parts[1] and "?" not in parts[3]
    assert learnt == [parts[1], parts[3]]


def test_messages_that_a_template_writes_as_one_are_refused_with_the_reason() -> None:
    jinja = "{{ '>' if messages | length > 3 }}{{ messages | map(attribute='content') | join('|') }}{% if add_generation_prompt %}>{% endif %}"  # fmt: skip
    template = template_of(config(template=None), tokenizer(None, "</s>", jinja))
    chat = [{"role": r, "content": "x"} for r in ("user", "assistant", "user", "assistant")]
    with pytest.raises(RefusedError, match="several messages as one"):
        template.exchanges(chat)


def test_an_answer_of_no_weight_is_read_and_not_learnt() -> None:
    chat: Chat = [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "WRONG", "trained": False},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "right"},
    ]
    for jinja, eos in ((CHATML, "<|im_end|>"), (MARKED, "<|im_end|>"), (QWEN3, "<|im_end|>"), (None, "</s>")):
        tk = tokenizer(None, eos, jinja)
        wanted = config(template=None if jinja else "default", cutoff_len=1000)
        found = encode({"messages": chat}, wanted, template_of(wanted, tk), tk)
        assert isinstance(found, Encoded)
        parts = runs(found.row, tk)
        assert any("WRONG" in t for t, learnt in parts if not learnt)
        assert [t for t, learnt in parts if learnt and ("WRONG" in t or "right" in t)] == [
            parts[-1 if parts[-1][1] else -2][0]
        ]
        nothing = encode({"messages": [*chat[:1], chat[1]]}, wanted, template_of(wanted, tk), tk)
        assert not isinstance(nothing, Encoded) and nothing.reason == "nothing to learn"


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto"])
def test_marks_of_a_template_are_obeyed_alike_in_every_stage(stage: str) -> None:
    """The line break behind the end of turn stands outside of the marks, and is learnt in no stage."""
    tk = tokenizer(None, "<|im_end|>", MARKED)
    wanted = config(template=None, stage=stage)
    asked = [{"role": "user", "content": "q"}]
    answers = [{"role": "assistant", "content": c} for c in ("yes", "no")]
    rows: dict[str, dict[str, Any]] = {
        "sft": {"messages": [*asked, answers[0]]},
        "dpo": {"messages": asked, "chosen": answers[0], "rejected": answers[1]},
        "kto": {"messages": asked, "completion": answers[0], "label": True},
    }
    found = encode(rows[stage], wanted, template_of(wanted, tk), tk)
    assert isinstance(found, Encoded)
    row = found.row
    learnt = row.get("chosen_ids") or row.get("completion_ids") or [i for i in row["labels"] if i != MASKED]
    assert tk.decode(learnt) == "yes<|im_end|>"


# --- thoughts -----------------------------------------------------------------------------------------------------------

INSIDE = CHATML.replace(
    "{{ m.content }}", "{{ m.content if '</think>' not in m.content or loop.last else '' }}"
)
APART = CHATML.replace("{{ m.content }}", "{% if m.reasoning_content %}<t>{{ m.reasoning_content }}</t>{% endif %}{{ m.content }}")  # fmt: skip


@pytest.mark.parametrize(
    ("jinja", "name", "answer"),
    [
        (None, "qwen3", "<think>\nadd them\n</think>\n\n4<|im_end|>\n"),
        (INSIDE, None, "<think>\nadd them\n</think>\n\n4<|im_end|>\n"),
        (APART, None, "<t>add them</t>4<|im_end|>\n"),
    ],
)
def test_a_thought_of_its_own_key_is_learnt(jinja: str | None, name: str | None, answer: str) -> None:
    tk = tokenizer(None, "<|im_end|>", jinja)
    row = {
        "messages": [
            {"role": "user", "content": "2+2"},
            {"role": "assistant", "content": "4", "reasoning_content": "add them"},
        ]
    }
    found = encode(row, config(template=name), template_of(config(template=name), tk), tk)
    assert isinstance(found, Encoded)
    assert tk.decode([i for i in found.row["labels"] if i != MASKED]) == answer


def test_a_thought_that_the_template_leaves_out_is_noted() -> None:
    from tuner.data.drafts import Draft
    from tuner.data.encode import Encoder

    row = {
        "messages": [
            {"role": "user", "content": "2+2"},
            {"role": "assistant", "content": "4", "reasoning_content": "add them"},
        ]
    }
    for name, noted in (("chatml", True), ("qwen3", False)):
        wanted = config(template=name)
        draft = Encoder(wanted, template_of(wanted, tokenizer()), tokenizer()).draft(row)
        assert isinstance(draft, Draft)
        assert draft.notes == ((("thought left out", "add them"),) if noted else ())


@pytest.mark.parametrize(
    ("on", "answer"),
    [(True, "<think>\nadd them\n</think>\n\n4"), (False, "4"), (None, "<think>\nadd them\n</think>\n\n4")],
)
def test_a_thought_that_only_ends_is_opened_or_taken_out_whole(on: bool | None, answer: str) -> None:
    template = template_of(config(template="qwen3", enable_thinking=on), tokenizer())
    exchange = template.exchanges(
        [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "add them\n</think>\n\n4"}]
    )[0]
    assert exchange.answer == answer + "<|im_end|>\n"
    assert exchange.prompt.endswith("</think>\n\n") == (on is False)
