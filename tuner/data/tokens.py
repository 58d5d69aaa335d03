"""The tokenizer of a model folder, without transformers: text to ids and back, and the chat template beside it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tuner import paths
from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr

if TYPE_CHECKING:
    import tokenizers

SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")
GUARD = "\ufdd4letters\ufdd4"
"""Stands within a special token's text that data brought along; made of noncharacters, so that no text holds it."""


class Encoding(Protocol):
    """A text as ids."""

    @property
    def ids(self) -> list[int]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Pieced:
    """Ids that were put together here."""

    ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """Text to ids exactly as transformers' tokenizer of the same folder does, with no special tokens added."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: dict[str, Any], folder: Path | None = None):
        self.backend = backend
        self.backend.no_truncation()
        self.backend.no_padding()
        self.settings = settings
        self.folder = folder
        self.bos, self.eos, self.pad = (self._special(name) for name in SPECIALS[:3])

    def _special(self, name: str) -> str | None:
        value = self.settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return text if isinstance(text, str) and self.id_of(text) is not None else None

    def id_of(self, token: str) -> int | None:
        """The id of a whole token, None when the vocabulary has no such token."""
        found: int | None = self.backend.token_to_id(token)
        return found

    @property
    def eos_id(self) -> int | None:
        return self.id_of(self.eos) if self.eos else None

    @property
    def pad_id(self) -> int | None:
        """The padding token's id; the end-of-text token's where there is none."""
        return self.id_of(self.pad) if self.pad else self.eos_id

    @property
    def size(self) -> int:
        """How many ids there are."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """The texts that are one token by decree."""
        return tuple(t.content for t in self.backend.get_added_tokens_decoder().values())

    @cached_property
    def sharp_specials(self) -> tuple[str, ...]:
        """Those at which a text can be cut without changing its ids: they take in nothing beside them."""
        added = self.backend.get_added_tokens_decoder().values()
        loose = ("lstrip", "rstrip", "single_word", "normalized")
        return tuple(t.content for t in added if not any(getattr(t, how) for how in loose))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(i for i, t in self.backend.get_added_tokens_decoder().items() if t.special)

    @property
    def chat_template(self) -> str | None:
        """The jinja text of the chat template, None where the tokenizer has none."""
        template = self.settings.get("chat_template")
        if isinstance(template, list):
            by_name = {t["name"]: t["template"] for t in template}
            template = by_name.get("default") or next(iter(by_name.values()), None)
        if isinstance(template, dict):
            template = template.get("default")
        return template or None

    @cached_property
    def digest(self) -> str:
        """What names this tokenizer and template: sha256 over vocabulary, merges and settings."""
        whole = hashlib.sha256(self.backend.to_str().encode())
        whole.update(json.dumps(self.settings, sort_keys=True, default=str).encode())
        return whole.hexdigest()

    def encode(self, text: str, continues: bool = False) -> list[int]:
        """Ids of a text; `continues` when it stands behind other text, so that no word mark is put before it."""
        return self.encode_batch([text], [continues])[0]

    def encode_batch(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> list[list[int]]:
        """Ids of many texts; uses every core, and other Python threads run meanwhile."""
        return [e.ids for e in self.encodings(texts, continues)]

    def encodings(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> list[Encoding]:
        """As `encode_batch`, but objects with `.ids` and `len()`: counting alone is quicker so."""
        whole: list[Encoding] = self._batch(self.backend, texts)
        guarded = [i for i, text in enumerate(texts) if GUARD in text]
        for i in guarded:
            whole[i] = Pieced(self._guarded(texts[i], bool(continues and continues[i])))
        if continues is None or not self.prefixes or not any(continues):
            return whole
        where = [i for i, c in enumerate(continues) if c and i not in guarded]
        bare = self._batch(self._unprefixed, [texts[i] for i in where])
        for i, begun in zip(where, bare, strict=True):
            whole[i] = Pieced(self._continued(begun.ids, whole[i].ids))
        return whole

    def _continued(self, bare: list[int], marked: list[int]) -> list[int]:
        """Ids of a text behind other text: `bare` up to its first special token, and as ever from there.

        A special token cuts a text, and what follows one begins with a word mark again, wherever the whole text began.
        """
        added = self._added_ids
        first = next((i for i, one in enumerate(bare) if one in added), len(bare))
        rest = next((i for i, one in enumerate(marked) if one in added), len(marked))
        return bare[:first] + (bare[first:] if self.marks_once else marked[rest:])

    def guarded(self, text: str) -> str:
        """Text of which no part is taken for a special token: each is told apart by a mark within it."""
        for token in self._guarded_tokens:
            if token in text:
                text = text.replace(token, token[0] + GUARD + token[1:])
        return text

    def _guarded(self, text: str, continues: bool) -> list[int]:
        """Ids of a text in which some special tokens are no more than their letters."""
        ids: list[int] = []
        for i, part in enumerate(self._special_cut.split(text)):
            if i % 2:
                ids += [one for n in (part, part.strip()) if (one := self.id_of(n)) is not None][:1]
            elif part:
                behind = continues if not ids else self.marks_once
                backend = self._literal_unprefixed if behind else self._literal
                ids += backend.encode(_clean(part.replace(GUARD, "")), add_special_tokens=False).ids
        return ids

    @cached_property
    def _guarded_tokens(self) -> tuple[str, ...]:
        """Special tokens, longest first."""
        return tuple(t.content for t in self._special_tokens)

    @cached_property
    def _special_tokens(self) -> list[Any]:
        added = self.backend.get_added_tokens_decoder().values()
        return sorted((t for t in added if t.special), key=lambda t: len(t.content), reverse=True)

    @cached_property
    def _special_cut(self) -> re.Pattern[str]:
        """What a special token takes of a text: itself, and the white space beside it where it says so."""
        taken = [
            (r"\s*" if t.lstrip else "") + re.escape(t.content) + (r"\s*" if t.rstrip else "")
            for t in self._special_tokens
        ]
        return re.compile(f"({'|'.join(taken) or '(?!)'})")

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        return _taking_letters(self.backend.to_str())

    @cached_property
    def _literal_unprefixed(self) -> tokenizers.Tokenizer:
        return _taking_letters(self._word_marks[1])

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self.backend.get_added_tokens_decoder())

    def _batch(self, backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[Any]:
        try:
            encoded: list[Any] = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:  # a lone surrogate somewhere: no text that Rust can hold
            encoded = backend.encode_batch_fast([_clean(t) for t in texts], add_special_tokens=False)
        return encoded

    @property
    def prefixes(self) -> bool:
        """Whether a word mark is put before every text, as sentencepiece does."""
        return bool(self._word_marks[0])

    @property
    def marks_once(self) -> bool:
        """Whether the word mark is put before the first word of a whole text alone, not behind each special token too."""
        return "first" in self._word_marks[0]

    @cached_property
    def _word_marks(self) -> tuple[list[str], str]:
        """How word marks are put before texts ("always", "first"), none where they are not; and this tokenizer without them."""
        description = self.backend.to_str()
        whole = json.loads(description)
        found = [how for part in ("normalizer", "pre_tokenizer") for how in _drop_prefix(whole, part)]
        return found, json.dumps(whole) if found else description

    @cached_property
    def _unprefixed(self) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer as Backend

        return Backend.from_str(self._word_marks[1])

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of ids."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text that each token adds; a character spread over several tokens stands at its last one."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(self.backend, i) or "" for i in ids]

    def count(self, text: str) -> int:
        """How many tokens a text is."""
        return len(self.encode(text))


def _drop_prefix(owner: dict[str, Any], key: str) -> list[str]:
    """Take the rules that put a word mark before a text out of `owner[key]`; when each did so."""
    part = owner.get(key)
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Prepend":
        owner[key] = None
        return ["always"]
    if part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never":
        found = str(part.get("prepend_scheme", "always"))
        part["prepend_scheme"] = "never"
        return [found]
    for name in ("normalizers", "pretokenizers"):
        if name in part:
            holders = [{"part": p} for p in part[name]]
            rules = [how for h in holders for how in _drop_prefix(h, "part")]
            part[name] = [h["part"] for h in holders if h["part"] is not None]
            return rules
    return []


def _taking_letters(description: str) -> tokenizers.Tokenizer:
    """A tokenizer to which a special token's text is text like any other."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(description)
    backend.encode_special_tokens = True
    return backend


def _clean(text: str) -> str:
    """Text without lone surrogates, which no file can hold and no tokenizer reads."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def use_threads(count: int | None) -> None:
    """Tokenise with this many threads in this process, None for every core; it holds from the first batch on."""
    if count:
        os.environ["RAYON_NUM_THREADS"] = str(count)  # tokenizers' own pool reads it once, when it starts
        os.environ["TOKENIZERS_PARALLELISM"] = "true"


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises ConfigError with one sentence."""
    from tokenizers import Tokenizer as Backend

    given = Path(folder).expanduser()
    path = given if given.is_absolute() else paths.home() / given
    if not path.is_dir():
        raise _no_tokenizer(
            tr(
                "There is no folder {folder}; give --model_name_or_path a folder with a tokenizer.",
                folder=folder,
            )
        )
    if not (path / "tokenizer.json").is_file():
        path = _legacy(path)
    try:
        backend = Backend.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception for every fault of the file
        raise _no_tokenizer(
            tr("{path} is not a tokenizer: {error}.", path=path / "tokenizer.json", error=error)
        ) from error
    return Tokenizer(backend, _settings(path), path)


def _legacy(path: Path) -> Path:
    """A folder with tokenizer.json made from an older vocabulary file."""
    try:
        from tuner.data.legacy_tokenizers import tokenizer_folder  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return _missing(path)
    found: Path = tokenizer_folder(path, paths.models())
    return found if (found / "tokenizer.json").is_file() else _missing(path)


def _missing(path: Path) -> Path:
    raise _no_tokenizer(
        tr("{path} holds no tokenizer.json; copy the model's tokenizer files into it.", path=path)
    )


def _no_tokenizer(sentence: str) -> ConfigError:
    return ConfigError([Problem("model_name_or_path", sentence)])


def _settings(path: Path) -> dict[str, Any]:
    """tokenizer_config.json with what older folders keep beside it."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json", "chat_template.json"):
        if (path / name).is_file():
            settings.update(_json(path / name))
    jinja = path / "chat_template.jinja"
    if jinja.is_file():
        settings["chat_template"] = jinja.read_text(encoding="utf-8")
    return settings


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _no_tokenizer(tr("{path} is not readable as JSON: {error}.", path=path, error=error)) from error
    return value if isinstance(value, dict) else {}
