"""Raw records into the normal form, whatever tool they were written for; what does not fit says why.

Normal rows are plain dicts. chat: {"messages", "tools"?}; pairs: {"messages", "chosen", "rejected", "tools"?};
labelled: {"messages", "completion", "label", "tools"?}; text: {"text"}; prompts: {"messages", "label", "tools"?, "columns"},
where the label is the answer that the row expects or None, and columns are all else that it has;
decisions: {"state", "questions", "gold"}, see `decision_records`. Roles are system, user, assistant and tool.

A message is {"role", "content"}, both texts, and only where the row has them:

    "tool_calls"         of an assistant: [{"type": "function", "id"?: text, "function": {"name", "arguments": object}}]
    "tool_call_id"       of a tool: the id of the call that it answers
    "name"               who speaks, or which tool
    "reasoning_content"  of an assistant: its thought, a text that is not blank
    "trained"            False for an answer of a chat that says weight 0, loss 0 or loss false; never True

A row of a set with pictures has "images", what stands for each `<image>` of its messages: a path, bytes or an object, as the
record has it (see `pictures.places`).

A row may have "notes": what is worth knowing of it though it is used, {what: particulars}; `tuner.data.report` counts them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tuner.data.decision_records import decisions
from tuner.data.entries import Entry
from tuner.data.files import Broken
from tuner.data.pictures.placeholders import sources
from tuner.data.tables import Binary, NotText
from tuner.data.turns import Dropped, Message, Notes, Row, UnfitError, is_nothing, message, plain, same, turn
from tuner.text.lookup import mark, tr

__all__ = ["Dropped", "Message", "Row", "convert", "is_truth"]

_TURN = re.compile(r"\n\n(Human|Assistant):")


def convert(record: Mapping[str, Any] | Broken, entry: Entry, prompts: bool = False) -> Row | Dropped:
    """A record in the normal form of its entry's kind, or of `prompts`; or why it cannot be used."""
    if isinstance(record, Broken):
        return Dropped(
            mark("broken row"), f"{record.reason}: {record.excerpt}" if record.excerpt else record.reason
        )
    notes = Notes()
    try:
        row = (_prompts if prompts else _BY_KIND[entry.kind])(record, entry, notes)
    except UnfitError as unfit:
        return unfit.dropped
    if "images" in row and not row["images"]:
        del row["images"]
    if notes:
        row["notes"] = {what: ", ".join(details) for what, details in notes.items()}
    return row


def _chat(record: Mapping[str, Any], entry: Entry, notes: Notes) -> Row:
    messages = _turns(record, entry, notes, answered=True)
    if not messages or messages[-1]["role"] != "assistant":
        raise UnfitError(tr("no answer"), tr("the chat ends before the assistant speaks"))
    for said in messages:
        if said["role"] == "assistant":
            _not_empty(said)
    return _completed({"messages": messages}, record, entry)


def _prompts(record: Mapping[str, Any], entry: Entry, notes: Notes) -> Row:
    used = set(entry.columns.values())
    columns = {name: value for name, value in record.items() if name not in used}
    if entry.kind in ("pairs", "labelled"):
        row = _BY_KIND[entry.kind](record, entry, notes)
        return {**_asked(row), "columns": columns}
    return _completed({**_question(record, entry, notes), "columns": columns}, record, entry)


def _asked(row: Row) -> Row:
    """The prompt of a row with one answer or two, and the good one of them."""
    answer = row["chosen"] if "chosen" in row else row["completion"] if row["label"] else None
    asked: Row = {"messages": row["messages"], "label": answer["content"] if answer else None}
    return asked | {key: row[key] for key in ("tools", "images") if key in row}


def _question(record: Mapping[str, Any], entry: Entry, notes: Notes) -> Row:
    alpaca = entry.formatting == "alpaca"
    messages = _turns(record, entry, notes, answered=not alpaca or bool(_cell(record, entry, "response")))
    answer = messages.pop() if messages and messages[-1]["role"] == "assistant" else None
    _ends_with_prompt(messages)
    for said in messages:
        said.pop("trained", None)
    label = answer["content"] if answer and answer["content"].strip() else None
    return {"messages": messages, "label": label}


def _pairs(record: Mapping[str, Any], entry: Entry, notes: Notes) -> Row:
    chosen, rejected = (_cell(record, entry, side) for side in ("chosen", "rejected"))
    if chosen is None or rejected is None:
        raise UnfitError(
            tr("no pair"),
            tr("there is no {columns!r}", columns=entry.columns["chosen" if chosen is None else "rejected"]),
        )
    shared = _shared_prompt(record, entry, chosen, rejected, notes)
    if shared:
        messages, better, worse = shared
    else:
        messages = _turns(record, entry, notes, answered=False)
        better = _side(chosen, entry, "chosen", notes)
        worse = _side(rejected, entry, "rejected", notes)
    _ends_with_prompt(messages)
    _not_empty(better, mark("chosen"))
    _not_empty(worse, mark("rejected"))
    if same(better, worse):
        raise UnfitError(tr("identical answers"), better["content"][:120])
    if notes.untrained:
        _all_trained(messages, {"chosen": better, "rejected": worse}, notes)
    return _completed({"messages": messages, "chosen": better, "rejected": worse}, record, entry)


def _labelled(record: Mapping[str, Any], entry: Entry, notes: Notes) -> Row:
    label = _truth(_cell(record, entry, "kto_tag"))
    messages = _turns(record, entry, notes, answered=True)
    if not messages or messages[-1]["role"] != "assistant":
        raise UnfitError(tr("no answer"), tr("the chat ends before the assistant speaks"))
    completion = messages.pop()
    _ends_with_prompt(messages)
    _not_empty(completion)
    if notes.untrained:
        _all_trained(messages, {"answer": completion}, notes)
    return _completed({"messages": messages, "completion": completion, "label": label}, record, entry)


def _text(record: Mapping[str, Any], entry: Entry, notes: Notes) -> Row:
    value = _cell(record, entry, "prompt")
    if value is None:
        value = _readable("text", record.get("text"))
    text = plain(value)
    if not text.strip():
        raise UnfitError(tr("no text"), tr("there is nothing in {prompt!r}", prompt=entry.columns["prompt"]))
    answer = entry.columns["response"]
    if answer and not is_nothing(record.get(answer)):
        notes.unused(answer)
    return {"text": text}


_BY_KIND: dict[str, Callable[[Mapping[str, Any], Entry, Notes], Row]] = {
    "chat": _chat,
    "pairs": _pairs,
    "labelled": _labelled,
    "text": _text,
    "decisions": decisions,
}


WEIGHTLESS = {
    "answer": mark("weight 0 of the answer"),
    "chosen": mark("weight 0 of the chosen answer"),
    "rejected": mark("weight 0 of the rejected answer"),
}


def _all_trained(messages: Sequence[Message], answers: Mapping[str, Message], notes: Notes) -> None:
    """Where whole answers are compared there is no answer that is not trained, and none in the prompt that is."""
    for said in messages:
        said.pop("trained", None)
    for name, said in answers.items():
        if "trained" in said:
            del said["trained"]
            notes.weight(tr(WEIGHTLESS[name]))


# --- turns ---------------------------------------------------------------------------------------------------------


def _turns(record: Mapping[str, Any], entry: Entry, notes: Notes, answered: bool) -> list[Message]:
    """The turns of a record in order, system first; with `answered`, an alpaca record's answer too."""
    if entry.formatting == "alpaca":
        messages = _alpaca(record, entry, notes, answered)
    else:
        messages = _shared(_cell(record, entry, "messages"), entry, notes)
    messages = _system(record, entry, messages) + messages
    _check_order(messages)
    return messages


def _system(record: Mapping[str, Any], entry: Entry, messages: Sequence[Message]) -> list[Message]:
    """The system prompt of its own column, for turns that bring none."""
    system = _cell(record, entry, "system")
    if system is None or (messages and messages[0]["role"] == "system"):
        return []
    said = plain(system)
    return [{"role": "system", "content": said}] if said else []


def _alpaca(record: Mapping[str, Any], entry: Entry, notes: Notes, answered: bool) -> list[Message]:
    messages: list[Message] = []
    for pair in _listed(_cell(record, entry, "history")) or ():
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise UnfitError(tr("broken history"), tr("history is a list of [question, answer]"))
        messages += [message("user", pair[0], notes), message("assistant", pair[1], notes)]
    prompt, query = (_words(_cell(record, entry, part), notes) for part in ("prompt", "query"))
    prompt = f"{prompt}\n{query}" if prompt and query else prompt or query
    if not prompt.strip():
        raise UnfitError(
            tr("no prompt"), tr("there is nothing in {prompt!r}", prompt=entry.columns["prompt"])
        )
    messages.append({"role": "user", "content": prompt})
    if answered:
        response = _cell(record, entry, "response")
        if response is None:
            raise UnfitError(
                tr("no answer"), tr("there is no {response!r}", response=entry.columns["response"])
            )
        messages.append(message("assistant", response, notes))
    return messages


def _words(content: Any, notes: Notes) -> str:
    said: str = message("user", content, notes)["content"] if isinstance(content, list) else plain(content)
    return said


def _shared(raw: Any, entry: Entry, notes: Notes) -> list[Message]:
    """sharegpt and openai turns."""
    turns = _listed(raw)
    if not turns:
        raise UnfitError(
            tr("no turns"), tr("there is nothing in {messages!r}", messages=entry.columns["messages"])
        )
    return [turn(one, entry, notes) for one in turns]


def _check_order(messages: Sequence[Message]) -> None:
    """Raise UnfitError unless turns go system?, then user or tool, then assistant, and so on."""
    rest = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if rest and rest[0]["role"] != "user":
        raise UnfitError(tr("role order"), tr("turn 1 is {role}, it must be user", role=rest[0]["role"]))
    for number, (one, two) in enumerate(pairwise(rest), start=2):
        fine = two["role"] in ("user", "tool") if one["role"] == "assistant" else two["role"] == "assistant"
        several_results = one["role"] == two["role"] == "tool"
        if not fine and not several_results:
            raise UnfitError(
                tr("role order"),
                tr(
                    "turn {number} is {role} after {role_2}",
                    number=number,
                    role=two["role"],
                    role_2=one["role"],
                ),
            )


def _ends_with_prompt(messages: Sequence[Message]) -> None:
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise UnfitError(tr("no prompt"), tr("the turns before the answer do not end with the user"))


EMPTY = mark("the {side} is empty")
THOUGHT = mark("the {side} is a thought and no words")


def _not_empty(said: Message, side: str = mark("answer")) -> None:
    if not said["content"].strip() and not said.get("tool_calls"):
        why = THOUGHT if "reasoning_content" in said else EMPTY
        raise UnfitError(tr("empty answer"), tr(why, side=tr(side)))


# --- pairs ---------------------------------------------------------------------------------------------------------


def _side(value: Any, entry: Entry, side: str, notes: Notes) -> Message:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, (list, Mapping)):
        return message("assistant", value, notes)
    said = turn(value, entry, notes)
    if said["role"] != "assistant":
        raise UnfitError(
            tr("role order"),
            tr("{side} is said by {role}, it must be the assistant", side=side, role=said["role"]),
        )
    return said


def _shared_prompt(
    record: Mapping[str, Any], entry: Entry, chosen: Any, rejected: Any, notes: Notes
) -> tuple[list[Message], Message, Message] | None:
    """The prompt that two whole chats share, for sets that keep it inside both answers; None for other sets."""
    if _is_transcript(chosen) and _is_transcript(rejected):
        sides = [_transcript(chosen), _transcript(rejected)]
    elif _is_chat(chosen) and _is_chat(rejected):
        sides = [_shared(chosen, entry, notes), _shared(rejected, entry, notes)]
    else:
        return None
    better, worse = sides
    part = next(
        (i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if not same(a, b)),
        min(len(better), len(worse)),
    )
    # Whole chats that are equal share all but the last turn: an identical pair, told so later.
    part = min(part, len(better) - 1, len(worse) - 1)
    if len(better) != part + 1 or len(worse) != part + 1:
        raise UnfitError(
            tr("no shared prompt"),
            tr("the two chats part at turn {part}, before their last answer", part=part + 1),
        )
    _check_order(better)
    _check_order(worse)
    if better[-1]["role"] != "assistant" or worse[-1]["role"] != "assistant":
        raise UnfitError(tr("no answer"), tr("a chat of the pair does not end with the assistant"))
    return _system(record, entry, better) + better[:part], better[-1], worse[-1]


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("\n\nHuman:") and "\n\nAssistant:" in value


def _transcript(text: str) -> list[Message]:
    """Turns of a text that marks them with "\\n\\nHuman:" and "\\n\\nAssistant:" (Anthropic/hh-rlhf)."""
    parts = _TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    said = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[who], "content": text.strip()} for who, text in said]


# --- cells, labels, tools ------------------------------------------------------------------------------------------


def _cell(record: Mapping[str, Any], entry: Entry, column: str) -> Any:
    """What a record has in a column of its entry, None for NaN. Raises UnfitError for what cannot be text."""
    name = entry.columns.get(column)
    value = record.get(name) if name else None
    return value if value is None or type(value) is str else _readable(str(name), value)


def _readable(name: str, value: Any) -> Any:
    if isinstance(value, NotText):
        raise UnfitError(tr("not text"), f"{name}: {value}")
    # Tables written by pandas have NaN where there is nothing.
    return None if type(value) is float and value != value else value


def _listed(value: Any) -> list[Any] | None:
    """A list, also when a table keeps it as JSON text."""
    if isinstance(value, str):
        value = _parsed(value, tr("broken turn"), tr("the list of turns is not JSON"))
    if value is None:
        return None
    if not isinstance(value, list):
        raise UnfitError(tr("broken turn"), tr("turns are a list, this is {name}", name=type(value).__name__))
    return value


def _parsed(text: str, reason: str, detail: str) -> Any:
    """The value of a JSON text, None for a blank one. Raises UnfitError."""
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        raise UnfitError(reason, detail) from error


_TRUTHS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def is_truth(value: Any) -> bool:
    """Whether a value can be the label of an answer."""
    return _known_truth(value) is not None


def _known_truth(value: Any) -> bool | None:
    value = value.item() if hasattr(value, "item") else value  # numpy's
    return _TRUTHS.get(str(value).strip().lower()) if isinstance(value, (bool, int, float, str)) else None


def _truth(value: Any) -> bool:
    """A label as pandas, csv and people write it: true, 1 and 1.0; false, 0 and 0.0."""
    known = _known_truth(value)
    if known is None:
        raise UnfitError(
            tr("no label"), tr("the label is {value!r}, it must be true or false", value=value)[:120]
        )
    return known


def _completed(row: Row, record: Mapping[str, Any], entry: Entry) -> Row:
    """A row with its tools and its pictures."""
    answers = [row[side] for side in ("chosen", "rejected", "completion") if side in row]
    given = _pictures(record, entry)
    found = sources(row["messages"], answers, given, bool(entry.columns.get("images")))
    return _with_tools(row if found is None else {**row, "images": found}, record, entry)


def _pictures(record: Mapping[str, Any], entry: Entry) -> Any:
    """What a record has in its column of pictures, bytes too."""
    name = entry.columns.get("images")
    value = record.get(name) if name else None
    return value if isinstance(value, Binary) else _readable(str(name), value)


def _with_tools(row: Row, record: Mapping[str, Any], entry: Entry) -> Row:
    # LLaMA-Factory's v1 can keep them in the system prompt's parts.
    within = row["messages"][0].pop("tools", None)
    given = _cell(record, entry, "tools")
    if given is not None or within is not None:
        tools = _tools(given) or _tools(within)
        if tools:
            row["tools"] = tools
    return row


def _tools(value: Any) -> list[Any]:
    """Descriptions of tools: a list, one by itself, or JSON text of either; nothing, null and {} are none."""
    if isinstance(value, str):
        value = _parsed(value, tr("broken tools"), tr("the tools are not JSON"))
    listed = value if isinstance(value, list) else [value]
    tools = [
        _parsed(t, tr("broken tools"), tr("a tool is not JSON")) if isinstance(t, str) else t for t in listed
    ]
    tools = [tool for tool in tools if not is_nothing(tool)]
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise UnfitError(
                tr("broken tools"), tr("a tool is an object, this is {name}", name=type(tool).__name__)
            )
    return tools
