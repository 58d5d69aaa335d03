"""Prompts in which a control token that a person wrote is no more than its letters, as transformers' `apply_chat_template`
has it with `sanitize_control_tokens`: the text is cut there, and each piece is encoded by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jinja2 import nodes

from tuner.data.chat_template import compile_template
from tuner.data.tokens import Tokenizer

SENTINELS = ("<|mark|>", "<|split|>")
"""Tokens that transformers adds to a tokenizer before it asks a question; what a person writes of them is cut out as well."""
BEGIN, END = "\U000f0000", "\U000f0001"
"""Around a control token within a text; what a person wrote of these two characters is left out."""


class Letters:
    """Marks control tokens in texts, and encodes what was made of them. `template` is the chat template's jinja."""

    def __init__(self, tokenizer: Tokenizer, template: str):
        self.tokenizer = tokenizer
        added = tokenizer.backend.get_added_tokens_decoder().values()
        known = tokenizer.settings.get("chat_control_tokens")
        if known is None:
            literals = _literals(template)
            known = [t.content for t in added if t.content in literals and not t.content.isspace()]
        tokens = {*SENTINELS, *(t.content for t in added if t.special or t.content in known)}
        self.control = _any_of(tokens)
        every = _any_of({*SENTINELS, *tokenizer.specials})
        self.marked = re.compile(f"{BEGIN}({every.pattern}){END}|[{BEGIN}{END}]")

    def mark(self, text: str) -> str:
        """A person's text with its control tokens marked."""
        plain = text.replace(BEGIN, "").replace(END, "")
        return self.control.sub(f"{BEGIN}\\g<0>{END}", plain)

    def needs(self, text: str) -> bool:
        """Whether a prompt has to be encoded by `encode`."""
        return BEGIN in text or END in text

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt with marks."""
        first, *pieces = self.marked.split(text)
        ids = self.tokenizer.encode(first)
        for place, piece in enumerate(pieces):
            if piece:
                ids += self._piece(piece, as_letters=place % 2 == 0)
        return ids

    def _piece(self, piece: str, as_letters: bool) -> list[int]:
        """A piece from the middle of a text. It is encoded behind a line's end, so that no word mark is put before it."""
        encode = self._letters if as_letters else self.tokenizer.encode
        line = self.tokenizer.encode("\n")
        ids = encode("\n" + piece)
        return ids[len(line) :] if ids[: len(line)] == line else encode(piece)

    def _letters(self, text: str) -> list[int]:
        """Ids of a text in which no token is known as a whole."""
        backend = self.tokenizer.backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        splitter = backend.pre_tokenizer
        parts = [text] if splitter is None else [part for part, _ in splitter.pre_tokenize_str(text)]
        return [token.id for part in parts for token in backend.model.tokenize(part)]


def _literals(template: str) -> str:
    """The texts that stand in a chat template, apart from each other."""
    tree = compile_template(template).environment.parse(template)
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    texts |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(texts)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")
