"""Which template a config means, and the chat template to save beside what was taught with it."""

from __future__ import annotations

import json

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem, nearest
from tuner.data.chat_template import ChatTemplate
from tuner.data.formats import Message
from tuner.data.pictures.sizes import picture_tokens
from tuner.data.templates import PICTURE, RefusedError, Template, Thinking, Written, table, written
from tuner.data.tokens import Tokenizer
from tuner.text.lookup import tr


def unknown(name: str | None) -> Problem | None:
    """What stands against a template's name; None where it is known, or none is asked for."""
    if name is None or name in table():
        return None
    like = nearest(name, table())
    hint = (
        tr("did you mean {like}?", like=like)
        if like
        else tr("leave it empty for the tokenizer's own chat template.")
    )
    return Problem(
        "template", tr("--template {name} is not known; {hint}", name=name, hint=hint), {"template": like}
    )


def template_of(config: Config, tokenizer: Tokenizer) -> Template:
    """The template a config asks for; without a name the tokenizer's own, or `empty` where it has none.

    Raises ConfigError.
    """
    name = config.template
    if found := unknown(name):
        raise ConfigError([found])
    own = tokenizer.chat_template
    if own and name is None:
        return ChatTemplate(own, tokenizer, config)
    return written(name or "empty", tokenizer, config)


PROBES: tuple[list[Message], ...] = (
    [{"role": "user", "content": " one\n"}],
    [{"role": "system", "content": " zero\n"}, {"role": "user", "content": "one"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": " two\n"},
        {"role": "user", "content": "three"},
    ],
)


SEEING: list[Message] = [{"role": "user", "content": f"one {PICTURE} two"}]


def to_save(template: Template | None, tokenizer: Tokenizer, config: Config) -> str | None:
    """The chat template to save beside weights that were taught with `template`.

    None where the tokenizer's own asks in the same words, which may also know how to write tools.
    """
    if not isinstance(template, Written) or config.kind.rows == "text":
        return None
    seen = picture_tokens(tokenizer.folder) if tokenizer.folder else None
    picture = seen.marker if seen else ""
    own = tokenizer.chat_template
    if own and _alike(ChatTemplate(own, tokenizer, config), template, picture):
        return None
    return as_jinja(template, picture)


def _alike(theirs: ChatTemplate, template: Written, picture: str) -> bool:
    """Whether the tokenizer's own chat template asks in the same words; with a picture, around that too."""
    probes = [*PROBES, SEEING] if picture else PROBES
    try:
        return all(theirs.prompt(one) == template.prompt(one).replace(PICTURE, picture) for one in probes)
    except RefusedError:
        return False


def as_jinja(template: Written, picture: str = "") -> str:
    """A written template as a chat template to be saved beside a model, so that other programs prompt it as it was taught.

    It writes system, user, assistant and tool turns; tools and their calls are left out, for each family has its own.
    `picture` is what a processor looks for where a message has a picture; empty for models that read text alone.
    """
    parts = [_in_one_text(picture) if picture else "", _quoted(template.prefix)]
    parts.append(
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
        f"{{% else %}}{{% set system = {_literal(template.default_system)} %}}{{% set turns = messages %}}{{% endif %}}"
    )
    trim = " | trim" if template.trim else ""
    system = f"{_literal(template.system.before)} + (system{trim}) + {_literal(template.system.after)}"
    inside = f"(({system}) if loop.first and system else '') + " if template.system_in_user else ""
    if not template.system_in_user:
        parts.append(f"{{% if system %}}{{{{ {system} }}}}{{% endif %}}")
    parts.append("{% for message in turns %}")
    for word, role, slot in (("if", "user", template.user), ("elif", "tool", template.observation)):
        content = f"{_literal(slot.before)} + {inside if role == 'user' else ''}(message['content']{trim})"
        parts.append(f"{{% {word} message['role'] == '{role}' %}}{{{{ {content} }}}}")
        parts.append(f"{_quoted(slot.after)}")
    parts.append("{% elif message['role'] == 'assistant' %}")
    answer = template.assistant
    content = f"{_literal(answer.before)} + (message['content']{trim}) + {_literal(answer.after)}"
    if template.thinking:
        parts.append(_thoughtful(template.thinking, f"(message['content']{trim})"))
        content = f"given + {_literal(answer.before)} + said + {_literal(answer.after)}"
    parts.append(f"{{% generation %}}{{{{ {content} }}}}{{% endgeneration %}}{{% endif %}}{{% endfor %}}")
    if template.thinking:
        known = "true" if template.thinking.enabled else "false"
        parts.append(f"{{% if add_generation_prompt and not enable_thinking | default({known}) %}}")
        parts.append(_quoted(template.thinking.empty) + "{% endif %}")
    return "".join(parts)


def _in_one_text(picture: str) -> str:
    """Jinja that makes one text of each message's parts."""
    part = f"{_literal(picture)} if part['type'] == 'image' else part['text']"
    return (
        "{% set flat = namespace(turns=[]) %}{% for m in messages %}{% set said = namespace(text='') %}"
        "{% if m['content'] is string %}{% set said.text = m['content'] %}{% else %}{% for part in m['content'] or [] %}"
        f"{{% set said.text = said.text + ({part}) %}}{{% endfor %}}{{% endif %}}"
        "{% set flat.turns = flat.turns + [dict(m, content=said.text)] %}{% endfor %}{% set messages = flat.turns %}"
    )


def _thoughtful(thinking: Thinking, content: str) -> str:
    """Jinja that sets `said` to an answer with its thought where that is shown, and `given` to what stands before it.

    A last answer without a thought gets an empty one: its own where that is learnt, the prompt's where it is not.
    """
    begin, end = (_literal(mark.strip()) for mark in (thinking.before, thinking.after))
    stripped = f"(said.split({begin})[0] + said.split({end})[-1]).lstrip('\\n')"
    gone = "true" if thinking.enabled is False else "false" if thinking.preserve else "not loop.last"
    empty = _literal(thinking.empty)
    filled = f"said = {empty} + said" if thinking.enabled else f"given = {empty}"
    return (
        f"{{% set given, said = '', {content} %}}{{% if {gone} and {end} in said %}}{{% set said = {stripped} %}}{{% endif %}}"
        f"{{% if loop.last and {end} not in said %}}{{% set {filled} %}}{{% endif %}}"
    )


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("{%", '{" + "%').replace("{{", '{" + "{')


def _quoted(text: str) -> str:
    return "{{ " + _literal(text) + " }}" if text else ""
