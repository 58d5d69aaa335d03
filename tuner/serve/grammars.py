"""Answers that must be JSON, as a `response_format` or a `tool_choice` asks: grammars that are followed token by token."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.data.tokens import Tokenizer
from tuner.serve.errors import ApiError
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray
    from torch import Tensor

_NAMED = re.compile(r"^#/(?:\$defs|definitions)/")
PARAM = "response_format"
_readers: weakref.WeakKeyDictionary[Tokenizer, LLTokenizer] = weakref.WeakKeyDictionary()


class Followed:
    """A grammar at one place in it."""

    def __init__(self, matcher: LLMatcher, size: int, stops: Sequence[int]):
        self.matcher, self.size, self.stops = matcher, size, stops

    def mask(self, scores: Tensor) -> Tensor:
        """Scores with minus infinity where the grammar does not go on."""
        import llguidance.numpy as bits  # its module for torch compiles itself, which takes seconds

        allowed = bits.allocate_token_bitmask(1, self.size)
        bits.fill_next_token_bitmask(self.matcher, allowed)
        open_to = _unpacked(allowed[0], len(scores), scores.device)
        if self.matcher.is_accepting():
            open_to[list(self.stops)] = True
        return scores.masked_fill(~open_to, float("-inf"))

    def take(self, token: int) -> None:
        """Go on over a token; one that ends the answer is none of the grammar's."""
        if token not in self.stops:
            self.matcher.consume_token(token)

    @property
    def ended(self) -> bool:
        """Whether nothing may follow."""
        return bool(self.matcher.is_stopped())


def _unpacked(bits: NDArray[np.int32], size: int, device: Any) -> Tensor:
    """Bits, 32 tokens a number, as booleans [size]."""
    import torch

    found = np.unpackbits(bits.astype("<i4").view(np.uint8), bitorder="little")[:size]
    return torch.from_numpy(np.pad(found, (0, size - len(found)))).bool().to(device)


def of(asked: Mapping[str, Any] | None, tokenizer: Tokenizer, stops: Sequence[int]) -> Followed | None:
    """The grammar of a `response_format`; None for plain text. Raises ApiError."""
    kind = (asked or {}).get("type", "text")
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise ApiError(400, f"{PARAM} {kind!r} is not known; use text, json_object or json_schema.", PARAM)
    schema = {"type": "object"} if kind == "json_object" else _schema(asked or {})
    return _followed(schema, tokenizer, stops, PARAM)


def of_calls(
    functions: Sequence[Mapping[str, Any]], several: bool, tokenizer: Tokenizer, stops: Sequence[int]
) -> Followed:
    """The grammar of an answer that is a list of calls of these functions, of one or more, and nothing else. Raises ApiError.

    All models write that form alike, whatever marks their templates put around calls.
    """
    return _followed(calls(functions, several), tokenizer, stops, "tools")


def calls(functions: Sequence[Mapping[str, Any]], several: bool) -> dict[str, Any]:
    """The JSON schema of such a list."""
    shared: dict[str, Any] = {}
    each = [_call(function, number, shared) for number, function in enumerate(functions)]
    limit = {} if several else {"maxItems": 1}
    return {"type": "array", "minItems": 1, "items": {"anyOf": each}, **limit, "$defs": shared}


def _call(function: Mapping[str, Any], number: int, shared: dict[str, Any]) -> dict[str, Any]:
    """One call. What a function's own schema refers to moves into `shared`, at the whole schema's root, under names that no
    other function's have. A function that names no parameters takes none."""
    given = _referring(dict(function.get("parameters") or {"type": "object", "maxProperties": 0}), number)
    for word in ("$defs", "definitions"):
        shared |= {f"{number}.{name}": part for name, part in given.pop(word, {}).items()}
    return {
        "type": "object",
        "properties": {"name": {"const": function.get("name")}, "arguments": given},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _referring(schema: Any, number: int) -> Any:
    """A part of a function's schema with what it refers to by the names of the whole schema."""
    if isinstance(schema, list):
        return [_referring(one, number) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: _NAMED.sub(f"#/$defs/{number}.", part)
        if key == "$ref" and isinstance(part, str)
        else _referring(part, number)
        for key, part in schema.items()
    }


def _schema(asked: Mapping[str, Any]) -> Any:
    found = (asked.get("json_schema") or {}).get("schema")
    if not isinstance(found, dict):
        raise ApiError(400, f"{PARAM}.json_schema.schema is missing.", PARAM)
    return found


def _followed(schema: Any, tokenizer: Tokenizer, stops: Sequence[int], param: str) -> Followed:
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        sentence = tr(
            "JSON answers and calls that must be made need the library llguidance, which is not installed; `pip install llguidance`."
        )
        raise ApiError(400, sentence, param, "unsupported_parameter") from error
    # Bounded: a model that is not sure how to go on would write spaces for ever.
    grammar = LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_pattern": r"\n?[ ]{0,8}"}
    )
    matcher = LLMatcher(_reader(tokenizer), grammar, log_level=0)
    if matcher.is_error():
        raise ApiError(400, f"{param}: {matcher.get_error().splitlines()[0]}", param, "invalid_schema")
    return Followed(matcher, tokenizer.size, stops)


def _reader(tokenizer: Tokenizer) -> LLTokenizer:
    """The vocabulary as the library reads it, made once."""
    from llguidance import LLTokenizer

    if tokenizer not in _readers:
        _readers[tokenizer] = LLTokenizer(tokenizer.backend.to_str(), eos_token=tokenizer.eos_id)
    return _readers[tokenizer]
