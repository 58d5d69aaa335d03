"""Any page of a file, soon: an index of where rows begin is made in the background while the first page is shown."""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.config.knobs import ConfigError, Problem
from tuner.data.files import Broken, RowReader, layout
from tuner.data.spans import Spans, spans
from tuner.data.tables import arrow_batches, broken_table, table_rows
from tuner.text.lookup import tr

HELD = 256 << 20
"""The largest group of a parquet file that is held in memory, in bytes once unpacked."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in its file: its number (from 0), file, line or row number, and what it holds."""

    number: int
    file: str
    line: int
    record: dict[str, Any] | Broken


@dataclass
class _Block:
    """Rows that are indexed together."""

    file: int
    count: int
    spans: Spans | None = None
    group: int = 0


class Pages:
    """Pages of one file or of several, one behind the other. Safe to use from several threads.

    Text files are scanned once by a background thread (24 bytes a row); parquet and arrow know their rows.
    Raises ConfigError when a file cannot be read at all.
    """

    def __init__(self, path: Path | Sequence[Path]):
        self._readers: list[RowReader | None] = []
        self.files = [path] if isinstance(path, Path) else list(path)
        self.kinds = [layout(p) for p in self.files]
        self._readers = [
            None if k in ("parquet", "arrow") else RowReader(p, k)
            for p, k in zip(self.files, self.kinds, strict=True)
        ]
        self._blocks: list[_Block] = []
        self._ends: list[int] = []  # rows up to and with each block
        self._tables: dict[tuple[int, int], _Group] = {}
        self._grown = threading.Condition()
        self._done = False
        self._failed: Exception | None = None
        threading.Thread(target=self._index, daemon=True, name="index").start()

    def close(self) -> None:
        """Let the files go."""
        for reader in self._readers:
            if reader is not None:
                reader.close()
        self._readers = [None] * len(self._readers)

    def __del__(self) -> None:
        self.close()

    @property
    def rows(self) -> int | None:
        """How many rows there are, None while they are still being counted."""
        return self.counted if self._done else None

    @property
    def counted(self) -> int:
        """How many rows have been found so far."""
        return self._ends[-1] if self._ends else 0

    def count(self) -> int:
        """How many rows there are; waits until all are counted."""
        with self._grown:
            self._grown.wait_for(lambda: self._done)
        if self._failed:
            raise self._failed
        return self.counted

    def sizes(self) -> NDArray[np.int64]:
        """The bytes of each row found so far; empty for parquet and arrow, whose rows have no bytes of their own."""
        found = [b.spans.ends - b.spans.starts for b in self._blocks if b.spans is not None]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def page(self, number: int, size: int) -> list[Row]:
        """The rows of page `number` (from 0), fewer or none behind the end. Waits for the index to get there."""
        first = number * size
        self._wait(first + size)
        return [self._row(i) for i in range(first, min(first + size, self.counted))]

    def row(self, number: int) -> Row:
        """One row. Raises ConfigError when there are not that many."""
        self._wait(number + 1)
        if not 0 <= number < self.counted:
            rest = (
                tr("the rows are 0 to {counted}", counted=self.counted - 1)
                if self.counted
                else tr("there are none at all")
            )
            raise ConfigError(
                [Problem("row", tr("There is no row {number}; {rest}.", number=number, rest=rest))]
            )
        return self._row(number)

    def at(self, file: str, line: int) -> int | None:
        """The number of the row that stands at a line of a file (or at a place of a table); None where none does."""
        of_file = [i for i, path in enumerate(self.files) if path.name == file]
        if not of_file:
            return None
        low, high = self._reach(of_file[0])
        found = bisect_right(range(low, high), line, key=lambda i: self._row(i).line) + low - 1
        return found if found >= low else None

    def _reach(self, file: int) -> tuple[int, int]:
        """The numbers of a file's rows: the first, and the one behind the last."""
        before = sum(block.count for block in self._blocks if block.file < file)
        return before, before + sum(block.count for block in self._blocks if block.file == file)

    def find(self, word: str, most: int, seconds: float) -> tuple[list[Row], int]:
        """The first rows in which a text stands, upper or lower case, and how many rows were looked at in that time."""
        until, number = time.monotonic() + seconds, 0
        within_text = json.dumps(word, ensure_ascii=False)[
            1:-1
        ].lower()  # quotes and backslashes as JSON has them
        wanted = {word.lower(), within_text}
        found: list[Row] = []
        while number < self.counted and len(found) < most and time.monotonic() < until:
            row = self._row(number)
            told = row.record if isinstance(row.record, dict) else row.record.excerpt
            text = json.dumps(told, ensure_ascii=False, default=str).lower()
            if any(one in text for one in wanted):
                found.append(row)
            number += 1
        return found, number

    def _wait(self, rows: int) -> None:
        with self._grown:
            self._grown.wait_for(lambda: self._done or self.counted >= rows)
        if self._failed:
            raise self._failed

    def _index(self) -> None:
        try:
            for i, path in enumerate(self.files):
                self._index_file(i, path)
        except Exception as error:  # handed to whoever asks for a page
            self._failed = error
        with self._grown:
            self._done = True
            self._grown.notify_all()

    def _index_file(self, file: int, path: Path) -> None:
        kind, reader = self.kinds[file], self._readers[file]
        if reader is None:
            for group, count in enumerate(_table_counts(path, kind)):
                self._grow(_Block(file, count, group=group))
            return
        for block in spans(path, kind):
            if kind == "csv" and reader.header is None and len(block.starts):
                reader.read_header(int(block.starts[0]), int(block.ends[0]))
                block = Spans(block.starts[1:], block.ends[1:], block.lines[1:])
            if len(block.starts):
                self._grow(_Block(file, len(block.starts), block))

    def _grow(self, block: _Block) -> None:
        with self._grown:
            self._blocks.append(block)
            self._ends.append(self.counted + block.count)
            self._grown.notify_all()

    def _row(self, number: int) -> Row:
        at = bisect_right(self._ends, number)
        block = self._blocks[at]
        inside = number - (self._ends[at] - block.count)
        path = self.files[block.file]
        reader = self._readers[block.file]
        if block.spans is None or reader is None:
            before = sum(b.count for b in self._blocks[:at] if b.file == block.file)
            return Row(number, path.name, before + inside + 1, self._table(block)[inside])
        start, end, line = (int(a[inside]) for a in (block.spans.starts, block.spans.ends, block.spans.lines))
        return Row(number, path.name, line, reader.read(start, end))

    def _table(self, block: _Block) -> _Group:
        """The rows of one group of a parquet or arrow file; the last few groups are kept."""
        key = (block.file, block.group)
        if key not in self._tables:
            while len(self._tables) >= 2:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = _Group(self.files[block.file], self.kinds[block.file], block.group)
        return self._tables[key]


class _Group:
    """One row group or record batch, made into rows only where they are looked at.

    A parquet group larger than `HELD` once unpacked is gone through from its start at each look, never held.
    """

    def __init__(self, path: Path, kind: str, group: int):
        self.path, self.kind, self.group = path, kind, group
        self.table: Any = None
        if kind == "arrow":
            self.table = next(b for i, (b, _) in enumerate(arrow_batches(path)) if i == group)
            return
        from pyarrow import parquet

        self.file = parquet.ParquetFile(path)
        if self.file.metadata.row_group(group).total_byte_size <= HELD:
            self.table = self.file.read_row_group(group)

    def __getitem__(self, index: int) -> dict[str, Any] | Broken:
        found = table_rows(self._slice(index))
        record: dict[str, Any] | Broken = (
            found[0] if found else Broken(tr("the file promises this row and lacks it"))
        )
        return record

    def _slice(self, index: int) -> Any:
        if self.table is not None:
            return self.table.slice(index, 1)
        seen = 0
        for batch in self.file.iter_batches(batch_size=1000, row_groups=[self.group]):
            if index < seen + batch.num_rows:
                return batch.slice(index - seen, 1)
            seen += batch.num_rows
        return batch.slice(0, 0)


def _table_counts(path: Path, kind: str) -> list[int]:
    """How many rows each group of a parquet or arrow file has."""
    import pyarrow as pa

    try:
        if kind == "arrow":
            return [batch.num_rows for batch, _ in arrow_batches(path)]
        from pyarrow import parquet

        about = parquet.ParquetFile(path).metadata
        return [about.row_group(i).num_rows for i in range(about.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise broken_table(path, kind, error) from error
