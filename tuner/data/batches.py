"""Many texts to ids at once, in the background, tokenising what recurs only once.

Special tokens cut a text into sections that are tokenised apart from each other. So a template's own sections (its system
prompt, the assistant's header) need not be tokenised again for every row, and many short sections can be tokenised as one
long text with a special token between them, which is half as dear. Ids equal those of each text tokenised whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from tuner.data.tokens import Tokenizer

Ids = list[int]
REMEMBERED = 4096
"""Sections looked out for, and remembered when they come again."""
LONGEST = 4096
GROUPS = 16
"""Long texts a batch is made of: enough for every core to have some."""


class Pieces(Protocol):
    """Texts tokenised: the ids of each, and how many there are."""

    def ids(self, index: int) -> Ids: ...
    def counts(self) -> list[int]: ...


class Whole:
    """Texts tokenised each by itself."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], continues: Sequence[bool] | None = None):
        self._found = tokenizer.encodings(texts, continues)

    def ids(self, index: int) -> Ids:
        ids: Ids = self._found[index].ids
        return ids

    def counts(self) -> list[int]:
        return [len(e) for e in self._found]


class Strung:
    """Texts tokenised as a few long ones, `mark` between them; none of them holds it."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], mark: str):
        step = -(-len(texts) // GROUPS)
        long_texts = [mark.join([*texts[i : i + step], ""]) for i in range(0, len(texts), step)]
        found = tokenizer.encodings(long_texts)
        self._flat = np.concatenate([np.asarray(e.ids, dtype=np.int32) for e in found])
        self._ends = np.flatnonzero(self._flat == tokenizer.id_of(mark))
        self._starts = np.concatenate(([0], self._ends[:-1] + 1))

    def ids(self, index: int) -> Ids:
        ids: Ids = self._flat[self._starts[index] : self._ends[index]].tolist()
        return ids

    def counts(self) -> list[int]:
        counts: list[int] = (self._ends - self._starts).tolist()
        return counts


class Batch:
    """Texts on their way to ids: each is made of sections already known and of places among those still coming."""

    def __init__(self, parts: list[list[str | int]], coming: Future[Pieces] | None, known: dict[str, Ids]):
        self._parts = parts
        self._coming = coming
        self._known = known

    def ids(self, index: int) -> Ids:
        """The ids of one text; waits for them."""
        parts = self._parts[index]
        if self._coming is None:
            return [i for part in parts for i in self._known[str(part)]]
        found = self._coming.result()
        if len(parts) == 1 and not isinstance(parts[0], str):
            return found.ids(parts[0])
        return [
            i for part in parts for i in (self._known[part] if isinstance(part, str) else found.ids(part))
        ]

    def counts(self) -> list[int]:
        """How many ids each text has; quicker than the ids."""
        found = self._coming.result().counts() if self._coming else []
        known = self._known
        return [
            sum([len(known[part]) if isinstance(part, str) else found[part] for part in parts])
            for parts in self._parts
        ]


class Batcher:
    """Starts batches for one tokenizer; `frame` is a text in which the template's special tokens stand."""

    def __init__(self, tokenizer: Tokenizer, frame: str):
        self.tokenizer = tokenizer
        self._known: dict[str, Ids] = {}
        self._seen: set[str] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        sharp = [] if tokenizer.prefixes else tokenizer.sharp_specials
        self._marks = sorted(sharp, key=len, reverse=True)
        marks = [token for token in self._marks if token in frame]
        self._cut = re.compile("(" + "|".join(map(re.escape, marks)) + ")") if marks else None

    def start(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> Batch:
        """Begin with a batch; the caller goes on while it is tokenised."""
        if self._cut is None:
            whole: list[list[str | int]] = [[i] for i in range(len(texts))]
            return Batch(whole, self._thread.submit(self._tokenised, texts, continues), self._known)
        fresh: list[str] = []
        parts = [self._sections(text, fresh) for text in texts]
        coming = self._thread.submit(self._tokenised, fresh, None) if fresh else None
        return Batch(parts, coming, self._known)

    def _tokenised(self, texts: Sequence[str], continues: Sequence[bool] | None) -> Pieces:
        joined = "".join(texts)
        mark = next((m for m in self._marks if m not in joined), None)
        if mark is None or len(texts) < GROUPS:
            return Whole(self.tokenizer, texts, continues)
        return Strung(self.tokenizer, texts, mark)

    def _sections(self, text: str, fresh: list[str]) -> list[str | int]:
        """A text as sections already known and places in `fresh`, to which the others are added."""
        assert self._cut is not None, "there are special tokens to cut at"
        found: list[str | int] = []
        known = self._known
        for section in self._cut.split(text):
            if section in known:
                found.append(section)
            elif section in self._seen:
                known[section] = self.tokenizer.encode(section)
                found.append(section)
            elif section:
                if len(self._seen) < REMEMBERED and len(section) < LONGEST:
                    self._seen.add(section)
                found.append(len(fresh))
                fresh.append(section)
        return found

    def close(self) -> None:
        """Let the background thread go."""
        self._thread.shutdown()
