"""Raw records into the normal form, whatever tool they were written for; what does not fit says why.

Normal rows are plain dicts. chat: {"messages", "tools"?}; pairs: {"messages", "chosen", "rejected", "tools"?};
labelled: {"messages", "completion", "label", "tools"?}; text: {"text"}. A message is {"role", "content"} with "tool_calls"
where an assistant calls tools; roles are system, user, assistant and tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tuner.data.catalog import Entry
from tuner.data.files import Broken

Message = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not used: the reason, the same for all of its kind, and what is special about this one."""

    reason: str
    detail: str = ""


class UnfitError(Exception):
    """Raised inside a conversion; carries the Dropped it ends as."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.dropped = Dropped(reason, detail)


_TURN = re.compile(r"\n\n(Human|Assistant):")


def convert(record: Mapping[str, Any] | Broken, entry: Entry) -> Row | Dropped:
    """A record in the normal form of its entry's kind, or why it cannot be used."""
    if isinstance(record, Broken):
        return Dropped(
            "broken row", f"{record.reason}: {record.excerpt}" if record.excerpt else record.reason
        )
    try:
        return _BY_KIND[entry.kind](record, entry)
    except UnfitError as unfit:
        return unfit.dropped


def _chat(record: Mapping[str, Any], entry: Entry) -> Row:
    messages = _turns(record, entry, answered=True)
    if not messages or messages[-1]["role"] != "assistant":
        raise UnfitError("no answer", "the chat ends before the assistant speaks")
    for message in messages:
        if message["role"] == "assistant":
            _not_empty(message)
    return _with_tools({"messages": messages}, record, entry)


def _pairs(record: Mapping[str, Any], entry: Entry) -> Row:
    chosen, rejected = (_cell(record, entry, side) for side in ("chosen", "rejected"))
    if chosen is None or rejected is None:
        raise UnfitError(
            "no pair", f"there is no {entry.columns['chosen' if chosen is None else 'rejected']!r}"
        )
    shared = _shared_prompt(record, entry, chosen, rejected)
    if shared:
        messages, better, worse = shared
    else:
        messages = _turns(record, entry, answered=False)
        better, worse = _side(chosen, entry, "chosen"), _side(rejected, entry, "rejected")
    _ends_with_prompt(messages)
    _not_empty(better, "chosen")
    _not_empty(worse, "rejected")
    if better == worse:
        raise UnfitError("identical answers", better["content"][:120])
    return _with_tools({"messages": messages, "chosen": better, "rejected": worse}, record, entry)


def _labelled(record: Mapping[str, Any], entry: Entry) -> Row:
    label = _truth(_cell(record, entry, "kto_tag"))
    messages = _turns(record, entry, answered=True)
    if not messages or messages[-1]["role"] != "assistant":
        raise UnfitError("no answer", "the chat ends before the assistant speaks")
    completion = messages.pop()
    _ends_with_prompt(messages)
    _not_empty(completion)
    return _with_tools({"messages": messages, "completion": completion, "label": label}, record, entry)


def _text(record: Mapping[str, Any], entry: Entry) -> Row:
    text = _cell(record, entry, "prompt")
    if text is None and "text" in record:
        text = record["text"]
    if not isinstance(text, str) or not text.strip():
        raise UnfitError("no text", f"there is nothing in {entry.columns['prompt']!r}")
    return {"text": text}


_BY_KIND = {"chat": _chat, "pairs": _pairs, "labelled": _labelled, "text": _text}


# --- turns ---------------------------------------------------------------------------------------------------------


def _turns(record: Mapping[str, Any], entry: Entry, answered: bool) -> list[Message]:
    """The turns of a record in order, system first; with `answered`, an alpaca record's answer too."""
    if entry.formatting == "alpaca":
        messages = _alpaca(record, entry, answered)
    else:
        messages = _shared(_cell(record, entry, "messages"), entry)
    system = _cell(record, entry, "system")
    if system and isinstance(system, str) and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": system})
    _check_order(messages)
    return messages


def _alpaca(record: Mapping[str, Any], entry: Entry, answered: bool) -> list[Message]:
    messages: list[Message] = []
    for pair in _listed(_cell(record, entry, "history")) or ():
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise UnfitError("broken history", "history is a list of [question, answer]")
        messages += [_message("user", pair[0]), _message("assistant", pair[1])]
    asked = [_cell(record, entry, part) for part in ("prompt", "query")]
    prompt = "\n".join(_plain(part) for part in asked if part)
    if not prompt.strip():
        raise UnfitError("no prompt", f"there is nothing in {entry.columns['prompt']!r}")
    messages.append(_message("user", prompt))
    if answered:
        response = _cell(record, entry, "response")
        if response is None:
            raise UnfitError("no answer", f"there is no {entry.columns['response']!r}")
        messages.append(_message("assistant", response))
    return messages


def _shared(raw: Any, entry: Entry) -> list[Message]:
    """sharegpt and openai turns."""
    turns = _listed(raw)
    if not turns:
        raise UnfitError("no turns", f"there is nothing in {entry.columns['messages']!r}")
    return [_turn(turn, entry) for turn in turns]


def _turn(turn: Any, entry: Entry) -> Message:
    if type(turn) is not dict and not isinstance(turn, Mapping):
        raise UnfitError("broken turn", f"a turn is an object, this is {type(turn).__name__}")
    role_tag, content_tag = entry.turn_keys
    if role_tag not in turn:
        # Rows under the other usual names are read rather than lost.
        role_tag, content_tag = ("role", "content") if "role" in turn else ("from", "value")
    word, content = turn.get(role_tag), turn.get(content_tag)
    role = entry.roles.get(word) if isinstance(word, str) else None
    if role is None:
        raise UnfitError("unknown role", repr(word)[:80])
    calls = turn.get("tool_calls")
    if calls and role == "assistant":
        return {**_message(role, content or ""), "tool_calls": _calls(calls)}
    if role == "call":
        return _call_from_text(content)
    return {"role": role, "content": content if type(content) is str else _plain(content)}


def _message(role: str, content: Any) -> Message:
    return {"role": role, "content": _plain(content)}


def _plain(content: Any) -> str:
    """The text of a content: a string, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        return "".join(str(p.get("text", "")) for p in content)
    if isinstance(content, (int, float, bool)):
        return str(content)
    if isinstance(content, (dict, list)):
        raise UnfitError("not text", f"a content is text, this is {type(content).__name__}")
    return str(content)


def _check_order(messages: Sequence[Message]) -> None:
    """Raise UnfitError unless turns go system?, then user or tool, then assistant, and so on."""
    rest = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if rest and rest[0]["role"] != "user":
        raise UnfitError("role order", f"turn 1 is {rest[0]['role']}, it must be user")
    for number, (one, two) in enumerate(pairwise(rest), start=2):
        fine = two["role"] in ("user", "tool") if one["role"] == "assistant" else two["role"] == "assistant"
        several_results = one["role"] == two["role"] == "tool"
        if not fine and not several_results:
            raise UnfitError("role order", f"turn {number} is {two['role']} after {one['role']}")


def _ends_with_prompt(messages: Sequence[Message]) -> None:
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise UnfitError("no prompt", "the turns before the answer do not end with the user")


def _not_empty(message: Message, side: str = "answer") -> None:
    if not message["content"].strip() and not message.get("tool_calls"):
        raise UnfitError("empty answer", f"the {side} is empty")


# --- pairs ---------------------------------------------------------------------------------------------------------


def _side(value: Any, entry: Entry, side: str) -> Message:
    if isinstance(value, str):
        return _message("assistant", value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    message = _turn(value, entry)
    if message["role"] != "assistant":
        raise UnfitError("role order", f"{side} is said by {message['role']}, it must be the assistant")
    return message


def _shared_prompt(
    record: Mapping[str, Any], entry: Entry, chosen: Any, rejected: Any
) -> tuple[list[Message], Message, Message] | None:
    """The prompt that two whole chats share, for sets that keep it inside both answers; None for other sets."""
    if _is_transcript(chosen) and _is_transcript(rejected):
        sides = [_transcript(chosen), _transcript(rejected)]
    elif _is_chat(chosen) and _is_chat(rejected):
        sides = [_shared(chosen, entry), _shared(rejected, entry)]
    else:
        return None
    better, worse = sides
    same = next(
        (i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b),
        min(len(better), len(worse)),
    )
    # Whole chats that are equal share all but the last turn: an identical pair, told so later.
    same = min(same, len(better) - 1, len(worse) - 1)
    if len(better) != same + 1 or len(worse) != same + 1:
        raise UnfitError(
            "no shared prompt", f"the two chats part at turn {same + 1}, before their last answer"
        )
    _check_order(better)
    _check_order(worse)
    if better[-1]["role"] != "assistant" or worse[-1]["role"] != "assistant":
        raise UnfitError("no answer", "a chat of the pair does not end with the assistant")
    system = _cell(record, entry, "system")
    opening = [_message("system", system)] if system and better[0]["role"] != "system" else []
    return opening + better[:same], better[-1], worse[-1]


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("\n\nHuman:") and "\n\nAssistant:" in value


def _transcript(text: str) -> list[Message]:
    """Turns of a text that marks them with "\\n\\nHuman:" and "\\n\\nAssistant:" (Anthropic/hh-rlhf)."""
    parts = _TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [_message(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]


# --- cells, labels, tools ------------------------------------------------------------------------------------------


def _cell(record: Mapping[str, Any], entry: Entry, column: str) -> Any:
    name = entry.columns.get(column)
    value = record.get(name) if name else None
    # Tables written by pandas have NaN where there is nothing.
    return None if type(value) is float and value != value else value


def _listed(value: Any) -> list[Any] | None:
    """A list, also when a table keeps it as JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UnfitError("broken turn", "the list of turns is not JSON") from error
    if value is None or value == "":
        return None
    if not isinstance(value, list):
        raise UnfitError("broken turn", f"turns are a list, this is {type(value).__name__}")
    return value


def _truth(value: Any) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    known = words.get(str(value).strip().lower()) if isinstance(value, (bool, int, str)) else None
    if known is None:
        raise UnfitError("no label", f"the label is {value!r}, it must be true or false"[:120])
    return known


def _with_tools(row: Row, record: Mapping[str, Any], entry: Entry) -> Row:
    tools = _cell(record, entry, "tools")
    if tools in (None, "", "[]", []):
        return row
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise UnfitError("broken tools", "the tools are not JSON") from error
    row["tools"] = tools if isinstance(tools, list) else [tools]
    return row


def _calls(raw: Any) -> list[Message]:
    """Tool calls as {"type", "function": {"name", "arguments"}} with arguments as an object."""
    if isinstance(raw, Mapping):
        raw = [raw]
    if not isinstance(raw, list):
        raise UnfitError("broken tool call", "tool calls are a list of objects")
    return [_call(one) for one in raw]


def _call(raw: Any) -> Message:
    function = raw.get("function", raw) if isinstance(raw, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnfitError("broken tool call", "a tool call has a name and arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise UnfitError("broken tool call", "the arguments are not JSON") from error
    if arguments is not None and not isinstance(arguments, Mapping):
        raise UnfitError(
            "broken tool call", f"the arguments are an object, this is {type(arguments).__name__}"
        )
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}


_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


def _call_from_text(content: Any) -> Message:
    """A sharegpt function_call turn: JSON of one call or a list of them, perhaps after a thought."""
    if isinstance(content, str):
        thought = _THOUGHT.match(content)
        said = thought.group(0) if thought else ""
        try:
            return {
                "role": "assistant",
                "content": said,
                "tool_calls": _calls(json.loads(content[len(said) :])),
            }
        except (ValueError, RecursionError) as error:
            raise UnfitError("broken tool call", content[:120]) from error
    return {"role": "assistant", "content": "", "tool_calls": _calls(content)}
