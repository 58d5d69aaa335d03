"""A chat template comes to an end, in time and in size; with limits so low that harmless templates pass them."""

from __future__ import annotations

import pytest
from data_world import config, tokenizer

from tuner.data import sandbox
from tuner.data.encode import Encoded, encode
from tuner.data.formats import Dropped
from tuner.data.template_choice import template_of
from tuner.data.templates import RefusedError

CHAT = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def rendered(jinja: str) -> object:
    """The row of a chat, or why it is dropped."""
    tk = tokenizer(None, "</s>", jinja)
    wanted = config(template=None)
    return encode({"messages": CHAT}, wanted, template_of(wanted, tk), tk)


def test_a_template_that_takes_too_long_drops_the_row_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.01)
    loop = "{% for i in range(2000) %}{% for j in range(500) %}{% endfor %}{% endfor %}"
    found = rendered(PLAIN + loop)
    assert isinstance(found, Dropped)
    assert (found.reason, found.detail) == (
        "the template refuses",
        "the chat template does not come to an end within 0.01 s",
    )


@pytest.mark.parametrize(
    "grows",
    [
        "{{ 'ab' * 800 }}", "{{ ('a' * 600) + ('b' * 600) }}", "{{ ('a' * 600) ~ ('b' * 600) }}", "{% for i in range(600) %}ab{% endfor %}",
        "{{ ('a' * 600) | replace('a', 'bbb') }}", "{{ ('a' * 600).replace('a', 'bbb') }}", "{{ 'a' | center(1500) }}", "{{ 'a'.ljust(1500) }}",
        "{{ '%1500000d' % 1 }}", "{{ '{:>1500000}'.format(1) }}", "{{ 'bbbbb'.join(['a'] * 400) }}", "{{ (['a'] * 1500) | length }}",
        "{% set ns = namespace(t='ab') %}{% for i in range(12) %}{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t }}",
        "{% set ns = namespace(t='ab') %}{% for i in range(12) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
        "{% macro m() %}{% for i in range(600) %}ab{% endfor %}{% endmacro %}{{ m() }}", "{{ 2 ** 5000 }}",
    ],
)  # fmt: skip
def test_a_template_that_grows_too_large_drops_the_row_with_the_reason(
    grows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(rendered(PLAIN), Encoded)
    monkeypatch.setattr(sandbox, "LARGEST", 1000)
    found = rendered(PLAIN + grows)
    assert isinstance(found, Dropped), grows
    assert found.detail == "the chat template makes a text of more than 1,000 characters"


def test_ordinary_templates_are_what_they_were() -> None:
    """Loops with everything that hangs on them, over lists, texts, mappings and generators."""
    jinja = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.previtem is defined }}:{{ m.role }}={{ m.content }};"
        "{% else %}none{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{% for c in 'xy' %}{{ c }}{% endfor %}"
        "{% for r in messages | map(attribute='role') %}{{ r[0] }}{% endfor %}{% for k in {'b': 2} %}{{ k }}{% endfor %}"
        "{% for x in nothing_of_the_kind %}{% else %}-{% endfor %}{% for i in [3, 1, 2] | sort if i > 1 %}{{ i }}{{ loop.cycle('p', 'q') }}{% endfor %}"
        "{% for m in messages recursive %}{% if m.role == 'user' %}{{ loop([{'role': 'x', 'content': ''}]) }}{% else %}.{% endif %}{% endfor %}"
    )
    import jinja2

    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(jinja)  # noqa: S701 no HTML
    ours = template_of(config(template=None), tokenizer(None, "</s>", jinja))
    assert ours.prompt(CHAT) == plain.render(messages=CHAT)


def test_a_template_that_never_stops_calling_itself_is_refused() -> None:
    jinja = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() if messages | length > 1 }}" + PLAIN
    template = template_of(config(template=None), tokenizer(None, "</s>", jinja))
    with pytest.raises(RefusedError, match="the chat template fails"):
        template.prompt(CHAT)
