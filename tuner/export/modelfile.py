"""Ollama's Modelfile: its template written anew from what the tokenizer's chat template does, with every stop.

Ollama reads no Jinja: a file without a template of its own kind is prompted in words the model never learned. So probes
are rendered, the text around them is what belongs to each turn, and what comes of it is held against the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

Chat = Sequence[Mapping[str, Any]]
SYSTEM, USER, ANSWER, AGAIN, RESULT = "Sys7tem", "Us7er", "Ans7wer", "Ag7ain", "Res7ult"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool_{letter}",
            "description": f"Does {letter}.",
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]},
        },
    }
    for letter in "pq"
]
CALL = {"name": "call_me", "arguments": {"x": "y"}}
CONTEXT = 4096
"""Tokens that Ollama is told to keep room for at most, as LLaMA-Factory does: a model's whole context may not fit."""


class UnlikeError(Exception):
    """A chat template that is no row of turns with the same text around each."""


@dataclass(frozen=True)
class ToolParts:
    """How tools are told of and called. `{before}` tools `{after}`, JSON of each with `between` them."""

    alone: str
    with_system: tuple[str, str]
    between: str
    after: str
    function: str
    """What is written of each: `$t` for all of it, `$t.Function` for the function alone."""
    call: tuple[str, str, str]
    result: tuple[str, str]


@dataclass(frozen=True)
class Parts:
    """The text before and after each kind of turn. `begin` stands at the start where no system text is given."""

    begin: str
    system: tuple[str, str]
    user: tuple[str, str]
    answer: tuple[str, str]
    prompt: str
    tools: ToolParts | None = None

    def render(self, chat: Chat) -> str:
        """A conversation without tools, up to where the model answers: what Ollama makes of the template below."""
        told = [m["content"] for m in chat if m["role"] == "system"]
        text = [self.system[0] + told[0] + self.system[1] if told else self.begin]
        for message in chat:
            if message["role"] != "system":
                before, after = self.user if message["role"] == "user" else self.answer
                text.append(before + message["content"] + after)
        return "".join(text) + self.prompt


def parts_of(render: Callable[..., str], bos: str = "") -> Parts:
    """The parts of a chat template. `render(messages, asks, tools=None)` is the template; `bos` is left out, since Ollama
    puts it there itself. Raises UnlikeError."""
    try:
        parts = _plain(render)
        if any(parts.render(chat) != render(chat, True) for chat in PROBES):
            raise UnlikeError
    except (
        ValueError,
        TypeError,
        KeyError,
    ) as error:  # a probe that is not in the text, or a template that refuses it
        raise UnlikeError from error
    with suppress(Exception):  # whatever a template says to tools that it has no place for: it has none
        parts = replace(parts, tools=_tools(render, parts))
    cut = len(bos) if bos and parts.begin.startswith(bos) and parts.system[0].startswith(bos) else 0
    if not cut:
        return parts
    tools = parts.tools
    if tools is not None and tools.alone.startswith(bos):
        told = (tools.with_system[0][cut:], tools.with_system[1])
        tools = replace(tools, alone=tools.alone[cut:], with_system=told)
    return replace(
        parts, begin=parts.begin[cut:], system=(parts.system[0][cut:], parts.system[1]), tools=tools
    )


def _said(*texts: str) -> list[dict[str, str]]:
    roles = {SYSTEM: "system", ANSWER: "assistant"}
    return [{"role": roles.get(text, "user"), "content": text} for text in texts]


PROBES: tuple[Chat, ...] = (
    _said(USER),
    _said(SYSTEM, USER),
    _said(USER, ANSWER, AGAIN),
    _said(SYSTEM, USER, ANSWER, AGAIN, ANSWER, USER),
)


def _plain(render: Callable[..., str]) -> Parts:
    alone, prompted = render(_said(USER), False), render(_said(USER), True)
    head, user_after = _around(alone, USER)
    _, answer_after = _around(render(_said(USER, ANSWER), False), ANSWER)
    first, rest = _around(render(_said(USER, ANSWER, AGAIN), False), ANSWER)
    answer_before = _without(first, alone)
    again, _ = _around(rest, AGAIN)
    user_before = _without(again, answer_after)
    begin = _without_end(head, user_before)
    told, _ = _around(render(_said(SYSTEM, USER), False), USER)
    system = _around(_without_end(told, user_before), SYSTEM)
    return Parts(
        begin,
        system,
        (user_before, user_after),
        (answer_before, answer_after),
        _without(prompted, alone),
    )


def _tools(render: Callable[..., str], parts: Parts) -> ToolParts:
    """How a template tells of tools. Raises ValueError where it does not."""
    alone = render(_said(USER), False, TOOLS)
    first, second, function = _written(alone)
    before, rest = _around(alone, first)
    between, rest = _around(rest, second)
    after = _without_end(_around(rest, USER)[0], parts.user[0])
    told, _ = _around(render(_said(SYSTEM, USER), False, TOOLS), first)
    calls: list[dict[str, Any]] = [
        *_said(USER),
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "tool", "content": RESULT},
    ]
    called = _without(render(calls, False, TOOLS), alone + parts.answer[0])
    name, rest = _around(called, str(CALL["name"]))
    middle, rest = _around(rest, json.dumps(CALL["arguments"]))
    closed, result_after = _around(rest, RESULT)
    close, result_before = _around(closed, parts.answer[1])
    return ToolParts(
        before,
        _around(told, SYSTEM),
        between,
        after,
        function,
        (name, middle, close),
        (result_before, result_after),
    )


def _written(text: str) -> tuple[str, str, str]:
    """The two tools as they stand in a text, and what of a tool that is."""
    for what, rows in (("$t", TOOLS), ("$t.Function", [tool["function"] for tool in TOOLS])):
        first, second = (json.dumps(row) for row in rows)
        if first in text and second in text:
            return first, second, what
    raise ValueError("no tools")


def _around(text: str, word: str) -> tuple[str, str]:
    before, found, after = text.partition(word)
    if not found:
        raise ValueError(word)
    return before, after


def _without(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError(start)
    return text[len(start) :]


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError(end)
    return text[: len(text) - len(end)]


def go_template(parts: Parts) -> str:
    """The parts in the language of Ollama's templates, Go's text/template. No part of it cuts blank space."""
    begin = _if(".System", _around_field(parts.system, ".System"), _text(parts.begin))
    calls, results = "", ""
    if tools := parts.tools:
        told = _if(".System", _around_field(tools.with_system, ".System"), _text(tools.alone))
        each = f"{{{{ range $n, $t := .Tools }}}}{{{{ if $n }}}}{_text(tools.between)}{{{{ end }}}}{{{{ {tools.function} }}}}{{{{ end }}}}"
        begin = _if(".Tools", told + each + _text(tools.after), begin)
        name, middle, close = map(_text, tools.call)
        calls = f"{{{{ range $m.ToolCalls }}}}{name}{{{{ .Function.Name }}}}{middle}{{{{ .Function.Arguments }}}}{close}{{{{ end }}}}"
        results = f'{{{{ else if eq $m.Role "tool" }}}}{_around_field(tools.result, "$m.Content")}'
    before, after = map(_text, parts.answer)
    return (
        f"{begin}{{{{ range $i, $m := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}"
        f'{{{{ if eq $m.Role "user" }}}}{_around_field(parts.user, "$m.Content")}'
        f'{{{{ else if eq $m.Role "assistant" }}}}{before}{{{{ $m.Content }}}}{calls}{{{{ if not $last }}}}{after}{{{{ end }}}}'
        f'{results}{{{{ end }}}}{{{{ if and $last (ne $m.Role "assistant") }}}}{_text(parts.prompt)}{{{{ end }}}}{{{{ end }}}}'
    )


def _if(field: str, there: str, otherwise: str) -> str:
    return f"{{{{ if {field} }}}}{there}{{{{ else }}}}{otherwise}{{{{ end }}}}"


def _around_field(around: tuple[str, str], field: str) -> str:
    return f"{_text(around[0])}{{{{ {field} }}}}{_text(around[1])}"


def _text(text: str) -> str:
    """Text as it is, safe from being read as an action."""
    return text.replace("{{", '{{ "{{" }}')


def written(
    source: str, parts: Parts | None, stops: Sequence[str], context: int, system: str = "", adapter: str = ""
) -> str:
    """A whole Modelfile. `source` is what it is made from; `parts` None leaves the template to Ollama."""
    lines = [f"FROM {source}"]
    if adapter:
        lines.append(f"ADAPTER {adapter}")
    if parts is not None:
        lines.append(f'TEMPLATE """{go_template(parts)}"""')
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines.append(f"PARAMETER num_ctx {min(context, CONTEXT)}")
    return "\n".join(lines) + "\n"
