"""Turns of a chat as messages in the normal form, whatever tool they were written for; what of them is not used is noted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.data.entries import PICTURE_PARTS, Entry
from tuner.text.lookup import mark, tr

PLACEHOLDER = "<image>"
"""Where a picture stands in a message's text."""

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


class Notes(dict[str, list[str]]):
    """What is worth knowing of a row that is used: particulars by what they are of, each once."""

    untrained = False
    """Whether an answer of the row says that it is not to be trained."""

    def add(self, what: str, detail: str) -> None:
        details = self.setdefault(what, [])
        if detail not in details:
            details.append(detail)

    def unused(self, key: str) -> None:
        """A key of a message that is not used."""
        self.add(mark("keys not used"), key)

    def weight(self, detail: str) -> None:
        """A weight that is not obeyed."""
        self.add(mark("weight not obeyed"), detail)


def is_nothing(value: Any) -> bool:
    """Whether a value says nothing: None, an empty text or list, and NaN, which tables have where there is nothing."""
    return value is None or value in ("", [], {}) or (type(value) is float and value != value)


# --- one turn ------------------------------------------------------------------------------------------------------


def turn(raw: Any, entry: Entry, notes: Notes) -> Message:
    """A sharegpt or openai turn as a message. Raises UnfitError."""
    if type(raw) is not dict and not isinstance(raw, Mapping):
        raise UnfitError(
            tr("broken turn"), tr("a turn is an object, this is {name}", name=type(raw).__name__)
        )
    role_tag, content_tag = entry.turn_keys
    if role_tag not in raw:
        # Rows under the other usual names are read rather than lost.
        role_tag, content_tag = ("role", "content") if "role" in raw else ("from", "value")
    if content_tag not in raw:
        content_tag = next((name for name in ("content", "value") if name in raw), content_tag)
    word, content = raw.get(role_tag), raw.get(content_tag)
    role = entry.roles.get(word) if isinstance(word, str) else None
    if role is None:
        raise UnfitError(tr("unknown role"), repr(word)[:80])
    if role == "call":
        made = _call_from_text(content, notes)
    elif type(content) is str:  # as `message` does, and nearly all turns are so
        made = {"role": role, "content": content}
    else:
        made = message(role, content, notes)
    if len(raw) > 2 or content_tag not in raw:
        _add_rest(made, raw, (role_tag, content_tag), notes)
    return made


def message(role: str, content: Any, notes: Notes) -> Message:
    """A message from who speaks and a content: text, a number, or a list of parts. Raises UnfitError."""
    if type(content) is str:
        return {"role": role, "content": content}
    if isinstance(content, list):
        return _from_parts(role, content, notes)
    return {"role": role, "content": plain(content)}


def plain(content: Any) -> str:
    """The text of a content without parts: a number is its digits, nothing is an empty text. Raises UnfitError."""
    if content is None or isinstance(content, str):
        return content or ""
    if is_nothing(content):
        return ""
    if isinstance(content, (int, float)):
        return str(content)
    raise UnfitError(tr("not text"), tr("a content is text, this is {name}", name=type(content).__name__))


def _from_parts(role: str, parts: list[Any], notes: Notes) -> Message:
    """A message whose content is a list of parts: OpenAI's, or those of LLaMA-Factory's v1, which also hold thoughts,
    calls and tools (its `extras/types.py`)."""
    texts: list[str] = []
    thoughts: list[str] = []
    pictures: list[Any] = []
    made: Message = {"role": role, "content": ""}
    for part in parts:
        if part is None:
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind in PICTURE_PARTS:
            texts.append(PLACEHOLDER)
            pictures.append(_source(part))
            continue
        if not isinstance(part, Mapping) or (kind, role) not in _PARTS and kind != "text":
            raise UnfitError(tr("not text"), tr("a part of type {kind}", kind=kind)[:120])
        key = "value" if part.get("text") is None else "text"
        said = part.get(key)
        for other, value in part.items():
            if other not in ("type", key) and not is_nothing(value):
                notes.unused(f"content.{other}")
        if kind == "text":
            texts.append(plain(said))
            pictures += [None] * texts[-1].count(PLACEHOLDER)
        elif kind == "reasoning":
            thoughts.append(plain(said))
        elif kind == "tools":
            made["tools"] = said
        else:
            made.setdefault("tool_calls", []).extend(calls(said, notes))
    made["content"] = "".join(texts)
    if any(isinstance(part, Mapping) and part.get("type") in PICTURE_PARTS for part in parts):
        made["pictures"] = pictures
    if thought := "".join(thoughts):
        made["reasoning_content"] = thought
    return made


def _source(part: Mapping[str, Any]) -> Any:
    """What an image part names: a path, a `data:` URL, bytes or an object; None where the row's column does."""
    given = next((part[key] for key in _PICTURE_KEYS if not is_nothing(part.get(key))), None)
    return given.get("url") or given if isinstance(given, Mapping) else given


_PICTURE_KEYS = ("image_url", "image", "url", "path", "value")
_PARTS = {
    ("reasoning", "assistant"),
    ("tool_call", "assistant"),
    ("tool_calls", "assistant"),
    ("tools", "system"),
}


# --- the other keys of a turn --------------------------------------------------------------------------------------


def _add_rest(made: Message, raw: Mapping[str, Any], taken: tuple[str, str], notes: Notes) -> None:
    """Take over what else a turn says; a key for which there is no use is noted."""
    for key, value in raw.items():
        if key in taken or is_nothing(value):
            continue
        use = _USES.get(key)
        if use is None or not use(made, key, value, raw, notes):
            notes.unused(str(key))


def _use_calls(made: Message, key: str, value: Any, raw: Mapping[str, Any], notes: Notes) -> bool:
    if made["role"] != "assistant" or "tool_calls" in made:
        return False
    if key == "function_call" and not is_nothing(raw.get("tool_calls")):
        return False
    if found := calls(value, notes):
        made["tool_calls"] = found
    return True


def _use_id(made: Message, key: str, value: Any, raw: Mapping[str, Any], notes: Notes) -> bool:
    if made["role"] != "tool" or not isinstance(value, (str, int)):
        return False
    made["tool_call_id"] = str(value)
    return True


def _use_name(made: Message, key: str, value: Any, raw: Mapping[str, Any], notes: Notes) -> bool:
    if not isinstance(value, str):
        return False
    made["name"] = value
    return True


def _use_thought(made: Message, key: str, value: Any, raw: Mapping[str, Any], notes: Notes) -> bool:
    if made["role"] != "assistant" or not isinstance(value, str):
        return False
    if value.strip():
        return bool(made.setdefault("reasoning_content", value) == value)
    return True


def _use_weight(made: Message, key: str, value: Any, raw: Mapping[str, Any], notes: Notes) -> bool:
    """OpenAI's weight, ms-swift's loss, LLaMA-Factory v1's loss_weight: an answer is trained or it is not."""
    whole = isinstance(value, (bool, int, float)) and value in (0, 1)
    if not whole or (value and made["role"] != "assistant"):
        notes.weight(tr("{key} {value} of the {role}", key=key, value=value, role=made["role"])[:120])
    elif not value and made["role"] == "assistant":
        made["trained"] = False
        notes.untrained = True
    return True


_Use = Callable[[Message, str, Any, Mapping[str, Any], Notes], bool]
_USES: dict[Any, _Use] = {
    "tool_calls": _use_calls,
    "function_call": _use_calls,
    "tool_call_id": _use_id,
    "name": _use_name,
    "reasoning_content": _use_thought,
    "reasoning": _use_thought,
    "thinking": _use_thought,
    "weight": _use_weight,
    "loss": _use_weight,
    "loss_weight": _use_weight,
}


# --- tool calls ----------------------------------------------------------------------------------------------------


def calls(raw: Any, notes: Notes) -> list[Message]:
    """Tool calls as {"type", "id"?, "function": {"name", "arguments"}} with arguments as an object. Raises UnfitError."""
    if isinstance(raw, str):
        raw = _parsed(raw, tr("the calls are not JSON"))
    if isinstance(raw, Mapping):
        raw = [raw]
    if raw is not None and not isinstance(raw, list):
        raise UnfitError(tr("broken tool call"), tr("tool calls are a list of objects"))
    return [_call(one, notes) for one in raw or () if one is not None]


def _call(raw: Any, notes: Notes) -> Message:
    function = raw.get("function", raw) if isinstance(raw, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnfitError(tr("broken tool call"), tr("a tool call has a name and arguments"))
    known = {"id", "type", "function"} if function is not raw else {"id", "type", "name", "arguments"}
    given = [k for k, v in raw.items() if k not in known and not is_nothing(v)]
    if function is not raw:
        given += [k for k, v in function.items() if k not in ("name", "arguments") and not is_nothing(v)]
    for key in given:
        notes.unused(f"tool_calls.{key}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, tr("the arguments are not JSON")) if arguments.strip() else None
    if arguments is not None and not isinstance(arguments, Mapping):
        said = tr("the arguments are an object, this is {name}", name=type(arguments).__name__)
        raise UnfitError(tr("broken tool call"), said)
    made: Message = {"type": "function"}
    if isinstance(raw.get("id"), (str, int)) and raw["id"] != "":
        made["id"] = str(raw["id"])
    return {**made, "function": {"name": function["name"], "arguments": arguments or {}}}


def _parsed(text: str, otherwise: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnfitError(tr("broken tool call"), otherwise) from error


_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


def _call_from_text(content: Any, notes: Notes) -> Message:
    """A sharegpt function_call turn: JSON of one call or a list of them, perhaps after a thought."""
    said = ""
    if isinstance(content, str):
        thought = _THOUGHT.match(content)
        said = thought.group(0) if thought else ""
        content = _parsed(content[len(said) :], content[:120])
    found = calls(content, notes)
    if not found:
        raise UnfitError(tr("broken tool call"), tr("there is no call"))
    return {"role": "assistant", "content": said, "tool_calls": found}


# --- messages beside each other ------------------------------------------------------------------------------------


def same(one: Message, two: Message) -> bool:
    """Whether two messages say the same. The ids of calls are made up anew by every sampler and tell nothing apart."""
    alike = one["content"] == two["content"]
    return alike and (one == two or _without_ids(one) == _without_ids(two))


def _without_ids(one: Message) -> Message:
    bare = {k: v for k, v in one.items() if k not in ("tool_call_id", "trained")}
    if "tool_calls" in bare:
        bare["tool_calls"] = [call["function"] for call in bare["tool_calls"]]
    return bare
