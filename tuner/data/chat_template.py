"""The tokenizer's own chat template: jinja in a sandbox, and which part of its text is the assistant's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data.formats import Message
from tuner.data.outline import Outlines
from tuner.data.templates import Exchange, RefusedError, Template, Thinking, Written, common_prefix
from tuner.data.tokens import Tokenizer

# Made of noncharacters, which no text may hold: they mark where an answer begins and ends.
OPEN, CLOSE = "\ufdd0answer\ufdd0", "\ufdd1answer\ufdd1"


class Generation(Extension):
    """{% generation %}...{% endgeneration %}: the assistant's words, as transformers marks them."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


def _refuse(message: str) -> str:
    raise RefusedError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    # jinja's own filter escapes HTML characters, which are no danger to a tokenizer.
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


@cache
def _compiled(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(text)


def compile_template(text: str) -> jinja2.Template:
    """A chat template ready to render. Raises ConfigError when it is not jinja."""
    try:
        return _compiled(text)
    except jinja2.TemplateError as error:
        raise ConfigError(
            [Problem("template", f"The tokenizer's chat template is not jinja: {error}.")]
        ) from error


class ChatTemplate:
    """The tokenizer's own chat template; see `Template` for what it promises."""

    name = "tokenizer"
    eos_between = False

    def __init__(self, text: str, tokenizer: Tokenizer, config: Config):
        self.text = text
        self.jinja = compile_template(text)
        self.marks = re.search(r"{%-?\s*generation\b", text) is not None
        self.system = config.default_system
        self.given: dict[str, Any] = {
            "bos_token": tokenizer.bos or "",
            "eos_token": tokenizer.eos or "",
            "pad_token": tokenizer.pad or "",
        }
        if config.enable_thinking is not None:
            self.given["enable_thinking"] = config.enable_thinking
        self._outlines = Outlines(text, self.jinja.environment, self.given)
        self.opening = tokenizer.bos if tokenizer.bos and self._begins_with(tokenizer.bos) else ""
        self.header, self.ending = self._frame()
        stop = self.ending.strip()
        self.eos = stop if stop and tokenizer.id_of(stop) is not None else tokenizer.eos or ""
        self.stop: tuple[str, ...] = (self.eos,) if self.eos else ()

    def exchanges(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[Exchange]:
        """The exchanges of a chat that ends with an answer, each answer to be learnt. Raises RefusedError."""
        chat = self._with_system(messages)
        return self._marked(self._render(chat, tools)) if self.marks else self._by_steps(chat, tools)

    def answers(
        self, messages: Sequence[Message], replies: Sequence[Message], tools: Sequence[Any] = ()
    ) -> list[Exchange]:
        """One exchange for each of several replies to the same messages. Raises RefusedError."""
        chat = self._with_system(messages)
        prompt = self._plain(chat, tools, asks=True)
        return [self._reply(prompt, chat, reply, tools) for reply in replies]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """The text that asks for an answer to `messages`."""
        return self._plain(self._with_system(messages), tools, asks=True)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.system and not (messages and messages[0]["role"] == "system"):
            return [{"role": "system", "content": self.system}, *messages]
        return list(messages)

    def _plain(self, messages: Sequence[Message], tools: Sequence[Any] = (), asks: bool = False) -> str:
        text = self._render(messages, tools, asks)
        return _unmarked(text) if self.marks else text

    def _render(self, messages: Sequence[Message], tools: Sequence[Any] = (), asks: bool = False) -> str:
        if not tools:
            text = self._outlines.written(messages, asks, lambda: self._rendered(messages, (), asks))
            if text is not None:
                return text
        return self._rendered(messages, tools, asks)

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Any], asks: bool) -> str:
        try:
            return self.jinja.render(
                messages=messages,
                tools=list(tools) or None,
                add_generation_prompt=asks,
                documents=None,
                **self.given,
            )
        except RefusedError:
            raise
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError, ValueError) as error:
            raise RefusedError(f"the chat template fails: {error}") from error

    def _begins_with(self, text: str) -> bool:
        try:
            return self._plain([{"role": "user", "content": "x"}]).startswith(text)
        except RefusedError:
            return False

    def _frame(self) -> tuple[str, str]:
        """What a template puts between a question and its answer, and behind the answer; told from a probe."""
        asked = [{"role": "user", "content": "question"}]
        told = [*asked, {"role": "assistant", "content": "answer"}]
        try:
            plain, prompt = (self._plain(asked, asks=asks) for asks in (False, True))
            whole = self._plain(told)
        except RefusedError:
            return "", ""
        header = prompt.removeprefix(plain) if prompt.startswith(plain) else ""
        return header, whole.rpartition("answer")[2]

    def _marked(self, text: str) -> list[Exchange]:
        """Exchanges of a text whose answers the template marks itself."""
        found = []
        parts = text.split(OPEN)
        prompt = parts[0]
        for part in parts[1:]:
            answer, _, after = part.partition(CLOSE)
            ending = self.ending if self.ending and answer.endswith(self.ending) else self._shorter(answer)
            found.append(Exchange(prompt, answer, self._header(prompt), ending))
            prompt = after
        if prompt:
            found.append(Exchange(prompt, "", "", ""))
        return found

    def _shorter(self, answer: str) -> str:
        """The part of the ending that stands inside the marks."""
        inside = self.ending.rstrip()
        return inside if inside and answer.endswith(inside) else ""

    def _header(self, prompt: str) -> str:
        return self.header if prompt.endswith(self.header) else ""

    def _last(self, chat: Sequence[Message], tools: Sequence[Any]) -> Exchange:
        """The last answer and all before it."""
        prompt = self._plain(chat[:-1], tools, asks=True)
        return self._reply(prompt, chat[:-1], chat[-1], tools)

    def _reply(self, prompt: str, chat: Sequence[Message], reply: Message, tools: Sequence[Any]) -> Exchange:
        whole = self._plain([*chat, reply], tools)
        if not whole.startswith(prompt):
            # Some templates open a thought in the prompt that a finished answer does not show.
            prompt = common_prefix(prompt, whole)
        answer = whole[len(prompt) :]
        ending = self.ending if self.ending and answer.endswith(self.ending) else ""
        return Exchange(prompt, answer, self._header(prompt), ending)

    def _by_steps(self, chat: Sequence[Message], tools: Sequence[Any]) -> list[Exchange]:
        """Every answer, found by rendering the chat up to it."""
        found: list[Exchange] = []
        seen = ""
        for i, message in enumerate(chat):
            if message["role"] != "assistant":
                continue
            step = self._last(chat[: i + 1], tools)
            if not step.prompt.startswith(seen):
                return self._by_contents(chat, tools)
            found.append(step._replace(prompt=step.prompt[len(seen) :]))
            seen = step.prompt + step.answer
        return found

    def _by_contents(self, chat: Sequence[Message], tools: Sequence[Any]) -> list[Exchange]:
        """Every answer, found by its words in the whole text: for templates that rewrite earlier turns."""
        last = self._last(chat, tools)
        found: list[Exchange] = []
        text, seen, at = last.prompt, 0, 0
        for message in chat[:-1]:
            words = message["content"].strip()
            start = text.find(words, at)
            if start < 0:
                continue
            at = start + len(words)
            if message["role"] == "assistant" and words:
                end = at + len(self.ending) if text.startswith(self.ending, at) else at
                prompt = text[seen:start]
                found.append(Exchange(prompt, text[start:end], self._header(prompt), text[at:end]))
                seen = at = end
        return [*found, last._replace(prompt=text[seen:])]


def _unmarked(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "")


PROBES: tuple[list[Message], ...] = (
    [{"role": "user", "content": " one\n"}],
    [{"role": "system", "content": " zero\n"}, {"role": "user", "content": "one"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": " two\n"},
        {"role": "user", "content": "three"},
    ],
)


def to_save(template: Template | None, tokenizer: Tokenizer, config: Config) -> str | None:
    """The chat template to save beside weights that were taught with `template`.

    None where the tokenizer's own asks in the same words, which may also know how to write tools.
    """
    if not isinstance(template, Written) or config.stage == "pt":
        return None
    own = tokenizer.chat_template
    if own:
        theirs = ChatTemplate(own, tokenizer, config)
        try:
            if all(theirs.prompt(probe) == template.prompt(probe) for probe in PROBES):
                return None
        except RefusedError:
            pass
    return as_jinja(template)


def as_jinja(template: Written) -> str:
    """A written template as a chat template to be saved beside a model, so that other programs prompt it as it was taught.

    It writes system, user, assistant and tool turns; tools and their calls are left out, for each family has its own.
    """
    parts = [_quoted(template.prefix)]
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
