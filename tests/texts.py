"""A thousand texts that tokenizers disagree about: languages, digits, runs of blank space, emoji, markers, code."""

from __future__ import annotations

import random
import unicodedata

PIECES = [
    "Where does Mia live?", "don't", "I'LL", "we've", "DON'T", "naïve café", "Straße", "größer", "¿Qué?", "fi\ufb01n",
    "Привет, мир!", "Ёлка", "Καλημέρα", "İstanbul", "שלום", "مرحبا", "हिन्दी", "ภาษาไทย", "中文，测试。", "日本語のテキスト", "カタカナ", "한국어 문장", "𝔘𝔫𝔦", "e\u0301",
    "1", "12", "123", "1234567", "3.14", "1,000,000", "٣٤", "½", "x2y3", "0x1F", "2024-11-28",
    "🙂", "👩‍👩‍👧", "🇩🇪", "❤️", "…", "—", "“quoted”", "a\u00a0b", "\u200b", "\u3000",
    "def f(x):\n    return x", "if (a && b) { c(); }", "<html>", "https://a.b/c?d=e", "{\"k\": [1, 2]}", "$_$", "//**", "a_b", "CamelCase", "--flag=1", "'s", "'", "''", "``",
    "\n", "\n\n", "\r\n", "\t", "\t\t", " ", "  ", "   ", "    ", " \n ", "\n  ", "!", "?!", "...", "\\n", "the", "The", "THE", "and", "AB12cd",
]  # fmt: skip


def texts(count: int, markers: list[str], seed: int = 0) -> list[str]:
    """Pieces in a row, some with blank space between them, some with markers of the tokenizer."""
    chance = random.Random(seed)
    pieces = PIECES + markers
    return [_text(chance, pieces) for _ in range(count)]


def _text(chance: random.Random, pieces: list[str]) -> str:
    chosen = chance.choices(pieces, k=chance.randint(1, 12))
    return "".join(piece + chance.choice(["", " ", " ", "  ", "\n"]) for piece in chosen)


def has_marks(text: str) -> bool:
    """Whether a letter is followed by a mark that combines with it."""
    return any(unicodedata.category(letter).startswith("M") for letter in text)
