"""Data sets read row by row through one encoder into one tally, tokenising a block of rows while the next is read."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tuner.config.config import Config
from tuner.data.batches import Batch, Batcher
from tuner.data.drafts import Draft
from tuner.data.encode import Encoded, Encoder
from tuner.data.entries import Entry
from tuner.data.files import Records, records
from tuner.data.formats import Dropped, convert
from tuner.data.mix import evenly, sample
from tuner.data.pages import Pages
from tuner.data.report import Place, Progress, Tally
from tuner.data.rows import Rows
from tuner.data.tokens import use_threads
from tuner.text.message import message

Placed = list[tuple[Place, Draft]]


@dataclass
class ReadSet:
    """A data set after reading: its encoded rows (none when only counted) and how many were kept."""

    entry: Entry
    rows: Rows
    count: int = 0


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Look for reference cycles less often: rows have none, and looking costs a fifth of the time of reading them."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], 100_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Source:
    """The raw rows of a data set with their places; `share` says how much of it has been read, 0 to 1.

    `findings` are what the ends of its files showed: a row's place, what, and the particulars. With `spread` only so many
    rows are given, evenly from the whole set; `there` then says how many there are.
    """

    def __init__(self, entry: Entry, config: Config, spread: int = 0):
        self.entry = entry
        self.spread = spread if entry.local else 0
        self.most = config.max_samples
        self.seed = config.seed
        self.streaming = config.streaming
        self.samples = None if config.streaming else entry.num_samples
        self.given = self.there = 0
        self.findings: list[tuple[Place, str, str]] = []
        self._files_done = 0
        self._file: Records | None = None

    def __iter__(self) -> Iterator[tuple[Place, Any]]:
        for row in islice(self._chosen(), self.most):
            self.given += 1
            yield row

    def _chosen(self) -> Iterator[tuple[Place, Any]]:
        if self.spread:
            return self._spread()
        return self._sampled() if self.samples else self._all()

    @property
    def share(self) -> float:
        """How much has been read."""
        if self.spread:
            return self.given / self.spread
        files = len(self.entry.files()) or 1
        read = (self._files_done + (self._file.share if self._file else 0.0)) / files
        return max(read, self.given / self.most) if self.most else read

    def _spread(self) -> Iterator[tuple[Place, Any]]:
        with closing(Pages(self.entry.files())) as pages:
            self.there = min(pages.count(), self.most or sys.maxsize)
            for number in evenly(self.there, self.spread, self.seed).tolist():
                row = pages.row(number)
                yield Place(self.entry.name, row.file, row.line), row.record

    def _sampled(self) -> Iterator[tuple[Place, Any]]:
        whole = list(self._all())
        for index in sample(len(whole), self.samples or 0, self.seed) if whole else ():
            yield whole[index]

    def _all(self) -> Iterator[tuple[Place, Any]]:
        entry = self.entry
        if not entry.local:
            from tuner.data.hub import hub_records

            for number, record in hub_records(entry, self.streaming):
                yield Place(entry.name, entry.source, number), record
            return
        for path in entry.files():
            self._file = records(path)
            name, file = entry.name, path.name
            for line, record in self._file:
                yield Place(name, file, line), record
            self.findings += [(Place(name, file, at), what, said) for at, what, said in self._file.findings]
            self._file, self._files_done = None, self._files_done + 1


class Reader:
    """Reads sets; without `keep` rows are counted and let go. With `spread` only so many rows of each set are read."""

    def __init__(
        self, encoder: Encoder, progress: Progress | None = None, keep: bool = True, spread: int = 0
    ):
        self.encoder = encoder
        self.config = encoder.config
        self.progress = progress
        self.keep = keep
        self.spread = spread
        use_threads(self.config.preprocessing_num_workers)
        frame = encoder.frame()
        marks = [token for token in encoder.tokenizer.specials if token in frame]
        self.tally = Tally(encoder.config, encoder.template.name, marks)
        self._frame = frame

    def read(self, entry: Entry, done: float = 0.0, weight: float = 1.0) -> ReadSet:
        """One data set; it is `weight` of the work of which `done` is done. Raises ConfigError."""
        found = ReadSet(entry, Rows())
        source = Source(entry, self.config, self.spread)
        with _seldom_collecting():
            for encoded in self.encoded(source):
                found.count += 1
                if self.keep:
                    found.rows.append(encoded.row)
                if self.progress and found.count % self.config.preprocessing_batch_size == 0:
                    told = message("doing.rows_read", name=entry.name, done=source.given)
                    self.progress(done + weight * source.share, told)
        self.tally.report.there += source.there or source.given
        return found

    def encoded(self, source: Source) -> Iterator[Encoded]:
        """The rows that are used, encoded; all are counted."""
        rows = iter(source)
        pending: tuple[Placed, Batch] | None = None
        with closing(Batcher(self.encoder.tokenizer, self._frame)) as batcher:
            while block := list(islice(rows, self.config.preprocessing_batch_size)):
                drafts = list(self._drafted(block, source.entry))
                texts = [text for _, draft in drafts for text in draft.texts]
                batch = batcher.start(texts, self._continues(drafts))
                if pending:  # the block before, tokenised while this one was read
                    yield from self._finished(*pending)
                pending = drafts, batch
            if pending:
                yield from self._finished(*pending)
        for place, what, detail in source.findings:
            self.tally.find(what, place, detail)

    def _drafted(self, block: Sequence[tuple[Place, Any]], entry: Entry) -> Iterator[tuple[Place, Draft]]:
        for place, record in block:
            self.tally.see(place)
            row = convert(record, entry, self.encoder.rows == "prompts")
            draft = row if isinstance(row, Dropped) else self.encoder.draft(row)
            if isinstance(draft, Dropped):
                self.tally.drop(place, draft)
            else:
                yield place, draft

    def _continues(self, drafts: Placed) -> list[bool] | None:
        if not self.encoder.tokenizer.prefixes:
            return None
        return [flag for _, draft in drafts for flag in self.encoder.continues(draft.texts)]

    def _finished(self, drafts: Placed, batch: Batch) -> Iterator[Encoded]:
        """A block's rows; those that are only counted mostly need no ids."""
        counts = [] if self.keep else batch.counts()
        at = 0
        for place, draft in drafts:
            end = at + len(draft.texts)
            counted = None if self.keep else self.encoder.count(draft, counts[at:end])
            encoded = counted or self.encoder.fit(draft, [batch.ids(i) for i in range(at, end)])
            at = end
            if isinstance(encoded, Dropped):
                self.tally.drop(place, encoded)
            else:
                self.tally.keep(place, encoded, draft)
                yield encoded
