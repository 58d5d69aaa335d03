"""The tokenizer's own chat template: jinja in a sandbox, and which part of its text is the assistant's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data.formats import Message
from tuner.data.outline import Outlines
from tuner.data.sandbox import Sandbox, TemplateLimitError, limited
from tuner.data.templates import PICTURE, Exchange, RefusedError, common_prefix
from tuner.data.tokens import Tokenizer
from tuner.data.traced import Traced, Tracing, Turn, plain, traced_message, turn
from tuner.text.lookup import tr

# Made of noncharacters, which no text may hold: they mark where an answer begins and ends.
OPEN, CLOSE = "\ufdd0answer\ufdd0", "\ufdd1answer\ufdd1"


# What a template that is wrong raises, besides jinja's own errors.
FAULTS = (
    jinja2.TemplateError,
    TypeError,
    KeyError,
    AttributeError,
    ValueError,
    ArithmeticError,
    RecursionError,
    IndexError,
)


class Generation(Extension):
    """{% generation %}...{% endgeneration %}: the assistant's words, as transformers marks them."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return OPEN + caller() + CLOSE  # not an f-string: it would lose the traces of a traced text


def _refuse(message: str) -> str:
    raise RefusedError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    # jinja's own filter escapes HTML characters, which are no danger to a tokenizer.
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


@cache
def _compiled(text: str, traced: bool = False) -> jinja2.Template:
    environment = (Tracing if traced else Sandbox)(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    if isinstance(environment, Tracing):
        environment.keep_traces()
    return environment.from_string(text)


def compile_template(text: str) -> jinja2.Template:
    """A chat template ready to render. Raises ConfigError when it is not jinja."""
    try:
        return _compiled(text)
    except jinja2.TemplateError as error:
        raise ConfigError(
            [Problem("template", tr("The tokenizer's chat template is not jinja: {error}.", error=error))]
        ) from error


class ChatTemplate:
    """The tokenizer's own chat template; see `Template` for what it promises."""

    name = "tokenizer"
    eos_between = False
    wants_parts = False

    def __init__(self, text: str, tokenizer: Tokenizer, config: Config):
        self.text = text
        self.jinja = compile_template(text)
        self.marks = re.search(r"{%-?\s*generation\b", text) is not None
        self.thoughts_inside = "reasoning_content" not in text and "</think>" in text
        self.system = config.default_system
        self.given: dict[str, Any] = {
            "bos_token": tokenizer.bos or "",
            "eos_token": tokenizer.eos or "",
            "pad_token": tokenizer.pad or "",
        }
        if config.enable_thinking is not None:
            self.given["enable_thinking"] = config.enable_thinking
        self._outlines = Outlines(text, self.jinja.environment, self.given)
        self.wants_parts = self._wants_parts()
        self.opening = tokenizer.bos if tokenizer.bos and self._begins_with(tokenizer.bos) else ""
        self.headers, self.ending = self._frame()
        self.header = self.headers[0]
        stop = self.ending.strip()
        self.eos = stop if stop and tokenizer.id_of(stop) is not None else tokenizer.eos or ""
        self.stop: tuple[str, ...] = (self.eos,) if self.eos else ()

    def exchanges(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[Exchange]:
        """The exchanges of a chat that ends with an answer, each answer to be learnt. Raises RefusedError."""
        chat = self._read(messages)
        if self.marks:
            return self._marked(chat, tools)
        return self._by_steps(chat, tools) or self._by_traces(chat, tools)

    def answers(
        self, messages: Sequence[Message], replies: Sequence[Message], tools: Sequence[Any] = ()
    ) -> list[Exchange]:
        """One exchange for each of several replies to the same messages. Raises RefusedError."""
        chat = self._read(messages)
        return [self._reply(chat, reply, tools) for reply in self._written_out(replies)]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """The text that asks for an answer to `messages`."""
        return self._plain(self._read(messages), tools, asks=True)

    def before_question(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """All that stands before the words of the first question; nothing where the template does not write them."""
        chat = self._read(messages)
        asked = next(i for i, m in enumerate(chat) if m["role"] == "user")
        text = self._traced(chat, tools)
        start = min((s.start for s in text.spans if s.source == asked), default=0)
        return _unmarked(plain(text.cut(0, start)))

    def _read(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template is to get them, the config's system prompt first where they bring none."""
        chat = self._written_out(messages)
        if self.system and not (chat and chat[0]["role"] == "system"):
            return [{"role": "system", "content": self.system}, *chat]
        return chat

    def _written_out(self, messages: Sequence[Message]) -> list[Message]:
        """Messages with their thoughts in the content, for a template that only looks for them there."""
        if not self.thoughts_inside:
            return list(messages)
        return [_thought_inside(m) if m.get("reasoning_content") else m for m in messages]

    def _plain(self, messages: Sequence[Message], tools: Sequence[Any] = (), asks: bool = False) -> str:
        text = self._render(messages, tools, asks)
        return _unmarked(text) if self.marks else text

    def _render(self, messages: Sequence[Message], tools: Sequence[Any] = (), asks: bool = False) -> str:
        if not tools and not self._in_parts(messages):
            text = self._outlines.written(messages, asks, lambda: self._rendered(messages, (), asks))
            if text is not None:
                return text
        return self._rendered(messages, tools, asks)

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Any], asks: bool, traced: bool = False
    ) -> str:
        if self._in_parts(messages):
            messages = [_as_parts(m) for m in messages]
        if traced:
            messages = [traced_message(m, i) for i, m in enumerate(messages)]
        elif any("trained" in m for m in messages):  # which is between the row and the loss
            messages = [{k: v for k, v in m.items() if k != "trained"} for m in messages]
        try:
            with limited():
                return (_compiled(self.text, traced=True) if traced else self.jinja).render(
                    messages=messages,
                    tools=list(tools) or None,
                    add_generation_prompt=asks,
                    documents=None,
                    **self.given,
                )
        except RefusedError:
            raise
        except TemplateLimitError as error:
            raise RefusedError(str(error)) from error
        except FAULTS as error:
            raise RefusedError(tr("the chat template fails: {error}", error=error)) from error

    def _in_parts(self, messages: Sequence[Message]) -> bool:
        """Whether contents are handed over as lists of parts: those with pictures, or all where it knows no other."""
        return self.wants_parts or any(PICTURE in m["content"] for m in messages)

    def _wants_parts(self) -> bool:
        """Whether the template writes contents that are parts, and none that are texts."""
        probe: Message = {"role": "user", "content": PROBE}
        return PROBE not in self._tried(probe) and PROBE in self._tried(_as_parts(probe))

    def _tried(self, message: Message) -> str:
        with suppress(RefusedError):
            return self._rendered([message], (), asks=False)
        return ""

    def _begins_with(self, text: str) -> bool:
        try:
            return self._plain([{"role": "user", "content": "x"}]).startswith(text)
        except RefusedError:
            return False

    def _frame(self) -> tuple[tuple[str, ...], str]:
        """What a template may put between a question and its answer, longest first, and behind it; told from a probe.

        An answer in the middle of a chat can be opened with less than the prompt that asks for one.
        """
        asked = [{"role": "user", "content": "question"}]
        told = [*asked, {"role": "assistant", "content": "answer"}]
        try:
            before, prompt = (self._plain(asked, asks=asks) for asks in (False, True))
            texts, traced = [self._plain(told)], self._traced(told, ())
        except RefusedError:
            return ("",), ""
        said = max((s.end for s in traced.spans if s.source == 1), default=len(traced))
        ending = _unmarked(plain(traced.cut(said, len(traced))))
        if not prompt.startswith(before):
            return ("",), ending
        with suppress(RefusedError):
            texts.append(self._plain([*told, *asked]))
        shared = {prompt.removeprefix(before)} | {common_prefix(prompt, t)[len(before) :] for t in texts}
        return tuple(sorted(shared, key=len, reverse=True)), ending

    def _traced(self, chat: Sequence[Message], tools: Sequence[Any]) -> Traced:
        text = self._rendered(chat, tools, asks=False, traced=True)
        return text if isinstance(text, Traced) else Traced(text)

    # --- answers that the template marks itself ---------------------------------------------------------------------

    def _marked(self, chat: Sequence[Message], tools: Sequence[Any]) -> list[Exchange]:
        """Exchanges of a text whose answers the template marks itself."""
        unlearnt = [i for i, m in enumerate(chat) if m.get("trained") is False]
        text = self._traced(chat, tools) if unlearnt else self._render(chat, tools)
        found = []
        prompt, *parts = text.split(OPEN)
        for part in parts:
            answer, _, after = part.partition(CLOSE)
            learnt = not isinstance(answer, Traced) or not any(s.source in unlearnt for s in answer.spans)
            answer = plain(answer)
            found.append(Exchange(plain(prompt), answer, self._header(prompt), self._end(answer), learnt))
            prompt = after
        if prompt:
            found.append(Exchange(plain(prompt), "", "", ""))
        return found

    def _marked_reply(self, chat: Sequence[Message], reply: Message, tools: Sequence[Any]) -> Exchange:
        """The last answer as the template marks it; what stands behind the mark is not part of it."""
        before = self._render(chat, tools, asks=True).count(OPEN)
        parts = self._render([*chat, reply], tools).split(OPEN)
        if len(parts) <= before + 1:
            raise RefusedError(tr("the chat template marks no part of the answer"))
        prompt = _unmarked("".join(parts[: before + 1]))
        answer = _unmarked("".join(parts[before + 1 :]).rpartition(CLOSE)[0])
        return Exchange(prompt, answer, self._header(prompt), self._end(answer))

    def _end(self, answer: str) -> str:
        """The part of the ending with which an answer ends."""
        return next((e for e in (self.ending, self.ending.rstrip()) if e and answer.endswith(e)), "")

    def _header(self, prompt: str) -> str:
        return next((h for h in self.headers if h and prompt.endswith(h)), "")

    # --- answers found by where the template put them ----------------------------------------------------------------

    def _reply(self, chat: Sequence[Message], reply: Message, tools: Sequence[Any]) -> Exchange:
        """The answer `reply` to a chat, and all before it."""
        if self.marks:
            found = self._marked_reply(chat, reply, tools)
        else:
            prompt, whole = self._plain(chat, tools, asks=True), self._plain([*chat, reply], tools)
            if not whole.startswith(prompt):
                prompt, whole = self._parted(prompt, whole, chat, reply, tools)
            answer = whole[len(prompt) :]
            found = Exchange(prompt, answer, self._header(prompt), self._end(answer))
        return found._replace(learnt=False) if reply.get("trained") is False else found

    def _parted(
        self, prompt: str, whole: str, chat: Sequence[Message], reply: Message, tools: Sequence[Any]
    ) -> tuple[str, str]:
        """Prompt and whole text of an answer whose text does not begin with the prompt that asks for it.

        Some templates open a thought in the prompt that a finished answer does not show. An answer with a thought is then
        what a model says behind that prompt; one without begins where its turn does.
        """
        words = reply["content"]
        opened = prompt.rstrip().endswith("<think>")
        if opened and "</think>" in words and not reply.get("tool_calls"):
            said = words.strip().removeprefix("<think>").lstrip("\n")
            return prompt, prompt + said + self.ending
        place = self._turn(self._traced([*chat, reply], tools), len(chat))
        if place is None and _words(reply):
            raise RefusedError(tr("the chat template leaves out the answer"))
        return whole[: place.start] if place else common_prefix(prompt, whole), whole

    def _turn(self, text: Traced, source: int) -> Turn | None:
        try:
            return turn(text, source, self.headers, self.ending)
        except ValueError as error:
            raise RefusedError(str(error)) from error

    def _by_steps(self, chat: Sequence[Message], tools: Sequence[Any]) -> list[Exchange]:
        """Every answer, found by rendering the chat up to it; none where later turns change what stands before."""
        found: list[Exchange] = []
        seen = ""
        for i, message in enumerate(chat):
            if message["role"] != "assistant":
                continue
            step = self._reply(chat[:i], message, tools)
            if not step.prompt.startswith(seen):
                return []
            found.append(step._replace(prompt=step.prompt[len(seen) :]))
            seen = step.prompt + step.answer
        return found

    def _by_traces(self, chat: Sequence[Message], tools: Sequence[Any]) -> list[Exchange]:
        """Every answer, found by where its words were put: for templates that rewrite earlier turns."""
        last = self._reply(chat[:-1], chat[-1], tools)
        text = self._traced(chat, tools)
        agreed = len(common_prefix(plain(text), last.prompt))
        found: list[Exchange] = []
        seen = 0
        for i, message in enumerate(chat[:-1]):
            if message["role"] != "assistant":
                continue
            place = self._turn(text, i)
            if place is None:
                if _words(message):
                    raise RefusedError(tr("the chat template leaves out what turn {i} says", i=i + 1))
                continue  # it was a thought and nothing else
            if not seen <= place.start <= place.end <= agreed:
                raise RefusedError(
                    tr("the chat template writes earlier turns in another order, or in two ways")
                )
            prompt, answer = plain(text[seen : place.start]), plain(text[place.start : place.end])
            learnt = message.get("trained") is not False
            found.append(Exchange(prompt, answer, place.header, place.ending, learnt))
            seen = place.end
        return [*found, last._replace(prompt=last.prompt[seen:])]


PROBE = "question"


def _as_parts(message: Message) -> Message:
    """A message whose content is a list of parts, as processors of pictures take it."""
    first, *rest = message["content"].split(PICTURE)
    parts = [{"type": "text", "text": first}] if first or not rest else []
    for text in rest:
        parts.append({"type": "image"})
        parts += [{"type": "text", "text": text}] if text else []
    return {**message, "content": parts}


def _words(message: Message) -> str:
    """What an answer says besides its thought."""
    return str(message["content"]).rpartition("</think>")[2].strip()


_THOUGHT = ("<think>\n", "\n</think>\n\n")


def _thought_inside(message: Message) -> Message:
    """A message whose thought stands at the begin of its content."""
    thought = message["reasoning_content"].strip("\n")
    kept = {k: v for k, v in message.items() if k != "reasoning_content"}
    return {**kept, "content": _THOUGHT[0] + thought + _THOUGHT[1] + message["content"]}


def _unmarked(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "")
