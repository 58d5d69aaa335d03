"""Many texts to ids at once, in the background, tokenising what recurs only once.

Special tokens cut a text into sections that are tokenised apart from each other, so a template's own sections (its system
prompt, the assistant's header) need not be tokenised again for every row. Results equal tokenising each text whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tuner.data.tokens import Tokenizer

Ids = list[int]
REMEMBERED = 1024
"""Sections remembered: those met first, which the template's are."""
LONGEST = 4096


class Batch:
    """Texts on their way to ids."""

    def __init__(self, parts: list[list[str | int]], coming: Future[list[Any]] | None, known: dict[str, Ids]):
        self._parts = parts
        self._coming = coming
        self._known = known

    def ids(self) -> list[Ids]:
        """The ids of each text."""
        found: list[Any] = [e.ids for e in self._coming.result()] if self._coming else []
        known = self._known
        return [
            [i for part in parts for i in (known[part] if isinstance(part, str) else found[part])]
            for parts in self._parts
        ]

    def counts(self) -> list[int]:
        """How many ids each text has; quicker than the ids."""
        found = [len(e) for e in self._coming.result()] if self._coming else []
        known = self._known
        return [
            sum(len(known[part]) if isinstance(part, str) else found[part] for part in parts)
            for parts in self._parts
        ]


class Batcher:
    """Starts batches for one tokenizer; `frame` is a text in which the template's special tokens stand."""

    def __init__(self, tokenizer: Tokenizer, frame: str):
        self.tokenizer = tokenizer
        self._known: dict[str, Ids] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        marks = [t for t in tokenizer.sharp_specials if t in frame]
        longest_first = sorted(marks, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if marks else None

    def start(self, texts: Sequence[str], continues: Sequence[bool] | None = None) -> Batch:
        """Begin with a batch; the caller goes on while it is tokenised."""
        if self._cut is None or self.tokenizer.prefixes:
            whole: list[list[str | int]] = [[i] for i in range(len(texts))]
            return Batch(whole, self._thread.submit(self.tokenizer.encodings, texts, continues), self._known)
        fresh: list[str] = []
        parts = [self._sections(text, fresh) for text in texts]
        coming = self._thread.submit(self.tokenizer.encodings, fresh) if fresh else None
        return Batch(parts, coming, self._known)

    def _sections(self, text: str, fresh: list[str]) -> list[str | int]:
        """A text as sections already known and places in `fresh`, to which the others are added."""
        assert self._cut is not None, "there are special tokens to cut at"
        found: list[str | int] = []
        for section in self._cut.split(text):
            if section in self._known:
                found.append(section)
            elif len(self._known) < REMEMBERED and 0 < len(section) < LONGEST:
                self._known[section] = self.tokenizer.encode(section)
                found.append(section)
            elif section:
                found.append(len(fresh))
                fresh.append(section)
        return found

    def close(self) -> None:
        """Let the background thread go."""
        self._thread.shutdown()
