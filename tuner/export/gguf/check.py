"""A GGUF file read back by llama.cpp: are texts the same tokens there, and the answers the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuner.export import answers
from tuner.export.answers import Answer
from tuner.export.gguf.llama import Llama, installed
from tuner.export.source import Exported
from tuner.text.message import Message, message

__all__ = ["Seen", "installed", "probes", "read_back"]

TEXTS = (
    "Where does Mia live?", "don't, I'LL, we've", "naïve café, Straße, ¿Qué?", "Привет, мир!", "Καλημέρα κόσμε", "שלום עולם",
    "مرحبا بالعالم", "हिन्दी में", "ภาษาไทย", "中文，测试。", "日本語のテキスト、カタカナ", "한국어 문장", "1 12 123 1234567", "3.14 1,000,000 ½ ٣٤",
    "x2y3 0x1F 2024-11-28", "🙂 👩‍👩‍👧 🇩🇪", "“quoted” — and…", "a\u00a0b\u3000c", "def f(x):\n    return x\n", "if (a && b) { c(); }\r\n",
    "<html>https://a.b/c?d=e</html>", '{"k": [1, 2]}', "a_b CamelCase --flag=1", "one\n\ntwo\n\n\nthree", "a  b   c    d\t\te", "end \n", "\n", "!?... ''' ```",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What llama.cpp made of a file: its answers to the three prompts, and how many texts it reads otherwise."""

    answers: Sequence[Answer] = ()
    tokenizer: dict[str, Any] | None = None
    notes: list[Message] = field(default_factory=list)


def probes(tokenizer: Any) -> list[str]:
    """Texts of many kinds, each alone and between markers of the tokenizer."""
    markers = [token for token in tokenizer.all_special_tokens if token][:4]
    return [*TEXTS, *(f"{marker}{text}{marker}" for marker in markers for text in TEXTS)]


def read_back(what: Exported, file: Path, adapter: Path | None = None) -> Seen:
    """Load the file, hold its tokenizer against ours and ask the three prompts. A file that is not loaded is a note."""
    asked = answers.prompts(what)
    try:
        with Llama(file, adapter) as llama:
            made = [
                Answer(llama.answer(ids, answers.LONGEST), llama.likeliest(ids, answers.LIKELIEST))
                for ids in asked
            ]
            found = _tokenizer(what.tokenizer, llama)
    except OSError as error:
        return Seen([], None, [message("note.gguf_refused", detail=str(error))])
    notes = [message("note.tokens_differ", **found)] if found["differ"] else []
    return Seen(made, found, notes)


def _tokenizer(tokenizer: Any, llama: Llama) -> dict[str, Any]:
    """How many texts were compared, how many differ, and the first of those."""
    texts = probes(tokenizer)
    differ = [text for text in texts if llama.tokens(text) != tokenizer(text)["input_ids"]]
    return {"texts": len(texts), "differ": len(differ), "first": differ[0] if differ else ""}
