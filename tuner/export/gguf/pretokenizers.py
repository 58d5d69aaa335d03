r"""Which of llama.cpp's ways to split text a tokenizer's own is, found from its tokenizer.json.

llama.cpp knows a tokenizer's first step only by name (`tokenizer.ggml.pre`) and has the expressions in its source. A
wrong name is no error there: the file loads, and digits, spaces or Chinese are split otherwise than the model learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_MARKED = (
    _ENDINGS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _capitals(ending: str) -> str:
    """Words split where a capital begins them, as GPT-4o's and Mistral's Tekken do."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{_CASED}*{_LOWER}+{ending}|{before}{_CASED}+{_LOWER}*{ending}|"


DIGITS, GPT2 = "each digit", "the words of GPT-2"
NAMES: dict[tuple[str, ...], str] = {
    (GPT2,): "gpt-2",
    (DIGITS, GPT2): "smollm",
    (_WORDS + r"\p{N}{1,3}|" + _REST,): "llama-bpe",
    (_WORDS + r"\p{N}|" + _REST,): "qwen2",
    (_MARKED,): "qwen35",
    (_capitals("") + r"\p{N}|" + _REST_SLASH,): "tekken",
    (_capitals(_ENDINGS + "?") + r"\p{N}{1,3}|" + _REST_SLASH,): "gpt-4o",
    (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK): "deepseek-v3",
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", DIGITS): "deepseek-coder",
}


def name_of(said: Mapping[str, Any] | None) -> str | None:
    """llama.cpp's name for the `pre_tokenizer` of a tokenizer.json; None where it has none for it."""
    steps = _steps(said or {})
    return None if None in steps else NAMES.get(tuple(step for step in steps if step))


def _steps(said: Mapping[str, Any]) -> Sequence[str | None]:
    """What each part splits by, in order: an expression or a word for it; "" for nothing, None for what is not known."""
    kind = said.get("type")
    if kind == "Sequence":
        return [step for part in said["pretokenizers"] for step in _steps(part)]
    if kind == "Digits":
        return [DIGITS if said["individual_digits"] else None]
    if kind == "ByteLevel":
        return [None if said["add_prefix_space"] else GPT2 if said["use_regex"] else ""]
    return [_expression(said) if kind == "Split" else None]


def _expression(said: Mapping[str, Any]) -> str | None:
    """The expression that cuts pieces out; keeping only what matches is the same, since these match every character."""
    kept = (said["behavior"], said["invert"]) in (("Isolated", False), ("Removed", True))
    found = said["pattern"].get("Regex") if kept else None
    return None if found is None else str(found)
