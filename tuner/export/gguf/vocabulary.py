"""A tokenizer's files as GGUF has them: tokens, kinds, merges or scores, markers, and the chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter, TokenType

from tuner.export.gguf import pretokenizers
from tuner.export.gguf.shapes import refuse
from tuner.text.lookup import tr

SPACE = "\u2581"
PHI3 = re.compile("phi-?3", re.IGNORECASE)
PHI3_TOKENS = frozenset({"<s>", "</s>", "<unk>", "<|endoftext|>"})
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def describe(writer: GGUFWriter, tokenizer: Any, rows: int) -> None:
    """Write down how text becomes tokens. `rows` is how many the embeddings have. Raises ConfigError."""
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    model = said["model"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix"):
        raise refuse(tr("its tokenizer is of the kind {kind}, and only BPE is known", kind=model["type"]))
    added = {token["id"]: token for token in said["added_tokens"]}
    known = {number: token for token, number in model["vocab"].items()}
    if max([*added, *known]) >= rows:
        raise refuse(
            tr("its tokenizer has more tokens than the model has rows for; use --resize_vocab in training")
        )
    tokens = [_token(number, added, known) for number in range(rows)]
    if model.get("byte_fallback"):
        _pieces(writer, said, tokens)
    else:
        _bytes(writer, said)
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    _markers(writer, tokenizer)
    _template(writer, tokenizer)


def called(name: str, tokenizer: Any) -> str:
    """The name a file may bear: llama.cpp reads from "phi-3" in it that blank space after a marker is dropped, and
    fails on such a name where four of Phi-3's tokens are missing. Raises ConfigError where the tokenizer does as Phi-3."""
    added = tokenizer.added_tokens_decoder.values()
    strips = any(token.rstrip or token.lstrip for token in added)
    known = {token.content for token in added} >= PHI3_TOKENS
    if strips and not known:
        raise refuse(tr("markers of its tokenizer take the blank space beside them away"))
    if strips:
        return name if PHI3.search(name) else f"{name} phi-3"
    return PHI3.sub("phi", name)


def _token(
    number: int, added: Mapping[int, Mapping[str, Any]], known: Mapping[int, str]
) -> tuple[str, TokenType]:
    """A token and its kind; a row of the embeddings that has no token gets a name nobody writes."""
    if number in added:
        special = added[number]["special"]
        return str(added[number]["content"]), TokenType.CONTROL if special else TokenType.USER_DEFINED
    if number in known:
        return known[number], TokenType.BYTE if BYTE.fullmatch(known[number]) else TokenType.NORMAL
    return f"[PAD{number}]", TokenType.UNUSED


def _bytes(writer: GGUFWriter, said: Mapping[str, Any]) -> None:
    """Byte-level BPE: the name of its first step, and its merges."""
    normal = said["normalizer"]
    pre = pretokenizers.name_of(said["pre_tokenizer"])
    if pre is None or normal and normal["type"] != "NFC":
        raise refuse(tr("llama.cpp has no name for the way its tokenizer splits text"))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_merges([_merge(pair) for pair in said["model"]["merges"]])


def _merge(pair: str | list[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _pieces(writer: GGUFWriter, said: Mapping[str, Any], tokens: list[tuple[str, TokenType]]) -> None:
    """BPE over pieces as SentencePiece has it, a space written as a low line: scores in place of merges.

    llama.cpp joins the neighbours whose piece has the highest score, so the earliest merge that makes a piece is its score.
    """
    prefix = _prefix(said)
    if prefix is None:
        raise refuse(tr("llama.cpp has no name for the way its tokenizer treats spaces"))
    rank: dict[str, int] = {}
    for number, pair in enumerate(said["model"]["merges"]):
        rank.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), number)
    last, unknown = len(said["model"]["merges"]), said["model"].get("unk_token")
    tokens[:] = [(token, TokenType.UNKNOWN if token == unknown else kind) for token, kind in tokens]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(rank.get(token, last)) for token, _ in tokens])
    writer.add_add_space_prefix(prefix)


def _prefix(said: Mapping[str, Any]) -> bool | None:
    """Whether a space is put before a text; None where spaces are treated in a way that llama.cpp does not know."""
    normal, pre = said["normalizer"], said["pre_tokenizer"]
    parts = (normal or {}).get("normalizers", [normal] if normal else [])
    kinds = [part["type"] for part in parts]
    if pre and pre["type"] == "Metaspace" and not kinds:
        return bool(pre["prepend_scheme"] != "never")
    if kinds == ["Prepend", "Replace"] and parts[0]["prepend"] == SPACE and not pre:
        return True
    apart = pre is None or pre["type"] == "Split" and pre["pattern"].get("String") in (" ", SPACE)
    return False if kinds == ["Replace"] and apart else None


def _markers(writer: GGUFWriter, tokenizer: Any) -> None:
    """The tokens that begin, end and fill a text, and whether the first two are added to one."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None:
        writer.add_bos_token_id(begin)
    if end is not None:
        writer.add_eos_token_id(end)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(begin is not None and ids[0] == begin)
    writer.add_add_eos_token(end is not None and ids[-1] == end)


def _template(writer: GGUFWriter, tokenizer: Any) -> None:
    if tokenizer.chat_template:
        writer.add_chat_template(portable(tokenizer.chat_template))


def portable(template: Any) -> Any:
    """A chat template that every Jinja reads: the marks of what an assistant wrote, which only training looks at, are
    replaced by a condition that always holds, so that the blank space around them is cut as before."""
    if isinstance(template, dict):
        return [{"name": name, "template": portable(text)} for name, text in template.items()]
    opened = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", opened)
