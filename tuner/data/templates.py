"""Chats as text: LLaMA-Factory's templates by name, written out as data in templates.yaml, bound to a tokenizer.

A template turns messages into exchanges: what the model reads (masked) and what it answers (trained). The tokenizer's own
chat template does the same in `tuner.data.chat_template`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data.formats import Message
from tuner.data.tokens import Tokenizer
from tuner.data.tools import FORMATS, ToolFormat
from tuner.text.lookup import tr

CONTENT = "{{content}}"
PICTURE = "\ufdd5picture\ufdd5"
"""Stands in a message for a picture while a template writes it; made of noncharacters, so that no text holds it."""


class Exchange(NamedTuple):
    """What the model reads before an answer, and the answer.

    `header` ends the prompt and `ending` ends the answer: both survive when tokens have to go. An answer that is not
    `learnt` is read like a prompt: its row gives it no weight.
    """

    prompt: str
    answer: str
    header: str
    ending: str
    learnt: bool = True


class Template(Protocol):
    """What encoding needs to know of a template."""

    @property
    def name(self) -> str: ...
    @property
    def opening(self) -> str:
        """What every chat begins with; survives truncation."""

    @property
    def eos(self) -> str:
        """The text that ends generation."""

    @property
    def eos_between(self) -> bool:
        """Answers inside a chat end where the next turn begins: its first token stands for the end of text."""

    @property
    def stop(self) -> tuple[str, ...]:
        """All texts at which generation stops."""

    def exchanges(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[Exchange]:
        """The exchanges of a chat that ends with an answer, each answer to be learnt.

        Raises RefusedError when the template cannot write this chat.
        """

    def answers(
        self, messages: Sequence[Message], replies: Sequence[Message], tools: Sequence[Any] = ()
    ) -> list[Exchange]:
        """One exchange for each of several replies to the same messages: all before the reply is its prompt.

        Earlier answers stand as they do when the model is used. Raises RefusedError.
        """

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """The text that asks for an answer to `messages`. Raises RefusedError."""

    def before_question(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """All that stands before the words of a chat's first question: its system prompt and what opens a turn."""


class RefusedError(Exception):
    """A chat that a template cannot write; the text says why."""


@dataclass(frozen=True)
class Slot:
    """A turn's text before and after its content."""

    before: str
    after: str

    @classmethod
    def of(cls, text: str) -> Slot:
        before, _, after = text.partition(CONTENT)
        return cls(before, after)


@dataclass(frozen=True)
class Thinking:
    """How thoughts are marked, and what is done with them.

    enabled True: a row without a thought learns an empty one; False: thoughts go, an empty one stands in the prompt;
    None: rows keep theirs, and an empty one stands in the prompt of rows without.
    """

    before: str
    after: str
    empty: str
    enabled: bool | None = True
    preserve: bool = False

    @property
    def begin(self) -> str:
        return self.before.strip()

    @property
    def end(self) -> str:
        return self.after.strip()

    def strip(self, text: str) -> str:
        """The text without its thought."""
        pattern = re.escape(self.begin) + ".*?" + re.escape(self.end)
        return re.sub(pattern, "", text, flags=re.DOTALL).lstrip("\n")

    def has(self, text: str) -> bool:
        return self.begin in text or self.end in text

    def opened(self, text: str) -> str:
        """The text with its thought opened: a model whose prompt opens the thought says only where it ends."""
        thought, end, words = text.partition(self.end)
        if not end or self.begin in thought:
            return text
        if not thought.strip():
            return words.lstrip("\n")
        return self.before + thought.strip("\n") + self.after + words.lstrip("\n")


@dataclass(frozen=True)
class Written:
    """A template of templates.yaml, bound to a tokenizer's bos and eos."""

    name: str
    prefix: str
    opening: str
    eos: str
    eos_between: bool
    stop: tuple[str, ...]
    system: Slot
    user: Slot
    assistant: Slot
    observation: Slot
    call: Slot
    tools: str
    tools_text: Slot | None
    default_system: str
    system_in_user: bool = False
    trim: bool = False
    thinking: Thinking | None = None

    def exchanges(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[Exchange]:
        """The exchanges of a chat that ends with an answer, each answer to be learnt."""
        found: list[Exchange] = []
        prompt, rest = self._opened(messages, tools)
        header, number = "", 0
        for i, message in enumerate(rest):
            if message["role"] == "assistant":
                found.append(self._exchange(prompt, header, message))
                prompt = ""
            else:
                text, header = self._question(rest, i, number)
                prompt += text
                number += message["role"] == "user"
        if found:
            found[-1] = self._ended(found[-1])
        return found

    def answers(
        self, messages: Sequence[Message], replies: Sequence[Message], tools: Sequence[Any] = ()
    ) -> list[Exchange]:
        """One exchange for each of several replies to the same messages."""
        prompt, header = self._before(messages, tools)
        return [self._ended(self._exchange(prompt, header, reply)) for reply in replies]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """The text that asks for an answer to `messages`."""
        prompt, header = self._before(messages, tools)
        return self._exchange(prompt, header, {"role": "assistant", "content": ""}).prompt

    def before_question(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """All that stands before the words of the first question."""
        first = next(i for i, m in enumerate(messages) if m["role"] == "user")
        empty = {**messages[first], "content": ""}
        opened, rest = self._opened([*messages[:first], empty], tools)
        return opened + self._question(rest, 0, 0)[0].removesuffix(self.user.after)

    def _before(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[str, str]:
        """All before an answer, and the part at its end that survives."""
        prompt, rest = self._opened(messages, tools)
        header, number = "", 0
        for i, message in enumerate(rest):
            if message["role"] == "assistant":
                prompt += self._framed(message, self._said(message, history=True))
            else:
                text, header = self._question(rest, i, number)
                prompt += text
                number += message["role"] == "user"
        return prompt, header

    def _exchange(self, prompt: str, header: str, message: Message) -> Exchange:
        said, thought = self._said(message, history=False), ""
        if self.thinking and not self.thinking.has(said):
            # A missing thought is learnt as an empty one, or stands in the prompt and is not.
            said, thought = (
                (self.thinking.empty + said, "") if self.thinking.enabled else (said, self.thinking.empty)
            )
        ending = (self.call if message.get("tool_calls") else self.assistant).after
        learnt = message.get("trained") is not False
        return Exchange(prompt + thought, self._framed(message, said), header + thought, ending, learnt)

    def _framed(self, message: Message, said: str) -> str:
        slot = self.call if message.get("tool_calls") else self.assistant
        return slot.before + said + slot.after

    def _ended(self, exchange: Exchange) -> Exchange:
        """The last exchange of a chat, with the end of text where the template writes none itself."""
        if not self.eos_between:
            return exchange
        return exchange._replace(answer=exchange.answer + self.eos, ending=self.eos)

    def _opened(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[str, list[Message]]:
        """The text before the first turn, and the turns without the system's."""
        rest = list(messages)
        system = self.default_system
        if rest and rest[0]["role"] == "system":
            system = self._content(rest.pop(0)["content"])
        opened = self.prefix
        if tools and self.tools_text:
            listed = json.dumps(list(tools), ensure_ascii=False)
            system += self.tools_text.before + listed + self.tools_text.after
        elif tools:
            way = self._tool_way()
            if way.apart:
                opened += way.describe(tools, "")
            else:
                system = way.describe(tools, system)
        if not system:
            return opened, rest
        text = self.system.before + system + self.system.after
        if self.system_in_user and rest:
            rest[0] = {**rest[0], "content": text + self._content(rest[0]["content"])}
            return opened, rest
        return opened + text, rest

    def _question(self, rest: Sequence[Message], i: int, number: int) -> tuple[str, str]:
        """A user's turn, or a run of tool results; the text and the part of it that survives."""
        message = rest[i]
        if message["role"] == "user":
            before = self.user.before.replace("{{idx}}", str(number))
            return before + self._content(message["content"]) + self.user.after, self.user.after
        follows = i + 1 < len(rest) and rest[i + 1]["role"] == "tool"
        begins = i == 0 or rest[i - 1]["role"] != "tool"
        before = self.observation.before if begins else self._tool_way().between
        after = "" if follows else self.observation.after
        return before + self._content(message["content"]) + after, after

    def _said(self, message: Message, history: bool) -> str:
        """What the assistant says, with its thought where that is kept."""
        said = self._content(message["content"])
        thinking = self.thinking
        if thinking:
            said = thinking.opened(said)
        if thinking and message.get("reasoning_content"):
            said = thinking.before + message["reasoning_content"].strip("\n") + thinking.after + said
        if message.get("tool_calls"):
            way = self._tool_way()
            words = said if thinking is None else thinking.strip(said)
            said += way.after_words if words.strip() else ""
            said += way.call([c["function"] for c in message["tool_calls"]])
        gone = thinking and (thinking.enabled is False or (history and not thinking.preserve))
        return thinking.strip(said) if thinking and gone else said

    def _tool_way(self) -> ToolFormat:
        if self.tools not in FORMATS:
            raise RefusedError(
                tr(
                    "tools of {name} are written by its tokenizer's own chat template only; leave --template empty",
                    name=self.name,
                )
            )
        return FORMATS[self.tools]

    def _content(self, text: str) -> str:
        return text.strip() if self.trim else text


# --- from the file -------------------------------------------------------------------------------------------------


@cache
def table() -> dict[str, dict[str, Any]]:
    """templates.yaml: name -> fields, with `like` followed."""
    text = (Path(__file__).parent / "templates.yaml").read_text(encoding="utf-8")
    raw: dict[str, dict[str, Any]] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    return {name: _whole(name, raw) for name in raw}


def _whole(name: str, raw: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A template's fields with those of the one it is like."""
    fields = raw[name]
    like = fields.get("like")
    return {**(_whole(like, raw) if like else {}), **fields}


def names() -> list[str]:
    """Every template's name."""
    return list(table())


def written(name: str, tokenizer: Tokenizer, config: Config) -> Written:
    """A template of the file, with a config's wishes for system prompt, tools and thoughts."""
    fields: Mapping[str, Any] = table()[name]
    stop = tuple(fields.get("stop", ()))
    replaced = fields.get("replace_eos") and stop and tokenizer.id_of(stop[0]) is not None
    eos = stop[0] if replaced else tokenizer.eos or ""

    def slot(part: str, other: str = CONTENT) -> Slot:
        return Slot.of(_bind(fields.get(part) or other, tokenizer, eos))

    user = fields.get("user", CONTENT)
    ended = CONTENT if fields.get("efficient_eos") else CONTENT + "{{eos}}"
    given = config.default_system
    prefix = _bind(fields.get("prefix", ""), tokenizer, eos)
    bos = tokenizer.bos if user.startswith("{{bos}}") else None
    return Written(
        name=name,
        prefix=prefix,
        opening=prefix or bos or "",
        eos=eos,
        eos_between=bool(fields.get("efficient_eos")),
        stop=stop,
        system=slot("system"),
        user=slot("user"),
        assistant=slot("assistant", ended),
        observation=slot("observation", user),
        call=slot("call", fields.get("assistant", ended)),
        tools=_tool_format(config.tool_format) if config.tool_format else fields.get("tools", "default"),
        tools_text=Slot.of(fields["tools_text"])
        if fields.get("tools_text") and not config.tool_format
        else None,
        default_system=_bind(fields.get("default_system", ""), tokenizer, eos) if given is None else given,
        system_in_user=bool(fields.get("system_in_user")),
        trim=bool(fields.get("trim")),
        thinking=_thinking(fields, config),
    )


def _bind(text: str, tokenizer: Tokenizer, eos: str) -> str:
    return text.replace("{{bos}}", tokenizer.bos or "").replace("{{eos}}", eos)


def _tool_format(name: str) -> str:
    if name in FORMATS:
        return name
    sentence = tr(
        "--tool_format {name} is written by the chat template of its models; leave it and --template empty, "
        "or take one of {formats}.",
        name=name,
        formats=", ".join(FORMATS),
    )
    raise ConfigError([Problem("tool_format", sentence, {"tool_format": None})])


def _thinking(fields: Mapping[str, Any], config: Config) -> Thinking | None:
    thought = fields.get("thought")
    if not thought:
        return None
    before, after = thought
    empty = fields.get("empty_thought", before + after)
    return Thinking(before, after, empty, config.enable_thinking, config.preserve_thinking)


def common_prefix(one: str, two: str) -> str:
    """What both texts begin with."""
    count = next(
        (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
    return one[:count]


def stop_ids(template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids at which generation stops: the template's stop texts and end of text, as far as the vocabulary has them."""
    found = [tokenizer.id_of(text) for text in (template.eos, *template.stop) if text]
    return sorted({i for i in (*found, tokenizer.eos_id) if i is not None})
