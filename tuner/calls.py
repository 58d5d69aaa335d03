"""Tool calls in an answer, told apart from its words while it is written.

Every form that `data/tools.py` writes is read. Calls in <tool_call> with JSON in them are passed on argument by
argument as they come, the others when they are whole. What looked like a call and is none stays part of the words.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass
class Call:
    """One call. `arguments` is the JSON text as the model wrote it."""

    name: str
    arguments: str = ""
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    def whole(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


Parsed = list[tuple[str, str]]
"""Names with their arguments as JSON text; empty where a text is no call."""


class Form(NamedTuple):
    """How a family of models writes calls: between which marks, the second empty where only the answer's end closes it."""

    opens: str
    closes: str
    parse: Callable[[str], Parsed]


# --- what stands between the marks


def _json(text: str) -> Parsed:
    """{"name", "arguments" or "parameters"}, or a list of such."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    listed = found if isinstance(found, list) else [found]
    return [one for call in listed for one in _object(call)] if all(map(_object, listed)) else []


def _object(call: Any) -> Parsed:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return []
    given = next((call[key] for key in ("arguments", "parameters") if key in call), None)
    if isinstance(given, str):  # written as text, twice encoded
        return [(call["name"], given)]
    return [(call["name"], _text(given))] if isinstance(given, dict) else []


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>\s*)?", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_ACTION = re.compile(r"Action:[ \t]*([^\n]+?)[ \t]*\nAction Input:[ \t]*", re.DOTALL)


def _tagged(text: str) -> Parsed:
    """What stands in <tool_call>: JSON, or the markup of Qwen 3.5 or of GLM."""
    if found := _json(text):
        return found
    if function := _FUNCTION.fullmatch(text):
        given = {k.strip(): _value(v) for k, v in _PARAMETER.findall(function[2])}
        return [(function[1].strip(), _text(given))]
    name, _, rest = text.strip().partition("\n")
    pairs = _ARGUMENT.findall(rest)
    fits = re.fullmatch(r"[\w.-]+", name) and (pairs or not rest.strip())
    return [(name, _text({k.strip(): _value(v) for k, v in pairs}))] if fits else []


def _value(text: str) -> Any:
    """A value written without quotes: JSON where it is some, else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _actions(text: str) -> Parsed:
    """LLaMA-Factory's default: "Action: name" and "Action Input: {...}", any number of them."""
    parts = _ACTION.split(text)
    found = list(zip(parts[1::2], parts[2::2], strict=True))
    read = [(name, _first_object(given)) for name, given in found]
    return [(name, given) for name, given in read if given is not None] if all(g for _, g in read) else []


def _first_object(text: str) -> str | None:
    try:
        value, end = json.JSONDecoder().raw_decode(text.strip())
    except ValueError:
        return None
    return text.strip()[:end] if isinstance(value, dict) else None


_NAME = re.compile(r"\s*([\w.-]+)\(\s*")
_KEY = re.compile(r"\s*([\w-]+)\s*=\s*")
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
_WORD = re.compile(r"(True|False|None)\b")
_WORDS = {"True": True, "False": False, "None": None}
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def _python(text: str) -> Parsed:
    """[name(key='value')], as LFM2 writes it. Arguments may be called as Python's own words are: in, from."""
    body, found, at = text.strip(), Parsed(), 1
    if not body.startswith("["):
        return []
    try:
        while body[at:].strip() != "]":
            call, at = _called(body, at)
            found.append(call)
    except (ValueError, IndexError):
        return []
    return found


def _called(text: str, at: int) -> tuple[tuple[str, str], int]:
    """The call that begins at a place, and where the next one does. Raises ValueError, IndexError."""
    name = _needed(_NAME.match(text, at))
    at, given = name.end(), {}
    while text[at] != ")":
        key = _needed(_KEY.match(text, at))
        given[key[1]], at = _literal(text, key.end())
        at = _needed(re.compile(r"\s*,?\s*").match(text, at)).end()
    return (name[1], _text(given)), _needed(re.compile(r"\)\s*,?").match(text, at)).end()


def _literal(text: str, at: int) -> tuple[Any, int]:
    """A value as Python or JSON writes it, and where it ends."""
    if quoted := _QUOTED.match(text, at):
        said = re.sub(r"\\(.)", lambda m: _ESCAPED.get(m[1], m[1]), quoted[1], flags=re.DOTALL)
        return said, quoted.end()
    if word := _WORD.match(text, at):
        return _WORDS[word[1]], word.end()
    return json.JSONDecoder().raw_decode(text, at)


def _needed(found: re.Match[str] | None) -> re.Match[str]:
    if found is None:
        raise ValueError("this is no call")
    return found


TAGGED = Form("<tool_call>", "</tool_call>", _tagged)
FORMS = (
    TAGGED,
    Form("[TOOL_CALLS]", "", _json),
    Form("<|tool_call_start|>", "<|tool_call_end|>", _python),
    Form("Action:", "", lambda text: _actions("Action:" + text)),
)
BARE = Form("", "", lambda text: _json(text) or _python(text))
"""An answer that is nothing but calls, without marks: Llama 3, Mistral."""
_BEGUN = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


def _named(text: str) -> Parsed:
    """GLM 4: the name in one line, the arguments below; several stand behind <|assistant|>."""
    parts = [part.strip().partition("\n") for part in text.split("<|assistant|>")]
    read = [(name.strip(), _first_object(given)) for name, _, given in parts]
    return [(n, g) for n, g in read if g is not None] if all(g for _, g in read) else []


NAMED = Form("", "", _named)


# --- while it is written


class CallReader:
    """Text of an answer in, deltas out. `names` are those of the tools; without any all is words."""

    def __init__(self, names: Collection[str] = ()):
        self.names = frozenset(names)
        self.calls: list[Call] = []
        self.held = ""
        self.form: Form | None = None
        self.spoke = False
        self.passed: int | None = None
        """How much of the open call's arguments was passed on; None before its name was."""

    def all(self, text: str) -> tuple[str, list[Call]]:
        """The words and the calls of a whole answer."""
        words = "".join(str(delta.get("content", "")) for delta in self.deltas(text, ended=True))
        return words, self.calls

    def deltas(self, text: str, ended: bool = False) -> list[dict[str, Any]]:
        """What new text adds. With `ended` nothing is held back any more."""
        if not self.names:
            return [{"content": text}] if text else []
        self.held += text
        found: list[dict[str, Any]] = []
        while True:
            before = (self.held, self.form, self.passed)
            found += list(self._words(ended) if self.form is None else self._call(self.form, ended))
            if before == (self.held, self.form, self.passed):
                return found

    # --- words

    def _words(self, ended: bool) -> Iterator[dict[str, Any]]:
        if not self.spoke and not self.calls and (bare := self._bare()):
            self.form = bare
            return
        places = [(at, form) for form in FORMS if (at := self.held.find(form.opens)) >= 0]
        if places:
            at, self.form = min(places, key=lambda place: place[0])
            yield from self._say(self.held[:at].rstrip())
            self.held = self.held[at:]
            return
        keep = 0 if ended else self._undecided()
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        yield from self._say(shown if not self.calls or shown.strip() else "")

    def _say(self, text: str) -> Iterator[dict[str, Any]]:
        if text:
            self.spoke = True
            yield {"content": text}

    def _bare(self) -> Form | None:
        """The form of an answer that begins as a call without marks."""
        begun = self.held.lstrip()
        if begun[:1] in ("{", "[") and not begun.startswith("[TOOL_CALLS]"[: len(begun)]):
            return BARE
        line, newline, _ = begun.partition("\n")
        return NAMED if newline and line.strip() in self.names else None

    def _undecided(self) -> int:
        """How many of the last characters may yet turn out to begin a call: white space, or part of a mark."""
        text = self.held
        if not self.spoke and any(name.startswith(text.strip()) for name in self.names):
            return len(text)
        marks = max(
            (n for form in FORMS for n in range(1, len(form.opens)) if text.endswith(form.opens[:n])),
            default=0,
        )
        words = text[: len(text) - marks]
        return marks + len(words) - len(words.rstrip())

    # --- calls

    def _call(self, form: Form, ended: bool) -> Iterator[dict[str, Any]]:
        body = self.held[len(form.opens) :]
        text, closed, rest = body.partition(form.closes) if form.closes else (body, "", "")
        if form is TAGGED:
            yield from self._arguments(text)
        if closed or ended:
            yield from self._closed(form, text, form.opens + text + closed)
            self.held, self.form, self.passed = rest, None, None

    def _arguments(self, text: str) -> Iterator[dict[str, Any]]:
        """Pass on what is there of a JSON call's arguments."""
        begun = _BEGUN.match(text)
        if begun is None:
            return
        if self.passed is None:
            self.passed = 0
            yield self._opened(Call(json.loads(begun[1])))
        given = _balanced(text[begun.end() :])
        fresh, self.passed = given[self.passed :], len(given)
        if fresh:
            yield self._more(fresh)

    def _closed(self, form: Form, text: str, whole: str) -> Iterator[dict[str, Any]]:
        if self.passed is not None:
            return
        found = form.parse(text)
        if not found:
            yield from self._say(whole)
        for name, arguments in found:
            yield self._opened(Call(name))
            yield self._more(arguments)

    def _opened(self, call: Call) -> dict[str, Any]:
        self.calls.append(call)
        return {"tool_calls": [{"index": len(self.calls) - 1, **call.whole()}]}

    def _more(self, arguments: str) -> dict[str, Any]:
        self.calls[-1].arguments += arguments
        return {"tool_calls": [{"index": len(self.calls) - 1, "function": {"arguments": arguments}}]}


def _balanced(text: str) -> str:
    """The JSON object that a text begins with, or as much of it as there is."""
    depth, quoted, escaped = 0, False, False
    for at, letter in enumerate(text):
        if quoted:
            quoted, escaped = escaped or letter != '"', letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
            if depth == 0:
                return text[: at + 1]
    return text
