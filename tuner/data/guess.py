"""What a file's rows probably are: format and columns guessed from a look at the first ones, with the reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tuner.data.catalog import entry
from tuner.data.decision_records import is_decisions
from tuner.data.entries import ROLES, TAGS, Entry
from tuner.data.files import records
from tuner.data.formats import Dropped, Row, convert, is_truth
from tuner.data.tables import Binary
from tuner.data.turns import is_nothing
from tuner.text.lookup import tr

LOOK = 100
PROMPTS = ("instruction", "prompt", "question", "query", "user", "human", "problem", "context", "input")
RESPONSES = (
    "output",
    "response",
    "answer",
    "completion",
    "assistant",
    "target",
    "solution",
    "summary",
    "reply",
)
QUERIES = ("input", "context")
TEXTS = ("text", "content", "raw_content", "document", "article", "body")
CHATS = ("conversations", "messages", "conversation", "dialogue", "dialog", "chat", "turns")
LABELS = ("label", "kto_tag", "liked", "thumbs_up", "is_good")
PICTURES = ("images", "image", "image_path", "picture", "pictures", "img")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SYSTEMS = ("system", "system_prompt")


@dataclass
class Guess:
    """Attributes for dataset_info.json and, a sentence each, why; `columns` are all names seen, `sure` is False when
    the person has to choose."""

    attributes: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    sure: bool = True

    def says(self, reason: str) -> None:
        self.reasons.append(reason)


def guess(path: Path) -> Guess:
    """What the rows of a file are. Raises ConfigError when the file cannot be read."""
    rows = [r for _, r in islice(records(path), LOOK) if isinstance(r, dict)]
    found = Guess(columns=list(dict.fromkeys(name for row in rows for name in row)))
    if not rows:
        found.sure = False
        found.says(tr("No row of the first hundred can be read."))
        return found
    looks: tuple[Callable[[Guess, list[dict[str, Any]]], bool], ...] = (
        _decisions,
        _pairs,
        _labelled,
        _chat,
        _alpaca,
        _text,
    )
    if not any(look(found, rows) for look in looks):
        found.sure = False
        found.says(tr("No column name was recognised. Choose the prompt and the answer column."))
    _pictures(found, rows)
    return found


def preview(path: Path, attributes: Mapping[str, Any], rows: int = 5) -> list[tuple[int, Row | Dropped]]:
    """The first rows as they would be read under these attributes, each with its line. Raises ConfigError."""
    as_entry = preview_entry(path, attributes)
    return [(line, convert(record, as_entry)) for line, record in islice(records(path), rows)]


def preview_entry(path: Path, attributes: Mapping[str, Any]) -> Entry:
    """A catalog entry for a file that is not in the catalog yet."""
    return entry(path.stem, {**attributes, "file_name": path.name}, path.parent)


def _named(columns: Iterable[str], usual: Iterable[str]) -> str | None:
    by_lower = {c.lower(): c for c in columns}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _chat_column(rows: list[dict[str, Any]], columns: list[str]) -> str | None:
    """The column that holds turns: a list of objects."""
    held = [c for c in columns if _mostly(_is_turns, rows, c)]
    return _named(held, CHATS) or next(iter(held), None)


def _mostly(fits: Callable[[Any], bool], rows: list[dict[str, Any]], column: str) -> bool:
    """Whether a column holds something, and mostly what fits: a few rows that do not are rows that will be dropped."""
    held = [value for r in rows if not is_nothing(value := r.get(column))]
    return sum(map(fits, held)) * 2 > len(held)


def _is_words(value: Any) -> bool:
    """Text, or a number that is written as text."""
    return isinstance(value, (str, int, float))


def _is_turns(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("[{")
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _decisions(found: Guess, rows: list[dict[str, Any]]) -> bool:
    if sum(map(is_decisions, rows)) * 2 <= len(rows):
        return False
    found.attributes = {"formatting": "decisions"}
    found.says(tr("There is a state with typed questions about it, so these are records for decisions."))
    return True


def _pairs(found: Guess, rows: list[dict[str, Any]]) -> bool:
    if not {"chosen", "rejected"} <= set(found.columns):
        return False
    found.says(tr("There are columns chosen and rejected, so these are preference pairs."))
    columns = {"chosen": "chosen", "rejected": "rejected"}
    rest = [c for c in found.columns if c not in columns]
    chat = _chat_column(rows, rest)
    sample = next((r["chosen"] for r in rows if not is_nothing(r.get("chosen"))), None)
    if chat:
        found.attributes = {
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": chat, **columns},
        }
        found.says(tr("{chat} holds lists of turns: the chat before the answers.", chat=chat))
        _tags(found, rows, chat)
    elif isinstance(sample, list) or (isinstance(sample, str) and sample.startswith("\n\nHuman:")):
        found.attributes = {"formatting": "sharegpt", "ranking": True, "columns": columns}
        found.says(tr("Both answers hold a whole chat; what they share is the prompt."))
        if isinstance(sample, list):
            _tags(found, rows, "chosen")
    else:
        prompt = _named(rest, PROMPTS)
        found.sure = prompt is not None
        found.attributes = {"ranking": True, "columns": {"prompt": prompt or "", **columns}}
        found.says(
            tr("{prompt} is the prompt.", prompt=prompt)
            if prompt
            else tr("No column looks like a prompt; choose one.")
        )
    _system(found)
    return True


def _labelled(found: Guess, rows: list[dict[str, Any]]) -> bool:
    label = _named(found.columns, LABELS)
    labels = [r[label] for r in rows if not is_nothing(r.get(label))] if label else []
    if label is None or not labels or not all(map(is_truth, labels)):
        return False
    found.says(tr("{label} is true or false, so these are answers with thumbs up and down.", label=label))
    chat = _chat_column(rows, found.columns)
    if chat:
        found.attributes = {"formatting": "sharegpt", "columns": {"messages": chat, "kto_tag": label}}
        _tags(found, rows, chat)
        return True
    if not _alpaca(found, rows):
        return False
    found.attributes["columns"]["kto_tag"] = label
    return True


def _chat(found: Guess, rows: list[dict[str, Any]]) -> bool:
    chat = _chat_column(rows, found.columns)
    if chat is None:
        return False
    calls = any(isinstance(t, Mapping) and "tool_calls" in t for r in rows for t in _turns(r.get(chat)))
    found.attributes = {"formatting": "openai" if calls else "sharegpt", "columns": {"messages": chat}}
    found.says(
        tr("{chat} holds lists of turns, so these are chats with tool calls.", chat=chat)
        if calls
        else tr("{chat} holds lists of turns, so these are chats.", chat=chat)
    )
    _tags(found, rows, chat)
    if "tools" in found.columns:
        found.attributes["columns"]["tools"] = "tools"
        found.says(tr("tools describes what may be called."))
    _system(found)
    return True


def _turns(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _tags(found: Guess, rows: list[dict[str, Any]], column: str) -> None:
    """Which keys of a turn hold who speaks and what is said, and what the speakers are called."""
    turns = [t for r in rows for t in _turns(r.get(column)) if isinstance(t, Mapping)]
    keys = Counter(key for t in turns for key in t)
    if not turns or "from" in keys:
        return
    role = _named(keys, ("role", "speaker", "author", "from"))
    content = _named(keys, ("content", "value", "text", "message"))
    if role is None or content is None:
        found.sure = False
        found.says(
            tr(
                "The turns have the keys {map}; say which is the speaker and which the words.",
                map=", ".join(map(str, keys)),
            )
        )
        return
    tags = {"role_tag": role, "content_tag": content}
    names = [name for name, _ in Counter(str(t.get(role)) for t in turns).most_common()]
    for tag, meaning in (("user_tag", "user"), ("assistant_tag", "assistant"), ("system_tag", "system")):
        name = next((n for n in names if ROLES.get(n.lower()) == meaning), None)
        if name and name != TAGS[tag]:
            tags[tag] = name
    found.attributes["tags"] = tags
    found.says(tr("A turn says who speaks in {role} and what in {content}.", role=role, content=content))


def _alpaca(found: Guess, rows: list[dict[str, Any]]) -> bool:
    words = [c for c in found.columns if _mostly(_is_words, rows, c) or c in QUERIES]
    response = _named(words, RESPONSES)
    prompt = _named([c for c in words if c != response], PROMPTS)
    if response is None or prompt is None:
        return False
    columns = {"prompt": prompt, "response": response}
    found.says(tr("{prompt} is the prompt and {response} the answer.", prompt=prompt, response=response))
    query = _named([c for c in words if c not in (prompt, response)], QUERIES)
    if query:
        columns["query"] = query
        found.says(tr("{query} adds to the prompt.", query=query))
    if "history" in found.columns:
        columns["history"] = "history"
        found.says(tr("history holds earlier turns."))
    found.attributes = {"columns": columns}
    _system(found)
    return True


def _text(found: Guess, rows: list[dict[str, Any]]) -> bool:
    words = [c for c in found.columns if _mostly(lambda value: isinstance(value, str), rows, c)]
    text = _named(words, TEXTS) or (words[0] if len(words) == 1 == len(found.columns) else None)
    if text is None:
        return False
    found.attributes = {"columns": {"prompt": text}}
    found.says(tr("{text} is the only text, so this is plain text to read.", text=text))
    return True


def _pictures(found: Guess, rows: list[dict[str, Any]]) -> None:
    name = _named((c for c in found.columns if _mostly(_is_pictures, rows, c)), PICTURES)
    if name and "columns" in found.attributes:
        found.attributes["columns"]["images"] = name
        found.says(tr("{name} has pictures; each stands where a text says <image>.", name=name))


def _is_pictures(value: Any) -> bool:
    """A path with a picture's ending, bytes or an object of `datasets`, or a list of those."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_pictures, value))
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= {"bytes", "path", "url"}
    named = isinstance(value, str) and value.lower().endswith(PICTURE_ENDINGS)
    return named or isinstance(value, Binary)


def _system(found: Guess) -> None:
    name = _named(found.columns, SYSTEMS)
    if name:
        found.attributes["columns"]["system"] = name
        found.says(tr("{name} is the system prompt.", name=name))
