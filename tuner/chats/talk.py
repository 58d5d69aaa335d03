"""A talk with a model, or with several side by side: a tree of turns, each with every answer that was given to it.

Editing a message or going on from an earlier one makes another branch; asking again adds another answer. Nothing is
overwritten. All of it is frozen: each function returns another talk.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from tuner import paths
from tuner.data.pictures.places import as_url
from tuner.text.lookup import mark, tr
from tuner.text.message import Message, of, to_plain

AnswerState = Literal["waiting", "writing", "done", "stopped", "failed"]
OPEN = frozenset({"waiting", "writing"})
MOST_COLUMNS = 4
NO_TOOLS = mark("Each tool has to be an object with a name, as OpenAI's API takes it.")
_THOUGHTS = re.compile(r"\A\s*<think>(.*?)(?:</think>\s*|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen; the names are the API's. `seed` None draws another one for each turn."""

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 50
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    seed: int | None = None


PRESETS: Mapping[str, Mapping[str, float | int]] = {
    "greedy": {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0},
    "balanced": {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.0},
    "creative": {"temperature": 1.1, "top_p": 0.95, "top_k": 0, "repetition_penalty": 1.0},
}


@dataclass(frozen=True)
class Answer:
    """One answer, as far as it is written. `calls` are tool calls, name and arguments; `seconds` since it was asked for.

    `checksum` is that of the adapter which the server says it answered with, `why` says how it ended before its end.
    """

    model: str
    state: AnswerState = "waiting"
    text: str = ""
    thoughts: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    why: Message = field(default_factory=Message)
    seed: int = 0
    checksum: str = ""
    tokens: int = 0
    seconds: float = 0.0
    finish: str = ""

    @property
    def empty(self) -> bool:
        """Whether it says nothing that a next turn could go on from."""
        return not (self.said or self.calls)

    @property
    def said(self) -> str:
        """The text without the thoughts before it."""
        return _THOUGHTS.sub("", self.text, count=1)

    @property
    def thought(self) -> str:
        """What the model thought before it spoke: told apart by the server, or between <think> and </think>."""
        found = _THOUGHTS.match(self.text)
        return "\n".join(part.strip() for part in (self.thoughts, found[1] if found else "") if part.strip())


@dataclass(frozen=True)
class Turn:
    """What was asked, and every answer of every column; `shown` says which one of a column's is open. `pictures` are names of
    files in `paths.shown()`, shown before the text."""

    id: str
    parent: str
    text: str
    role: Literal["user", "tool"] = "user"
    answers: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)
    shown: Mapping[str, int] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()

    def place(self, column: str) -> int:
        """The place of the answer that is open."""
        last = len(self.answers.get(column, ())) - 1
        return min(self.shown.get(column, last), last)

    def answer(self, column: str) -> Answer | None:
        """The answer that is open in a column; None where the column was not there yet."""
        given = self.answers.get(column, ())
        return given[self.place(column)] if given else None


@dataclass(frozen=True)
class Talk:
    """A talk: whom with, how, and the tree of its turns by id. `leaf` is the last turn of the open branch.

    `columns` are model ids: "base", or NAME/NUMBER. `tools` is JSON, empty for none; `template` is a chat template's name,
    empty for each model's own; `run` is the serve run that answered last, and `by` whose talk it is, empty where nobody
    logs in.
    """

    id: str
    base: str = ""
    columns: tuple[str, ...] = ()
    system: str = ""
    tools: str = ""
    template: str = ""
    decoding: Decoding = field(default_factory=Decoding)
    turns: Mapping[str, Turn] = field(default_factory=dict)
    leaf: str = ""
    by: str = ""
    run: str = ""

    @property
    def title(self) -> str:
        """The first thing that was asked."""
        return next((turn.text for turn in self.turns.values()), "")


def fresh_id() -> str:
    """An id that nobody guesses."""
    return secrets.token_hex(8)


def fresh_seed() -> int:
    return secrets.randbelow(2**31)


# --- the branch that is open


def path(talk: Talk, leaf: str | None = None) -> list[Turn]:
    """The turns from the first to a leaf, by default the open one."""
    found: list[Turn] = []
    at = talk.leaf if leaf is None else leaf
    while at in talk.turns and len(found) < len(talk.turns):
        found.append(talk.turns[at])
        at = talk.turns[at].parent
    return found[::-1]


def siblings(talk: Talk, turn: Turn) -> list[str]:
    """The turns that begin at the same place, this one among them, in the order in which they were asked."""
    return [one.id for one in talk.turns.values() if one.parent == turn.parent]


def opened(talk: Talk, turn_id: str) -> Talk:
    """The talk with the branch through a turn open, down to its newest end."""
    leaf = turn_id
    while children := [one.id for one in talk.turns.values() if one.parent == leaf]:
        leaf = children[-1]
    return replace(talk, leaf=leaf)


def back_to(talk: Talk, turn_id: str) -> Talk:
    """The talk open at a turn, from which the next message branches off."""
    return replace(talk, leaf=turn_id)


def unwritten(talk: Talk) -> list[tuple[str, str, int]]:
    """The answers that are not written yet: turn, column and place."""
    return [
        (turn.id, column, place)
        for turn in talk.turns.values()
        for column, given in turn.answers.items()
        for place, answer in enumerate(given)
        if answer.state in OPEN
    ]


# --- what is asked


def asked(
    talk: Talk,
    text: str,
    parent: str | None = None,
    role: Literal["user", "tool"] = "user",
    pictures: Sequence[str] = (),
) -> tuple[Talk, Turn]:
    """The talk with one more message at its open end, or after `parent`, and an answer to come in each column."""
    seed = fresh_seed() if talk.decoding.seed is None else talk.decoding.seed
    waiting = {column: (Answer(column, seed=seed),) for column in talk.columns}
    turn = Turn(
        fresh_id(), talk.leaf if parent is None else parent, text, role, waiting, pictures=tuple(pictures)
    )
    return replace(talk, turns={**talk.turns, turn.id: turn}, leaf=turn.id), turn


def again(talk: Talk, turn_id: str, columns: Sequence[str]) -> Talk:
    """The talk with another answer to come in some columns of a turn, of one seed that is new unless it is set."""
    seed = fresh_seed() if talk.decoding.seed is None else talk.decoding.seed
    turn = talk.turns[turn_id]
    more = {column: (*turn.answers.get(column, ()), Answer(column, seed=seed)) for column in columns}
    shown = {column: len(given) - 1 for column, given in more.items()}
    return _with(talk, replace(turn, answers={**turn.answers, **more}, shown={**turn.shown, **shown}))


def answered(talk: Talk, turn_id: str, column: str, place: int, answer: Answer) -> Talk:
    """The talk with an answer as far as it is written; the same talk where its place is gone."""
    turn = talk.turns.get(turn_id)
    given = turn.answers.get(column, ()) if turn else ()
    if turn is None or not 0 <= place < len(given):
        return talk
    new = (*given[:place], answer, *given[place + 1 :])
    return _with(talk, replace(turn, answers={**turn.answers, column: new}))


def showing(talk: Talk, turn_id: str, column: str, place: int) -> Talk:
    """The talk with another answer of a column open."""
    turn = talk.turns[turn_id]
    return _with(talk, replace(turn, shown={**turn.shown, column: place}))


def _with(talk: Talk, turn: Turn) -> Talk:
    return replace(talk, turns={**talk.turns, turn.id: turn})


# --- what a model reads


def messages(talk: Talk, turn_id: str, column: str) -> list[dict[str, Any]]:
    """What a column's model reads to answer a turn: each column goes on from what it said itself."""
    *before, last = path(talk, turn_id)
    found: list[dict[str, Any]] = [{"role": "system", "content": talk.system}] if talk.system.strip() else []
    for turn in before:
        answer = turn.answer(column) or next(filter(None, map(turn.answer, turn.answers)), None)
        if answer is not None and not answer.empty:
            found += [{"role": turn.role, "content": _content(turn)}, spoken(answer)]
    return [*found, {"role": last.role, "content": _content(last)}]


def _content(turn: Turn) -> Any:
    """What was asked, as the API takes it: a picture is sent as its bytes."""
    if not turn.pictures:
        return turn.text
    shown = [
        {"type": "image_url", "image_url": {"url": as_url(paths.shown() / Path(name).name)}}
        for name in turn.pictures
    ]
    return [*shown, {"type": "text", "text": turn.text}]


def spoken(answer: Answer) -> dict[str, Any]:
    """An answer as a message: without its thoughts, as chat templates want it."""
    calls = [
        {"id": f"call_{place}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for place, (name, arguments) in enumerate(answer.calls)
    ]
    return {"role": "assistant", "content": answer.said} | ({"tool_calls": calls} if calls else {})


def request(talk: Talk, turn_id: str, column: str, seed: int) -> dict[str, Any]:
    """The body of the question to the server. Raises ValueError with one sentence for tools that are none."""
    asked_for = {**asdict(talk.decoding), "seed": seed, "model": column}
    tools = read_tools(talk.tools)
    more: dict[str, Any] = {"tools": tools} if tools else {}
    more |= {"template": talk.template} if talk.template else {}
    return asked_for | {"messages": messages(talk, turn_id, column)} | more


def read_tools(text: str) -> list[dict[str, Any]]:
    """Tools out of JSON: a list, each one with its name, alone or under "function". Raises ValueError."""
    if not text.strip():
        return []
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(tr("The tools are not JSON: {error}.", error=error)) from error
    tools = [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in _objects(given)
    ]
    if not all(isinstance(tool["function"], dict) and tool["function"].get("name") for tool in tools):
        raise ValueError(NO_TOOLS)
    return tools


def _objects(given: Any) -> list[dict[str, Any]]:
    every = given if isinstance(given, list) else [given]
    if not all(isinstance(one, dict) for one in every):
        raise ValueError(NO_TOOLS)
    return every


# --- what is kept of it elsewhere


def exchange(talk: Talk, turn_id: str, column: str) -> dict[str, Any]:
    """The talk up to a column's answer as a row of a data set, with OpenAI's messages and the tools that it had.

    Raises ValueError where there is no whole answer, or the tools are none.
    """
    answer = talk.turns[turn_id].answer(column)
    if answer is None or answer.state in OPEN or answer.empty:
        raise ValueError(tr("There is no answer to keep yet; wait for it, or ask again."))
    said = {"messages": [*messages(talk, turn_id, column), spoken(answer)]}
    tools = read_tools(talk.tools)
    return said | ({"tools": json.dumps(tools, ensure_ascii=False)} if tools else {})


def exported(talk: Talk) -> dict[str, Any]:
    """All of the talk: its open branch as each column's messages, and the whole tree."""
    columns = {}
    for column in talk.columns:
        turns = [turn for turn in path(talk) if turn.answer(column) is not None]
        said = messages(talk, turns[-1].id, column) if turns else []
        last = turns[-1].answer(column) if turns else None
        columns[column] = [*said, *([spoken(last)] if last is not None and not last.empty else [])]
    return {"messages": columns, "talk": to_json(talk)}


# --- on disk


def to_json(talk: Talk) -> dict[str, Any]:
    """Plain values, which `of_json` reads."""
    plain = asdict(talk)
    for turn, kept in zip(talk.turns.values(), plain["turns"].values(), strict=True):
        kept["answers"] = {
            column: [answer_to_json(a) for a in given] for column, given in turn.answers.items()
        }
    return plain


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """Plain values, which `answer_of_json` reads."""
    return {**asdict(answer), "why": to_plain(answer.why)}


def of_json(given: Mapping[str, Any]) -> Talk:
    """A talk that was written down. Raises ValueError where it is none."""
    try:
        known = _known(Talk, given)
        known["turns"] = {turn_id: _turn(turn) for turn_id, turn in known.get("turns", {}).items()}
        known["decoding"] = Decoding(**_known(Decoding, known.get("decoding", {})))
        return Talk(**known | {"columns": tuple(known.get("columns", ()))})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(tr("This chat cannot be read; start another one.")) from error


def _turn(given: Mapping[str, Any]) -> Turn:
    answers = {column: tuple(map(answer_of_json, row)) for column, row in given["answers"].items()}
    pictures = tuple(map(str, given.get("pictures", ())))
    return Turn(**_known(Turn, given) | {"answers": answers, "pictures": pictures})


def answer_of_json(given: Mapping[str, Any]) -> Answer:
    """An answer that was written down. Raises TypeError or KeyError where it is none."""
    calls = tuple((str(name), str(arguments)) for name, arguments in given.get("calls", ()))
    return Answer(**_known(Answer, given) | {"calls": calls, "why": of(given.get("why"))})


def _known(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of this a class has a field for: a later studio may have written more."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in given.items() if name in names}


def preset_of(decoding: Decoding) -> str:
    """The preset that these knobs are; empty for a person's own."""
    plain = asdict(decoding)
    return next((name for name, knobs in PRESETS.items() if knobs.items() <= plain.items()), "")


def titles(talks: Iterable[Talk]) -> dict[str, str]:
    """What was asked first in each, by id; talks in which nothing was asked are left out."""
    return {talk.id: talk.title for talk in talks if talk.title}
