"""POST /v1/chat/completions."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from tuner.calls import Call, CallReader
from tuner.data.templates import PICTURE
from tuner.generate.request import Grammar, Piece
from tuner.serve import grammars
from tuner.serve.answering import Answers, Prompted, answering, now
from tuner.serve.errors import ApiError
from tuner.serve.loaded import Loaded
from tuner.serve.models import Choice
from tuner.serve.protocol import ChatAsked, refuse_unsupported
from tuner.serve.token_text import TokenTexts
from tuner.serve.usage import usage
from tuner.text.lookup import tr

MANY = 1 << 30


@dataclass(frozen=True)
class Chat:
    """A request, ready to be asked: `wanted` is one entry for each of its `n` answers."""

    asked: ChatAsked
    choice: Choice
    wanted: list[Prompted]
    tools: tuple[str, ...]
    texts: TokenTexts
    id: str
    created: int

    def reader(self) -> CallReader:
        return CallReader(self.tools)

    @property
    def most_calls(self) -> int:
        """How many calls of an answer are passed on: what a model writes of its own accord may be more than was wanted."""
        return MANY if self.asked.parallel_tool_calls else 1

    def head(self, kind: str) -> dict[str, Any]:
        """What every object of this answer begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.choice.id,
            "system_fingerprint": self.choice.fingerprint,
        }


async def prepare(loaded: Loaded, asked: ChatAsked, texts: TokenTexts) -> Chat:
    """Find the model, render the prompt. Raises ApiError."""
    return await run_in_threadpool(_prepare, loaded, asked, texts)


def _prepare(loaded: Loaded, asked: ChatAsked, texts: TokenTexts) -> Chat:
    refuse_unsupported(asked)
    loaded.must(score=False)
    asked = _allowed(asked)
    choice = replace(loaded.models.named(asked.model), template=asked.template or None)
    tools, called = _tools(asked), _called(asked)
    pictures = [one for m in asked.messages for one in _pictures(m, loaded)]
    messages, begun = _begun([_message(m) for m in asked.messages], asked)
    prompt, files = loaded.prompt(choice, messages, tools, begun, pictures)
    tokens = asked.max_completion_tokens or asked.max_tokens
    sampling = loaded.sampling(asked, choice, prompt, tokens, logprobs=asked.top)
    if asked.n * len(prompt) > 1 << 20:
        raise ApiError(400, "n times the prompt is too much for one request.", "n")
    seeds = [replace(sampling, seed=loaded.seed(asked, number)) for number in range(asked.n)]
    wanted = [Prompted(prompt, seeded, _grammar(loaded, choice, asked, called), files) for seeded in seeds]
    return Chat(asked, choice, wanted, _names(tools), texts, f"chatcmpl-{uuid.uuid4().hex}", now())


def _grammar(
    loaded: Loaded, choice: Choice, asked: ChatAsked, called: Sequence[Mapping[str, Any]]
) -> Grammar | None:
    stops = loaded.voice(choice).stops
    if called:
        several = asked.parallel_tool_calls and asked.tool_choice == "required"
        return grammars.of_calls(called, several, loaded.tokenizer, stops)
    return grammars.of(asked.response_format, loaded.tokenizer, stops)


def _allowed(asked: ChatAsked) -> ChatAsked:
    """The request with those tools alone that a tool_choice of `allowed_tools` names. Raises ApiError."""
    choice = asked.tool_choice
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return asked
    given = choice.get("allowed_tools")
    allowed: dict[str, Any] = given if isinstance(given, dict) else choice  # OpenAI's two interfaces
    mode, listed = allowed.get("mode", "auto"), allowed.get("tools")
    if mode not in ("auto", "required") or not isinstance(listed, list) or not all(map(_is_tool, listed)):
        raise ApiError(
            400, "allowed_tools has a mode, which is auto or required, and a list of tools.", "tool_choice"
        )
    names = set(_names(listed))
    kept = [
        tool for tool, name in zip(asked.tools or (), _names(asked.tools or ()), strict=True) if name in names
    ]
    if len(kept) < len(names):
        raise ApiError(400, "allowed_tools names a tool that is not in tools.", "tool_choice")
    return asked.model_copy(update={"tools": kept, "tool_choice": mode})


def _is_tool(one: Any) -> bool:
    """Whether it names a tool in one of OpenAI's two shapes."""
    return isinstance(one, dict) and isinstance(one.get("function") or {}, dict)


def _tools(asked: ChatAsked) -> list[dict[str, Any]]:
    """The tools that the model is shown."""
    return [] if asked.tool_choice == "none" else list(asked.tools or ())


def _called(asked: ChatAsked) -> list[Mapping[str, Any]]:
    """The functions of which one must be called; empty where the model may choose to. Raises ApiError."""
    choice = asked.tool_choice
    if choice in (None, "auto", "none"):
        return []
    functions: list[Mapping[str, Any]] = [tool.get("function") or tool for tool in asked.tools or ()]
    if choice != "required":
        name = _chosen_name(choice)
        functions = [function for function in functions if function.get("name") == name]
    if not functions:
        raise ApiError(400, "tool_choice asks for a call, and there is no such tool in tools.", "tool_choice")
    if asked.response_format and asked.response_format.get("type") != "text":
        raise ApiError(
            400, "response_format and a tool_choice that asks for a call exclude each other.", "tool_choice"
        )
    return functions


def _chosen_name(choice: Any) -> str:
    function = (
        choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    )
    if not isinstance(function, dict):
        sentence = (
            'tool_choice can be auto, none, required or {"type": "function", "function": {"name": ...}}.'
        )
        raise ApiError(400, sentence, "tool_choice", "unsupported_parameter")
    return str(function.get("name"))


def _names(tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(str((tool.get("function") or tool).get("name") or "") for tool in tools)


# --- messages as callers send them, and as templates read them


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """One message for the template: text content, calls with their arguments as objects. Raises ApiError."""
    role = {"developer": "system", "function": "tool"}.get(str(message.get("role")), message.get("role"))
    if role not in ("system", "user", "assistant", "tool"):
        raise ApiError(
            400, f"A message has the role {role!r}; roles are system, user, assistant, tool.", "messages"
        )
    made = {**message, "role": role, "content": _text(message.get("content"))}
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [_call(call) for call in calls]
    else:
        made.pop("tool_calls", None)
    return made


def _begun(messages: list[dict[str, Any]], asked: ChatAsked) -> tuple[list[dict[str, Any]], str]:
    """The messages to be answered, and the beginning of the answer where the last one is that."""
    if not asked.continue_final_message:
        return messages, ""
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise ApiError(400, "continue_final_message needs a last message of the assistant.", "messages")
    return messages[:-1], str(messages[-1]["content"])


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise ApiError(400, "A message's content is text or a list of parts.", "messages")
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("text", "refusal", IMAGE):
            raise ApiError(
                400,
                tr("This model reads text only; send parts of type text."),
                "messages",
                "unsupported_content",
            )
    return "".join(_written(part) for part in content)


IMAGE = "image_url"


def _written(part: Mapping[str, Any]) -> str:
    return PICTURE if part["type"] == IMAGE else str(part.get("text") or part.get("refusal") or "")


def _pictures(message: Mapping[str, Any], loaded: Loaded) -> list[str]:
    """The pictures of a message, each as a data: URL: nothing is fetched for a caller and no file opened. Raises ApiError."""
    content = message.get("content")
    parts = (
        [p for p in content if isinstance(p, dict) and p.get("type") == IMAGE]
        if isinstance(content, list)
        else []
    )
    if parts and not loaded.sees:
        sentence = "This model reads text only; send parts of type text."
        raise ApiError(400, sentence, "messages", "unsupported_content")
    if parts and message.get("role") != "user":
        raise ApiError(400, "A picture stands in a message of the user.", "messages", "unsupported_content")
    return [_url(part) for part in parts]


def _url(part: Mapping[str, Any]) -> str:
    named = part.get(IMAGE)
    url = named.get("url") if isinstance(named, dict) else named
    if not isinstance(url, str) or not url.startswith("data:image/"):
        sentence = "A picture is sent as a data: URL (data:image/png;base64,...); addresses and paths are not opened here."
        raise ApiError(400, sentence, "messages", "invalid_image")
    return url


def _call(call: Any) -> dict[str, Any]:
    function = dict(call.get("function") or {}) if isinstance(call, dict) else {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except ValueError as error:
            raise ApiError(400, "The arguments of a tool call are no JSON.", "messages") from error
    return {**call, "function": function} if function.get("name") else _nameless()


def _nameless() -> dict[str, Any]:
    raise ApiError(400, "A tool call has no function name.", "messages")


# --- the answer at once


async def whole(loaded: Loaded, chat: Chat, caller: HttpRequest) -> dict[str, Any]:
    """The whole answer as one object."""
    async with answering(loaded, chat.choice, chat.wanted) as answers:
        found = await answers.whole(caller)
        return {
            **chat.head("chat.completion"),
            "choices": [_choice(chat, number, pieces) for number, pieces in enumerate(found)],
            "usage": _usage(chat, answers),
        }


def _choice(chat: Chat, number: int, pieces: Sequence[Piece]) -> dict[str, Any]:
    reader = chat.reader()
    text, calls = reader.all("".join(piece.text for piece in pieces))
    calls = calls[: chat.most_calls]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text or (None if calls else ""),
        "refusal": None,
    }
    if calls:
        message["tool_calls"] = [call.whole() for call in calls]
    return {
        "index": number,
        "message": message,
        "logprobs": _logprobs(chat, pieces),
        "finish_reason": _finish(pieces[-1], calls),
    }


def _logprobs(chat: Chat, pieces: Sequence[Piece]) -> dict[str, Any] | None:
    if not chat.asked.logprobs:
        return None
    content = [chat.texts.chat(token) for piece in pieces for token in piece.tokens]
    return {"content": content, "refusal": None}


def _finish(last: Piece, calls: Sequence[Call]) -> str:
    return "tool_calls" if calls and last.finish == "stop" else last.finish


def _usage(chat: Chat, answers: Answers) -> dict[str, int]:
    return usage(answers.requests, [len(chat.wanted[0].prompt)])


# --- the answer in pieces


async def chunks(loaded: Loaded, chat: Chat) -> AsyncIterator[dict[str, Any]]:
    """The answer's chunks: the role first, then what is new, then why it ended, then what it took if that was asked for."""
    head = chat.head("chat.completion.chunk") | ({"usage": None} if chat.asked.tells_usage else {})
    async with answering(loaded, chat.choice, chat.wanted) as answers:
        for number in range(chat.asked.n):
            yield {**head, "choices": [_delta(number, {"role": "assistant", "content": ""})]}
        readers = [chat.reader() for _ in range(chat.asked.n)]
        async for number, piece in answers.pieces():
            for choice in _new(chat, number, piece, readers[number]):
                yield {**head, "choices": [choice]}
        if chat.asked.tells_usage:
            yield {**head, "choices": [], "usage": _usage(chat, answers)}


def _new(chat: Chat, number: int, piece: Piece, reader: CallReader) -> list[dict[str, Any]]:
    """The choices that one piece makes: content or parts of calls, and the end."""
    deltas = reader.deltas(piece.text, ended=bool(piece.finish))
    found = [_delta(number, delta) for delta in deltas if _call_number(delta) in range(chat.most_calls)]
    if chat.asked.logprobs and piece.tokens:
        found = found or [_delta(number, {})]
        found[0]["logprobs"] = _logprobs(chat, [piece])
    if piece.finish:
        found.append({**_delta(number, {}), "finish_reason": _finish(piece, reader.calls)})
    return found


def _call_number(delta: Mapping[str, Any]) -> int:
    """Which call a delta is of; 0 for words."""
    return int(delta["tool_calls"][0]["index"]) if "tool_calls" in delta else 0


def _delta(number: int, delta: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": number, "delta": dict(delta), "logprobs": None, "finish_reason": None}
