"""Tokens as callers are told of them: text, bytes, log probabilities."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from tuner.data.tokens import Tokenizer
from tuner.generate.request import Token
from tuner.generate.text import BROKEN

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """What each token of a vocabulary is, also those that are only a part of a character."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @cached_property
    def _letters(self) -> dict[str, int]:
        """The letters in which a byte-level vocabulary writes bytes; empty for another one."""
        if '"ByteLevel"' not in json.dumps(json.loads(self.tokenizer.backend.to_str()).get("decoder")):
            return {}
        own = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in own]
        return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        written = self.tokenizer.backend.id_to_token(token) or ""
        if found := _BYTE.fullmatch(written):
            return bytes([int(found[1], 16)])
        if self._letters and all(c in self._letters for c in written):
            return bytes(self._letters[c] for c in written)
        return self.tokenizer.decode([token]).encode("utf-8", "replace")

    def text(self, token: int) -> str:
        """A token as text; one that is no whole character as its bytes, so that no two look alike."""
        said = self.tokenizer.decode([token])
        return said if BROKEN not in said else "bytes:" + "".join(f"\\x{b:02x}" for b in self.bytes_of(token))

    def chat(self, token: Token) -> dict[str, Any]:
        """One entry of a chat's `logprobs.content`."""
        top = [self._entry(i, value) for i, value in token.top]
        return {**self._entry(token.id, token.logprob), "top_logprobs": top}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self.text(token), "logprob": logprob, "bytes": list(self.bytes_of(token))}

    def listed(self, tokens: list[Token], start: int) -> dict[str, Any]:
        """`logprobs` of a completion; the first token of a text has none. `start` is where its text begins."""
        texts = [self.text(token.id) for token in tokens]
        offsets, at = [], start
        for token in tokens:
            offsets.append(at)
            at += len(self.tokenizer.decode([token.id]))
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._likeliest(token) for token in tokens],
            "text_offset": offsets,
        }

    def length(self, tokens: list[Token]) -> int:
        """Characters of these tokens, as `listed` counts them."""
        return sum(len(self.tokenizer.decode([token.id])) for token in tokens)

    def _likeliest(self, token: Token) -> dict[str, float] | None:
        """By text, the chosen one among them. The likelier of two tokens of the same text is told."""
        if token.logprob is None:
            return None
        found: dict[str, float] = {}
        for i, value in (*token.top, (token.id, token.logprob)):
            text = self.text(i)
            found[text] = max(value, found.get(text, value))
        return found
