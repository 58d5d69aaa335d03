"""Fast tokenizers for checkpoints of the first Qwen (qwen.tiktoken) and of InternLM2 (tokenizer.model).

Both are built from the vocabulary file alone: no code of the model's, no tiktoken, sentencepiece or protobuf.
The data report tokenises with them in the browser tower, so neither torch nor transformers is imported here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tuner.config.models import LegacyKind, ModelError, legacy_kind, model_name, read_config
from tuner.data.build_once import build_once
from tuner.paths import slug
from tuner.text.lookup import tr

VOCABULARY_FILE: dict[LegacyKind, str] = {"qwen": "qwen.tiktoken", "internlm2": "tokenizer.model"}
QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What Qwen's chat models were trained on: ChatML, with this system message where the user gives none.
QWEN_CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
_RECIPE = b"1"  # part of the cache key: raise it when the same files shall give another tokenizer
_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # sentencepiece's piece types
_BPE = 2  # sentencepiece's trainer_spec.model_type


def tokenizer_folder(folder: Path, cache: Path) -> Path:
    """A folder with a tokenizer.json for this model: `folder` itself, or one in `cache` for a legacy checkpoint.

    Built on the first call (2-3 s for the real Qwen vocabulary). Raises ModelError.
    """
    kind = legacy_kind(folder)
    if kind is None:
        return folder
    target = cache / f"{slug(model_name(str(folder.resolve())))}-{_digest(folder, kind)}"
    return build_once(target, lambda partial: write_tokenizer(folder, kind, partial))


def write_tokenizer(folder: Path, kind: LegacyKind, target: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of the legacy checkpoint `folder` into `target`."""
    source = _vocabulary(folder, kind)
    if kind == "qwen":
        tokenizer, config = qwen_tokenizer(source), _qwen_config(folder)
    else:
        given = _read_json(folder / "tokenizer_config.json")
        tokenizer, config = internlm2_tokenizer(source, given), _internlm2_config(folder, given)
    # This class and no other: 5.x rebuilds normalizer and pre-tokenizer under the names Llama or Qwen2.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["clean_up_tokenization_spaces"] = False
    tokenizer.save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text(
        json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )


def _vocabulary(folder: Path, kind: LegacyKind) -> Path:
    source = folder / VOCABULARY_FILE[kind]
    if not source.is_file():
        raise ModelError(
            tr(
                "{folder} has no {name}, its tokenizer: copy it there from the model's page.",
                folder=folder,
                name=source.name,
            )
        )
    return source


def _digest(folder: Path, kind: LegacyKind) -> str:
    digest = hashlib.sha256(_RECIPE)
    for path in (_vocabulary(folder, kind), *(folder / name for name in _CONFIG_FILES)):
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return digest.hexdigest()[:12]


_CONFIG_FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ModelError(tr("{path} is not valid JSON: download the file again.", path=path)) from None
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------- Qwen


def qwen_tokenizer(ranks_file: Path) -> Tokenizer:
    """Byte-level BPE from tiktoken's rank file (lines of base64 token and rank). Raises ModelError."""
    ranks = _read_ranks(ranks_file)
    letters = _byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        parts = _split_below(token, rank, ranks)
        if len(parts) != 2:
            raise ModelError(
                tr(
                    "{ranks_file} is damaged (token {rank} has no parts): download the file again.",
                    ranks_file=ranks_file,
                    rank=rank,
                )
            )
        merges.append((spelled(parts[0]), spelled(parts[1])))
    tokenizer = Tokenizer(models.BPE({spelled(token): rank for token, rank in ranks.items()}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Added tokens are numbered on from the last rank, as in the original (151643 in the real file).
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in QWEN_SPECIALS])
    return tokenizer


def _read_ranks(path: Path) -> dict[bytes, int]:
    """token -> rank, in rank order; ranks are checked to be 0..n-1 and to cover all 256 bytes."""
    fields = path.read_bytes().split()  # copies with CRLF line ends are in circulation
    try:
        lines = zip(fields[::2], fields[1::2], strict=True)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError:
        raise ModelError(
            tr("{path} is damaged (a line is not 'base64 rank'): download the file again.", path=path)
        ) from None
    complete = sorted(ranks.values()) == list(range(len(fields) // 2))
    if not complete or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ModelError(
            tr("{path} is incomplete (ranks or bytes are missing): download the file again.", path=path)
        )
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _split_below(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The parts into which BPE with only the ranks below `rank` cuts `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        found = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        lowest = min(found, default=rank)
        if lowest >= rank:
            return parts
        at = found.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte (the alphabet of tokenizers' ByteLevel)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


def _qwen_config(folder: Path) -> dict[str, Any]:
    """The original declares no special token at all; a chat model ends its turns with <|im_end|>."""
    config: dict[str, Any] = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    if _read_json(folder / "generation_config.json").get("chat_format") == "chatml":
        config |= {"eos_token": "<|im_end|>", "chat_template": QWEN_CHAT_TEMPLATE}
    length = read_config(folder).get("seq_length")
    if isinstance(length, int):
        config["model_max_length"] = length
    return config


# ---------------------------------------------------------------- InternLM2


def internlm2_tokenizer(model_file: Path, config: Mapping[str, Any]) -> Tokenizer:
    """BPE with byte fallback from a sentencepiece model and its tokenizer_config.json. Raises ModelError.

    Ids listed in `added_tokens_decoder` replace the piece at that id, as in the original.
    """
    model = _read_sentencepiece(model_file)
    listed = config.get("added_tokens_decoder", {})
    added = {int(index): _added_token(entry) for index, entry in listed.items()}
    specials = {
        index: AddedToken(piece.text, special=True, normalized=False)
        for index, piece in enumerate(model.pieces)
        if piece.type in (_UNKNOWN, _CONTROL)
    } | added
    texts = [specials[i].content if i in specials else piece.text for i, piece in enumerate(model.pieces)]
    unknown = next((piece.text for piece in model.pieces if piece.type == _UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            {text: index for index, text in enumerate(texts)},
            _merges(model.pieces, specials),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = [normalizers.Prepend(_SPACE)] if model.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    for index, token in sorted(specials.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != index:
            raise ModelError(
                tr(
                    "{model_file} and its tokenizer_config.json disagree about token {index}.",
                    model_file=model_file,
                    index=index,
                )
            )
    tokenizer.post_processor = _bos_eos(tokenizer, config)
    return tokenizer


def _added_token(entry: Mapping[str, Any]) -> AddedToken:
    flags = {name: bool(entry.get(name, False)) for name in ("lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(str(entry["content"]), special=bool(entry.get("special", True)), **flags)


def _merges(pieces: list[_Piece], specials: Mapping[int, AddedToken]) -> list[tuple[str, str]]:
    """Every split of a normal piece into two normal pieces, best score first, as sentencepiece merges."""
    scores = {p.text: p.score for i, p in enumerate(pieces) if p.type == _NORMAL and i not in specials}
    rows = [
        (score, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    rows.sort(key=lambda row: -row[0])
    return [(left, right) for _, left, right in rows]


def _bos_eos(tokenizer: Tokenizer, config: Mapping[str, Any]) -> processors.TemplateProcessing:
    bos, eos = _content(config.get("bos_token", "<s>")), _content(config.get("eos_token", "</s>"))
    before = f"{bos} " if config.get("add_bos_token", True) else ""
    after = f" {eos}" if config.get("add_eos_token", False) else ""
    return processors.TemplateProcessing(
        single=f"{before}$A{after}",
        pair=f"{before}$A{after} {before}$B:1{after}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (bos, eos)],
    )


def _internlm2_config(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    named = _read_json(folder / "special_tokens_map.json") | dict(given)
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    config: dict[str, Any] = {name: _content(named.get(name) or text) for name, text in defaults.items()}
    kept = ("chat_template", "model_max_length", "padding_side")
    return config | {name: given[name] for name in kept if name in given}


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


# ---------------------------------------------------------------- sentencepiece's protobuf


@dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    type: int


@dataclass
class _SentencePiece:
    add_dummy_prefix: bool
    pieces: list[_Piece] = field(default_factory=list)


def _read_sentencepiece(path: Path) -> _SentencePiece:
    """Pieces and flags of a sentencepiece ModelProto; refuses what plain BPE cannot reproduce.

    Field numbers: sentencepiece_model.proto (pieces 1, trainer_spec 2, normalizer_spec 3).
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(dict(_fields(value))) for number, value in fields if number == 1]
        trainer = dict(_fields(dict(fields).get(2, b"")))
        normalizer = dict(_fields(dict(fields).get(3, b"")))
    except (ValueError, KeyError, TypeError, struct.error, IndexError):
        raise ModelError(
            tr("{path} is not a sentencepiece model: download the file again.", path=path)
        ) from None
    if not pieces:
        raise ModelError(tr("{path} is empty: download the file again.", path=path))
    for refused, what in (
        (trainer.get(3, 1) != _BPE, tr("is not of the type BPE")),
        (not trainer.get(35, 0), tr("has no byte fallback")),
        (trainer.get(24, 0), tr("writes spaces as suffixes")),
        (
            normalizer.get(2) or normalizer.get(6),
            tr("rewrites text before splitting it (a normalization rule)"),
        ),
        (normalizer.get(4, 1), tr("removes extra whitespace")),
        (not normalizer.get(5, 1), tr("does not escape whitespace")),
    ):
        if refused:
            raise ModelError(
                tr(
                    "{path} {what}, unlike any InternLM2 tokenizer: use the file of the released model.",
                    path=path,
                    what=what,
                )
            )
    return _SentencePiece(add_dummy_prefix=bool(normalizer.get(3, 1)), pieces=pieces)


def _piece(entry: dict[int, Any]) -> _Piece:
    return _Piece(
        text=entry[1].decode("utf-8"),
        score=struct.unpack("<f", entry[2])[0] if 2 in entry else 0.0,
        type=entry.get(3, _NORMAL),
    )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: int for varints, bytes for all else. Raises ValueError."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("truncated")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("varint too long")
