"""Templates: the written ones against the public chat templates of their families, the names, thoughts and tools."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from data_world import REPOSITORY, config, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.config.knobs import ConfigError
from tuner.data.chat_template import CLOSE, OPEN, compile_template
from tuner.data.encode import MASKED, Encoded, encode
from tuner.data.template_choice import as_jinja, template_of, to_save
from tuner.data.templates import RefusedError, Written, names, stop_ids, table

Chat = list[dict[str, Any]]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
SYSTEM_FIRST = (
    "{% if messages[0].role != 'system' %}<|im_start|>system{{ '\n' }}SYSTEM<|im_end|>{{ '\n' }}{% endif %}"
)
# Each family's public chat template, put down again from what its model card or tokenizer_config.json says, in our own
# words: (bos, eos, jinja, whether it takes a system message).
PUBLIC: dict[str, tuple[str | None, str, str, bool]] = {
    "chatml": (None, "<|im_end|>", CHATML, True),
    "yi": (None, "<|im_end|>", CHATML, True),
    "qwen": (
        None,
        "<|im_end|>",
        SYSTEM_FIRST.replace("SYSTEM", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
        + CHATML,
        True,
    ),
    "intern2": ("<s>", "</s>", "{{ bos_token }}" + CHATML, True),
    "llama2": (
        "<s>",
        "</s>",
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}"
        "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
        "{% for m in rest %}{% if loop.index0 == 0 and system %}"
        "{% set content = '<<SYS>>\n' + system.strip() + '\n<</SYS>>\n\n' + m.content.strip() %}"
        "{% else %}{% set content = m.content.strip() %}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}"
        "{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}",
        True,
    ),
    "llama3": (
        "<|begin_of_text|>",
        "<|eot_id|>",
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        True,
    ),
    "mistral": (
        "<s>",
        "</s>",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        False,
    ),
    "gemma": (
        "<bos>",
        "<eos>",
        "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        False,
    ),
    "phi": (
        None,
        "<|endoftext|>",
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        True,
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
        "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
        "{% else %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        True,
    ),
    "glm4": (
        None,
        "<|endoftext|>",
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>{{ '\n' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        True,
    ),
    "zephyr": (
        "<s>",
        "</s>",
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        True,
    ),
    "vicuna": (
        None,
        "</s>",
        "{% if messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        True,
    ),
}
# Qwen3's own template leaves the thoughts of earlier turns out and shows an empty one in the last answer.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ parts[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)

WORDS = st.text(st.sampled_from("abc XYZ.,!?\n0123你好é🙂-{}'\""), min_size=1, max_size=30).filter(
    lambda t: t == t.strip() and bool(t)
)


@st.composite
def chats(draw: st.DrawFn, system: bool = True) -> Chat:
    turns = draw(st.integers(1, 3))
    chat: Chat = [{"role": "system", "content": draw(WORDS)}] if system else []
    for _ in range(turns):
        chat += [{"role": "user", "content": draw(WORDS)}, {"role": "assistant", "content": draw(WORDS)}]
    return chat


def whole_ids(row: Encoded) -> list[int]:
    ids: list[int] = row.row["input_ids"]
    return ids


@pytest.mark.parametrize("name", PUBLIC)
def test_a_written_template_is_its_public_one_token_for_token(name: str) -> None:
    bos, eos, jinja, takes_system = PUBLIC[name]
    tk = tokenizer(bos, eos)
    template = template_of(config(template=name), tk)
    public = compile_template(jinja)

    @settings(max_examples=40)
    @given(chats(system=takes_system))
    def same(chat: Chat) -> None:
        theirs = public.render(messages=chat, bos_token=bos, eos_token=eos, add_generation_prompt=False)
        found = encode({"messages": chat}, config(template=name, cutoff_len=100_000), template, tk)
        assert isinstance(found, Encoded)
        ours = whole_ids(found)
        if template.eos_between:
            assert ours[-1] == tk.eos_id  # the end of text, which the public template leaves to generation
            ours = ours[:-1]
        assert ours == tk.encode(theirs)
        asked = public.render(messages=chat[:-1], bos_token=bos, eos_token=eos, add_generation_prompt=True)
        assert template.prompt(chat[:-1]) == asked

    same()


def test_the_system_prompt_of_its_own_is_the_public_one() -> None:
    _, eos, jinja, _ = PUBLIC["qwen"]
    chat = [{"role": "user", "content": "hi"}]
    theirs = compile_template(jinja).render(messages=chat, eos_token=eos, add_generation_prompt=True)
    assert template_of(config(template="qwen"), tokenizer()).prompt(chat) == theirs


THOUGHTFUL: Chat = [
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "<think>\nold\n</think>\n\na1"},
    {"role": "user", "content": "q2"},
]


@pytest.mark.parametrize("answer", ["a2", "<think>\nnew\n</think>\n\na2"])
def test_qwen3_answers_are_the_public_ones(answer: str) -> None:
    template = template_of(config(template="qwen3"), tokenizer())
    reply = {"role": "assistant", "content": answer}
    exchange = template.answers(THOUGHTFUL, [reply])[0]
    theirs = compile_template(QWEN3).render(messages=[*THOUGHTFUL, reply], add_generation_prompt=False)
    assert exchange.prompt + exchange.answer == theirs


@pytest.mark.parametrize(
    ("enabled", "prompt_end", "answer"),
    [
        (True, "assistant\n", "<think>\n\n</think>\n\na2<|im_end|>\n"),
        (False, "<think>\n\n</think>\n\n", "a2<|im_end|>\n"),
        (None, "<think>\n\n</think>\n\n", "a2<|im_end|>\n"),
    ],
)
def test_a_missing_thought_is_learnt_or_given(enabled: bool | None, prompt_end: str, answer: str) -> None:
    template = template_of(config(template="qwen3", enable_thinking=enabled), tokenizer())
    exchange = template.answers(THOUGHTFUL, [{"role": "assistant", "content": "a2"}])[0]
    assert exchange.prompt.endswith(prompt_end)
    assert exchange.answer == answer
    assert "old" not in exchange.prompt


def test_thoughts_are_kept_or_taken_out() -> None:
    full = [*THOUGHTFUL, {"role": "assistant", "content": "<think>\nnew\n</think>\n\na2"}]
    kept = template_of(config(template="qwen3", preserve_thinking=True), tokenizer()).answers(
        full[:-1], full[-1:]
    )[0]
    assert "old" in kept.prompt and "new" in kept.answer
    off = template_of(config(template="qwen3", enable_thinking=False), tokenizer()).exchanges(full)
    assert not any(word in e.answer for e in off for word in ("old", "new"))
    rows = template_of(config(template="qwen3", enable_thinking=None), tokenizer()).exchanges(full)
    assert "old" in rows[0].answer and "new" in rows[1].answer


def test_all_names_of_the_other_tool_are_here() -> None:
    assert len(names()) == 124


FACTS = REPOSITORY.parent / "shared" / "facts" / "llamafactory.md"


@pytest.mark.skipif(not FACTS.is_file(), reason="the facts' table of templates is not beside this checkout")
def test_every_name_has_the_traits_it_has_there() -> None:
    text = FACTS.read_text(encoding="utf-8").replace("\\|", "¦")
    lines = text[text.index("### 5.5 ") : text.index("Tool formats (13)")].splitlines()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    rows = {c[0]: c[1:] for c in cells if len(c) == 9 and c[0] != "name"}
    assert set(rows) == set(names())
    for name, (_, flags, stop, kind, tools, _, system, _) in rows.items():
        ours = table()[name]
        traits = {
            "default_system": system == "Y",
            "efficient_eos": "eff" in flags.split(","),
            "replace_eos": "repl-eos" in flags.split(","),
            "thought": "Reasoning" in kind,
        }
        assert {key: bool(ours.get(key)) for key in traits} == traits, name
        assert list(ours.get("stop", [])) == [s.replace("¦", "|") for s in re.findall('"(.*?)"', stop)], name
        assert ours.get("tools", "default") == (tools or "default"), name


@pytest.mark.parametrize("name", names())
def test_every_name_renders_a_chat_whole(name: str) -> None:
    tk = tokenizer("<s>", "</s>")
    template = template_of(config(template=name), tk)
    assert isinstance(template, Written)
    chat = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}]
    exchange = template.exchanges(chat)[0]
    assert "QUESTION" in exchange.prompt and "ANSWER" in exchange.answer
    assert exchange.prompt.endswith(exchange.header) and exchange.answer.endswith(exchange.ending)


def test_a_name_is_obeyed_and_no_name_is_the_tokenizers_own_template() -> None:
    tk = tokenizer(None, "<|im_end|>", CHATML)
    assert template_of(config(template=None), tk).name == "tokenizer"
    assert template_of(config(template=None), tokenizer()).name == "empty"
    assert all(template_of(config(template=name), tk).name == name for name in names())


def test_qwen3_nothink_teaches_no_empty_thought_to_a_hybrid_model() -> None:
    tk = tokenizer(None, "<|im_end|>", QWEN3)
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    answers = {
        name: template_of(config(template=name), tk).exchanges(chat)[0].answer
        for name in ("qwen3_nothink", None)
    }
    assert answers == {"qwen3_nothink": "a<|im_end|>\n", None: "<think>\n\n</think>\n\na<|im_end|>\n"}


def test_an_unknown_template_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean llama3"):
        template_of(config(template="llama33"), tokenizer())


MARKED = CHATML.replace(
    "{{ m.content }}<|im_end|>",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}",
)


@pytest.mark.parametrize("jinja", [CHATML, MARKED, QWEN3], ids=["plain", "marked", "rewriting"])
def test_the_tokenizers_own_template_is_rendered_as_it_is(jinja: str) -> None:
    tk = tokenizer(None, "<|im_end|>", jinja)
    template = template_of(config(template=None), tk)
    chat = [*THOUGHTFUL, {"role": "assistant", "content": "a2"}]
    found = encode({"messages": chat}, config(template=None), template, tk)
    assert isinstance(found, Encoded)
    theirs = compile_template(jinja).render(
        messages=chat, add_generation_prompt=False, eos_token="<|im_end|>"
    )
    plain = theirs.replace("\ufdd0answer\ufdd0", "").replace("\ufdd1answer\ufdd1", "")
    assert tk.decode(whole_ids(found)) == plain
    learnt = tk.decode([i for i in found.row["labels"] if i != MASKED])
    assert "a2<|im_end|>" in learnt and "q1" not in learnt and "q2" not in learnt


def test_a_template_that_refuses_drops_the_row_with_its_reason() -> None:
    tk = tokenizer(None, "</s>", "{{ raise_exception('no system here') if messages[0].role == 'system' }}x")
    template = template_of(config(template=None), tk)
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    found = encode({"messages": chat}, config(template=None), template, tk)
    assert not isinstance(found, Encoded)
    assert (found.reason, found.detail) == ("the template refuses", "no system here")


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    tk = tokenizer(None, "</s>", "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    found = encode(
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        config(template=None),
        template_of(config(template=None), tk),
        tk,
    )
    assert not isinstance(found, Encoded)


TOOL = {"name": "search", "description": "Finds pages.", "parameters": {"type": "object", "properties": {}}}
CALLING: Chat = [
    {"role": "user", "content": "find it"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "search", "arguments": {"q": "ü"}}}],
    },
    {"role": "tool", "content": "one"},
    {"role": "tool", "content": "two"},
    {"role": "assistant", "content": "Found."},
]


def test_qwen_tools_are_written_as_its_public_template_does() -> None:
    found = template_of(config(template="qwen"), tokenizer()).exchanges(CALLING, [TOOL])
    assert '<tools>\n{"type": "function", "function": {"name": "search"' in found[0].prompt
    assert (
        found[0].answer
        == '<tool_call>\n{"name": "search", "arguments": {"q": "ü"}}\n</tool_call><|im_end|>\n'
    )
    assert found[1].prompt == (
        "<|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


# The public chat templates that trl brings along, and what of them a written template says as well.
FAMILIES = {"qwen3_5": "qwen3_5_nothink", "glm4_moe": "glm4moe", "lfm2": "lfm2_v2", "qwen": "qwen2_5"}
VALUES = {
    "text": 'it\'s "so"\nand\\so ü',
    "number": 1.5,
    "flag": True,
    "nothing": None,
    "many": [1, "b"],
    "of": {"a": 1},
}
USING: Chat = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "find it"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"type": "function", "function": {"name": "search", "arguments": VALUES}},
            {"type": "function", "function": {"name": "search", "arguments": {}}},
        ],
    },
    {"role": "tool", "content": "one"},
    {"role": "tool", "content": "two"},
    {"role": "assistant", "content": "Found."},
]


def public(name: str) -> str:
    trl = pytest.importorskip("trl")
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", ["I look.", ""])
@pytest.mark.parametrize("name", FAMILIES)
def test_tools_are_written_as_the_public_template_does(name: str, words: str) -> None:
    template = template_of(config(template=name), tokenizer())
    assert isinstance(template, Written)
    tool: Any = TOOL if name == "lfm2" else {"type": "function", "function": TOOL}
    chat = [{**m, "content": words} if "tool_calls" in m else m for m in USING]
    theirs = compile_template(public(FAMILIES[name])).render(messages=chat, tools=[tool], bos_token="")
    ours = "".join(e.prompt + e.answer for e in template.exchanges(chat, [TOOL]))
    if name == "glm4_moe":  # whose public template sets other line breaks around a thought
        ours = ours.removesuffix(template.eos)
        ours, theirs = (re.sub(r"\n?<think>\n*</think>\n*", "<think></think>", t) for t in (ours, theirs))
    assert ours == theirs


def calls_in(name: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls of an answer, read back by what each format's programs look for."""
    if name == "lfm2":
        listed = re.search(r"<\|tool_call_start\|>(.*)<\|tool_call_end\|>", text, re.S)
        assert listed
        found = ast.parse(listed[1].replace("{}", "dict()"), mode="eval").body
        return [
            (c.func.id, {str(k.arg): ast.literal_eval(k.value) for k in c.keywords})
            for c in found.elts  # type: ignore[attr-defined]
        ]
    blocks = re.findall(r"<tool_call>\n?(.*?)\n?</tool_call>", text, re.S)
    if name == "qwen":
        return [(c["name"], c["arguments"]) for c in map(json.loads, blocks)]
    if name == "glm4_moe":
        pair = r"<arg_key>(.*?)</arg_key>\n<arg_value>(.*?)</arg_value>"
        return [(b.split("\n")[0], dict(re.findall(pair, b, re.S))) for b in blocks]
    heads = [re.match(r"<function=(.*?)>\n", b) for b in blocks]
    given = [dict(re.findall(r"<parameter=(.*?)>\n(.*?)\n</parameter>", b, re.S)) for b in blocks]
    return [(h[1], g) for h, g in zip(heads, given, strict=True) if h]


@pytest.mark.parametrize("name", FAMILIES)
def test_tool_calls_are_read_back_as_they_were(name: str) -> None:
    answer = template_of(config(template=name), tokenizer()).exchanges(USING, [TOOL])[0].answer
    (first, values), (second, none) = calls_in(name, answer)
    assert (first, second, none) == ("search", "search", {})
    assert values["text"] == VALUES["text"] and list(values) == list(VALUES)
    as_text = {"qwen3_5": str, "glm4_moe": json.dumps}.get(name)
    for key in ("number", "flag", "nothing"):
        assert values[key] == (as_text(VALUES[key]) if as_text else VALUES[key])
    for key in ("many", "of"):
        assert (json.loads(values[key]) if as_text else values[key]) == VALUES[key]


def test_a_tool_format_that_is_not_written_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="--tool_format minimax2 is written by the chat template"):
        template_of(config(template="qwen", tool_format="minimax2"), tokenizer())
    template = template_of(config(template="gemma4"), tokenizer())
    assert template.exchanges(USING[1:2] + USING[-1:])
    with pytest.raises(RefusedError, match="tools of gemma4 are written by its tokenizer's own"):
        template.exchanges(USING, [TOOL])


@pytest.mark.parametrize("name", ["default", "llama3", "glm4", "mistral", "chatml"])
def test_tools_and_calls_are_written_for_every_format(name: str) -> None:
    found = template_of(config(template=name), tokenizer()).exchanges(CALLING, [TOOL])
    assert "search" in found[0].prompt and "Finds pages." in found[0].prompt
    assert "search" in found[0].answer and '{"q": "ü"}' in found[0].answer
    assert "one" in found[1].prompt and "two" in found[1].prompt


def test_the_default_system_prompt_can_be_set() -> None:
    template = template_of(config(template="qwen", default_system="Be brief."), tokenizer())
    assert template.prompt([{"role": "user", "content": "q"}]).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>"
    )


@pytest.mark.parametrize("name", [n for n in names() if not table()[n].get("thought")])
def test_a_written_template_can_be_saved_as_a_chat_template(name: str) -> None:
    tk = tokenizer("<s>", "</s>")
    template = template_of(config(template=name), tk)
    assert isinstance(template, Written)
    jinja = compile_template(as_jinja(template))
    chat = [{"role": "user", "content": " it's {{ a }}"}, {"role": "assistant", "content": 'so "b"\n'}] * 2
    for messages in (chat, [{"role": "system", "content": "s"}, *chat]):
        rendered = jinja.render(messages=messages).replace(OPEN, "").replace(CLOSE, "")
        written = "".join(e.prompt + e.answer for e in template.exchanges(messages))
        assert rendered == written.removesuffix(template.eos if template.eos_between else "")
        assert jinja.render(messages=messages[:-1], add_generation_prompt=True).replace(OPEN, "").replace(
            CLOSE, ""
        ) == template.prompt(messages[:-1])


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("enabled", [True, False, None])
@pytest.mark.parametrize("name", [n for n in names() if table()[n].get("thought")])
def test_a_thoughtful_template_can_be_saved_too(name: str, enabled: bool | None, preserve: bool) -> None:
    wanted = config(template=name, enable_thinking=enabled, preserve_thinking=preserve)
    template = template_of(wanted, tokenizer("<s>", "</s>"))
    assert isinstance(template, Written) and template.thinking
    jinja = compile_template(as_jinja(template))
    before, after = template.thinking.before, template.thinking.after
    for old, new in ((before + "old" + after + "a1", "a2"), ("a1", before + "new" + after + "a2")):
        asked: Chat = [THOUGHTFUL[0], {"role": "assistant", "content": old}, THOUGHTFUL[2]]
        prompt = jinja.render(messages=asked, add_generation_prompt=True)
        assert prompt.replace(OPEN, "").replace(CLOSE, "") == template.prompt(asked)
        reply = {"role": "assistant", "content": new}
        exchange = template.answers(asked, [reply])[0]
        whole = jinja.render(messages=[*asked, reply]).replace(OPEN, "").replace(CLOSE, "")
        said = exchange.prompt + exchange.answer
        assert whole == said.removesuffix(template.eos if template.eos_between else "")


def test_a_tokenizers_own_template_is_kept_where_it_asks_in_the_same_words() -> None:
    same = tokenizer(None, "<|im_end|>", CHATML)
    wanted = config(template="chatml", stage="sft")
    assert to_save(template_of(wanted, same), same, wanted) is None
    own = config(template=None, stage="sft")
    assert to_save(template_of(own, same), same, own) is None
    other = config(template="llama3", stage="sft")
    saved = to_save(template_of(other, same), same, other)
    assert saved and "start_header_id" in saved
    refusing = tokenizer(None, "</s>", "{{ raise_exception('no') }}")
    assert to_save(template_of(wanted, refusing), refusing, wanted)


def test_generation_stops_where_the_template_says() -> None:
    tk = tokenizer(None, "<|endoftext|>")
    ids = stop_ids(template_of(config(template="qwen"), tk), tk)
    assert ids == sorted([tk.id_of("<|im_end|>"), tk.id_of("<|endoftext|>")])
