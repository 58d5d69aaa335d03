"""Outlines of chat templates: the same text as rendering, and none where a template looks into what is said."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_templates import MARKED, PUBLIC, QWEN3

from tuner.data.chat_template import compile_template
from tuner.data.outline import Outline, Outlines

Chat = list[dict[str, Any]]
TURNS = "{% for m in messages %}<|{{ m.role }}|>"
END = "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
GIVEN = {"bos_token": "<s>", "eos_token": "</s>"}
# Each puts something between turns that hangs on what is said, most of them in a way that is easily overlooked.
LOOKING = [
    "{{ m.content | length }}",
    "{{ m.content[0] }}",
    "{{ m.content[1:] }}",
    "{{ m.content == 'a' }}",
    "{{ 'a' == m.content }}",
    "{{ m.content is eq('a') }}",
    "{{ m.content != 'a' }}",
    "{{ m.content < 'b' }}",
    "{{ 'a' in m.content }}",
    "{{ m.content in 'abc' }}",
    "{{ m.content in ['a', 'b'] }}",
    "{{ m.content.startswith('a') }}",
    "{{ 'a'.startswith(m.content) }}",
    "{{ m.content.split('a')[0] }}",
    "{{ m.content | replace('a', 'b') }}",
    "{{ 'xax' | replace('a', m.content) | length }}",
    "{{ m.content | upper }}",
    "{{ m.content | tojson }}",
    "{{ m | tojson }}",
    "{{ m }}",
    "{{ m.content | lower | trim }}",
    "{{ (m.content + ' ') | trim }}",
    "{{ (' ' + m.content).strip() }}",
    "{{ m.content.strip('a') }}",
    "{{ m.content | trim('a') }}",
    "{{ (m.content ~ ' ') | trim }}",
    "{{ ('%s ' % m.content) | trim }}",
    "{{ ('{} '.format(m.content)) | trim }}",
    "{{ ' '.join([m.content, '']) | trim }}",
    "{{ messages | map(attribute='content') | join | length }}",
    "{{ (messages | map(attribute='content') | list)[0] | length }}",
    "{{ messages | selectattr('content', 'eq', 'a') | list | length }}",
    "{{ m.content * 2 }}",
    "{{ {'a': 1}[m.content] }}",
    "{{ loop.changed(m.content) }}",
    "{% set x %}{{ m.content }} {% endset %}{{ x | trim }}",
    "{% macro said(x) %}{{ x }} {% endmacro %}{{ said(m.content) | trim }}",
    "{% filter trim %}{{ m.content }} {% endfilter %}",
    "{% for c in m.content %}{{ c }}.{% endfor %}",
    "{% set ns = namespace(x=m.content) %}{{ ns.x | length }}",
    "{{ 'long' if m.content | length > 3 else 'short' }}",
    "{{ m.content is iterable }}",
    "{{ (m.content | first) }}",
]
# These only hand on, and say the same of whatever is said.
HANDING_ON = [
    "{{ m.content }}",
    "{{ '\n' + m.content + '\n' }}",
    "{{ m['content'] | trim }}",
    "{{ m.content.strip() + eos_token }}",
    "{% if m.content %}{{ m.content }}{% endif %}",
    "{% if m.content is string and m.content is not none %}{{ m.content }}{% endif %}",
    "{% set c = 'x' + m.content %}{{ c + 'y' }}",
    "{% set ns = namespace(x='') %}{% set ns.x = m.content %}{{ ns.x }}",
    "{% if not loop.last %}{{ m.content }}{% else %}{{ m.content | trim }}{% endif %}",
    "{% if m.role in ['user', 'system'] and loop.index0 % 2 == 0 %}{{ m.content }}{% endif %}",
    "{{ (m.content | default('')) + '|' + (messages | length) | string }}",
]

WORDS = st.text(st.sampled_from("ab XY.\n\t0é🙂{}%<>|'\"\\"), max_size=8)


@st.composite
def chats(draw: st.DrawFn) -> Chat:
    roles = ["system"] * draw(st.booleans()) + ["user", "assistant"] * draw(st.integers(1, 3))
    return [{"role": r, "content": draw(WORDS)} for r in roles]


def outlines(text: str) -> tuple[Outlines, Any]:
    template = compile_template(text)

    def rendered(chat: Chat, asks: bool) -> str:
        return str(
            template.render(messages=chat, tools=None, add_generation_prompt=asks, documents=None, **GIVEN)
        )

    return Outlines(text, template.environment, GIVEN), rendered


TEMPLATES = {
    **{f"looking {i}": TURNS + part + END for i, part in enumerate(LOOKING)},
    **{f"handing on {i}": TURNS + part + END for i, part in enumerate(HANDING_ON)},
    **{name: jinja for name, (_, _, jinja, _) in PUBLIC.items()},
    "marked": MARKED,
    "qwen3": QWEN3,
}


def kind_of(name: str) -> str:
    return name.rstrip("0123456789 ") if name.startswith(("looking", "handing on")) else "real"


@pytest.mark.parametrize("kind", ["looking", "handing on", "real"])
def test_an_outline_is_the_rendered_text_or_there_is_none(kind: str) -> None:
    """Chats are drawn once for all templates of a kind: to draw them takes far longer than to write them."""
    made = {name: outlines(text) for name, text in TEMPLATES.items() if kind_of(name) == kind}

    # The first chat of a shape is held against the template; without it every other is on its own.
    @settings(max_examples=60)
    @given(st.lists(chats(), min_size=1, max_size=4), st.booleans())
    def same(many: list[Chat], asks: bool) -> None:
        for (name, (found, rendered)), chat in product(made.items(), many):
            outline = found._outline(chat, asks)
            unchecked = partial(Outline.filled, outline, chat) if outline else str
            written = found.written(chat, asks, unchecked)  # type: ignore[arg-type]
            if written is not None:
                assert written == rendered(chat, asks), name

    same()


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n.startswith("looking") or n == "qwen3"])
def test_a_template_that_looks_has_no_outline(name: str) -> None:
    found, rendered = outlines(TEMPLATES[name])
    chat = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "b"}]
    assert found.written(chat, False, lambda: str(rendered(chat, False))) is None


@pytest.mark.parametrize("name", [n for n in TEMPLATES if not n.startswith("looking") and n != "qwen3"])
def test_a_template_that_hands_on_has_one(name: str) -> None:
    found, rendered = outlines(TEMPLATES[name])
    chat = [{"role": "user", "content": " abc "}, {"role": "assistant", "content": "b\n"}]
    assert found.written(chat, False, lambda: str(rendered(chat, False))) == rendered(chat, False)
    assert found.written(chat, True, lambda: str(rendered(chat, True))) == rendered(chat, True)


@pytest.mark.parametrize(
    "odd", ["</think>", "<tool_response>x</tool_response>", "<think>\nt\n</think>\n\na", "\n\n a\n"]
)
def test_what_is_asked_of_a_content_decides_whom_an_outline_is_for(odd: str) -> None:
    trl = pytest.importorskip("trl")
    text = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    found, rendered = outlines(text)
    plain: Chat = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": " a\n"},
        {"role": "user", "content": " r "},
    ]
    for asks in (True, False):
        for chat in (plain, [*plain, {"role": "assistant", "content": "\nb "}]):
            for at in (None, *range(len(chat))):
                said = [{**m, "content": odd} if i == at else m for i, m in enumerate(chat)]
                theirs = rendered(said, asks)
                ours = found.written(said, asks, lambda text=theirs: text)
                assert ours == theirs or (ours is None and at is not None)
                assert not (at is None and ours is None)


def test_blank_contents_and_tools_are_left_to_the_template() -> None:
    found, rendered = outlines(PUBLIC["chatml"][2])
    for odd in ({"content": " \n"}, {"content": ""}, {"content": "x", "tool_calls": []}):
        chat = [{"role": "user", **odd}]
        assert (
            found.written(chat, False, lambda: str(rendered([{"role": "user", "content": "x"}], False)))
            is None
        )
