"""Rows out of files, one at a time: json, jsonl, csv, tsv, parquet, arrow, txt. Memory stays bounded whatever they hold.

Text files are cut into rows by `tuner.data.spans`, and each row is then read and parsed by itself. So a broken row is one
broken row with its line number, and no file is ever loaded whole. Tables are read by `tuner.data.tables`.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tuner.config.knobs import ConfigError, Problem
from tuner.data.spans import Csv, Layout, Spans, delimiter_of, scanner, spans
from tuner.data.tables import promised, table_batches
from tuner.text.lookup import ended, tr

TYPES = ("json", "jsonl", "csv", "tsv", "parquet", "arrow", "txt")
LONGEST_ROW = 16 << 20
"""A row longer than this many bytes is broken: nobody reads it, and one such row would fill the memory."""
LONGEST_FIRST_LINE = 1 << 20
"""How JSON lies in a file is told from this many bytes where it has no line end before."""
MOST_COLUMNS = 10_000
LARGEST_LOAD = 2 * LONGEST_ROW
"""Rows that lie together are read in one go up to this many bytes."""
EXCERPT = 200


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be read: why, and how it begins."""

    reason: str
    excerpt: str = ""


def layout(path: Path) -> Layout:
    """How rows lie in a file, told from its name and first bytes. Raises ConfigError for what cannot be read."""
    kind = path.suffix.lstrip(".").lower()
    if kind not in TYPES:
        raise _unreadable(path, tr("is not one of {types}", types=", ".join(TYPES)))
    with path.open("rb") as file:
        head = file.read(1 << 16)
        if b"\n" not in head:
            head += file.read(LONGEST_FIRST_LINE)
    if kind in ("parquet", "arrow"):
        return kind  # type: ignore[return-value]
    refuse_encoding(path, head)
    if kind in ("csv", "tsv"):
        return "csv"
    return "txt" if kind == "txt" else _json_layout(head.removeprefix(b"\xef\xbb\xbf").strip())


def refuse_encoding(path: Path, head: bytes) -> None:
    """Raise ConfigError for a file that is no UTF-8 text: UTF-16, UTF-32, compressed or binary."""
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise _unreadable(path, tr("is compressed; unpack it first"))
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (b"\0" in head[:4] and head[:4].strip(b"\0")):
        raise _unreadable(path, tr("is UTF-16 or UTF-32 text; save it as UTF-8"))
    if b"\0" in head:
        raise _unreadable(path, tr("holds NUL bytes, so it is no text"))


def _json_layout(head: bytes) -> Layout:
    """How JSON lies in a file, told from its first bytes: one list, an object a line, or objects over several lines."""
    if head.startswith(b"["):
        return "array"
    first, *rest = head.splitlines() or [b""]  # of bytes, so that no character of a text ends a line
    if not head.startswith(b"{") or not rest or _object(first.decode("utf-8", "replace").strip()) is not None:
        return "lines"
    if _opens_with_object(head.decode("utf-8", "replace")):
        return "objects"
    # The first row is broken, or longer than what was read of it. Rows of their own begin at the margin.
    whole = (_object(line.decode("utf-8", "replace").strip()) for line in rest if line.startswith(b"{"))
    return "lines" if any(row is not None for row in whole) else "objects"


def _unreadable(path: Path, said: str) -> ConfigError:
    return ConfigError([Problem("dataset", ended(f"{path.name} {said}"))])


# --- parsing one row -----------------------------------------------------------------------------------------------


class RowReader:
    """Reads rows of one text file by their place; what is not a row comes back as Broken."""

    def __init__(self, path: Path, kind: Layout):
        self.path = path
        self.kind = kind
        self.file = os.open(path, os.O_RDONLY)
        self.header: list[str] | None = None
        self.delimiter = delimiter_of(path) if kind == "csv" else ","
        self._loaded = b""
        self._loaded_at = 0
        self._ascii: str | None = None

    def close(self) -> None:
        os.close(self.file)

    def load(self, start: int, end: int) -> None:
        """Read these bytes at once: rows among them are then read from memory. Nothing happens when there are too many."""
        self._loaded = os.pread(self.file, end - start, start) if end - start <= LARGEST_LOAD else b""
        self._loaded_at = start
        plain = self.kind in ("array", "objects", "lines") and self._loaded.isascii()
        self._ascii = self._loaded.decode("ascii") if plain else None

    def raw(self, start: int, end: int) -> bytes:
        """These bytes of the file."""
        at = start - self._loaded_at
        if at >= 0 and end - self._loaded_at <= len(self._loaded):
            return self._loaded[at : end - self._loaded_at]
        return os.pread(self.file, end - start, start)

    def read(self, start: int, end: int) -> Any:
        """The row at these bytes: a dict, or Broken."""
        if end - start > LONGEST_ROW:
            head = os.pread(self.file, EXCERPT, start).decode("utf-8", "replace")
            return Broken(tr("the row is longer than {longest_row} MB", longest_row=LONGEST_ROW >> 20), head)
        if self._ascii is not None and start >= self._loaded_at:
            found = _object(self._ascii[start - self._loaded_at : end - self._loaded_at])
            if found is not None:
                return found
        return self.parse(self.raw(start, end))

    def parse(self, raw: bytes) -> Any:
        """One row from its bytes."""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            return Broken(
                tr("not UTF-8 at byte {start} of the row", start=error.start),
                raw[:EXCERPT].decode("utf-8", "replace"),
            )
        if self.kind == "txt":
            return {"text": text.rstrip("\r\n")}
        if self.kind == "csv":
            return self._csv(text)
        return parse_json(text.removeprefix("\ufeff"))  # files that were joined have marks within

    def _csv(self, text: str) -> Any:
        try:
            rows = list(csv.reader((text,), delimiter=self.delimiter))
        except csv.Error as error:
            return Broken(tr("not csv: {error}", error=error), text[:EXCERPT])
        assert self.header is not None, "the header is read first"
        if len(rows) != 1:
            return Broken(tr("{number} rows of csv where one was expected", number=len(rows)), text[:EXCERPT])
        fields = rows[0]
        if len(fields) != len(self.header):
            return Broken(
                tr(
                    "{number} fields, and the header has {number_2}",
                    number=len(fields),
                    number_2=len(self.header),
                ),
                text[:EXCERPT],
            )
        return dict(zip(self.header, fields, strict=True))

    def read_header(self, start: int, end: int) -> None:
        """Take a csv file's first row as the names of its columns."""
        text = os.pread(self.file, min(end - start, LONGEST_ROW), start).decode("utf-8", "replace")
        self.header = next(csv.reader((text,), delimiter=self.delimiter))
        if len(self.header) > MOST_COLUMNS:
            raise _unreadable(
                self.path,
                tr(
                    "has {number:,} columns; keep those that are used, {most_columns:,} at most",
                    number=len(self.header),
                    most_columns=MOST_COLUMNS,
                ),
            )


csv.field_size_limit(LONGEST_ROW)
_decode = json.JSONDecoder().raw_decode


def _opens_with_object(text: str) -> bool:
    """Whether a whole JSON object stands at a text's begin, whatever follows."""
    try:
        return isinstance(_decode(text)[0], dict)
    except (ValueError, RecursionError):
        return False


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is from end to end; None for anything else, whatever it is."""
    try:
        record, stop = _decode(text)
    except (ValueError, RecursionError):
        return None
    fits = stop == len(text) and type(record) is dict and len(record) <= MOST_COLUMNS
    return record if fits else None


def parse_json(text: str) -> Any:
    """A dict from JSON text, or Broken."""
    try:
        record = json.loads(text)
    except RecursionError:
        return Broken(tr("nested too deeply"), text[:EXCERPT])
    except ValueError as error:
        said = getattr(error, "msg", str(error))
        place = tr(" at character {pos}", pos=error.pos) if isinstance(error, json.JSONDecodeError) else ""
        return Broken(tr("not JSON: {said}{place}", said=said, place=place), text[:EXCERPT])
    if not isinstance(record, dict):
        return Broken(tr("a row is an object, this is {name}", name=type(record).__name__), text[:EXCERPT])
    if len(record) > MOST_COLUMNS:
        return Broken(
            tr(
                "the row has {number:,} keys, {most_columns:,} at most are read",
                number=len(record),
                most_columns=MOST_COLUMNS,
            ),
            text[:EXCERPT],
        )
    return record


# --- every row of a file -------------------------------------------------------------------------------------------


class Records:
    """The rows of one file in order, as (line or row number, dict or Broken). `share` says how much has been read.

    `findings` are what the file's end showed to be worth knowing of rows before it: their line, what, and the particulars.
    """

    def __init__(self, path: Path):
        self.path = path
        self.kind = layout(path)
        self.share = 0.0
        self.findings: list[tuple[int, str, str]] = []

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        if self.kind in ("parquet", "arrow"):
            return self._table()
        return self._text()

    def _text(self) -> Iterator[tuple[int, Any]]:
        size = max(self.path.stat().st_size, 1)
        reader, scan = RowReader(self.path, self.kind), scanner(self.path, self.kind)
        seen = line = 0
        try:
            for block in spans(self.path, self.kind, scan):
                if not len(block.ends):
                    continue
                yield from self._block(reader, block, seen)
                seen, line = int(block.ends[-1]), int(block.lines[-1])
                self.share = seen / size
            yield from self._end(reader, seen)
            if isinstance(scan, Csv) and scan.inside:
                said = tr("a quote opens a field that takes in the rest of the file")
                self.findings.append((line, tr("quote that never closes"), said))
        finally:
            reader.close()

    def _block(self, reader: RowReader, block: Spans, seen: int) -> Iterator[tuple[int, Any]]:
        """Rows that were found together; `seen` is where the one before them ends."""
        reader.load(seen, int(block.ends[-1]))
        apart = self.kind in ("array", "objects")
        read = reader.read
        for start, end, line in _triples(block):
            if self.kind == "csv" and reader.header is None:
                reader.read_header(start, end)
                continue
            if apart and start - seen > 1:
                yield from self._stray(reader, seen, start, line)
            yield line, read(start, end)
            seen = end

    def _stray(self, reader: RowReader, seen: int, start: int, line: int) -> Iterator[tuple[int, Broken]]:
        """What stands between two rows of JSON, if it is more than a comma."""
        between = reader.raw(seen, min(start, seen + LONGEST_ROW))
        if between == b",\n":
            return
        between = between.removeprefix(b"\xef\xbb\xbf")
        opening = b"[" if self.kind == "array" else b""
        if between.strip() not in ((opening,) if seen == 0 else (b",", b"")):
            yield (
                line,
                Broken(
                    tr("text between two rows that is no row"), between[:EXCERPT].decode("utf-8", "replace")
                ),
            )

    def _end(self, reader: RowReader, seen: int) -> Iterator[tuple[int, Broken]]:
        """What stands behind the last row of JSON, if it is more than the list's end."""
        if self.kind not in ("array", "objects"):
            return
        rest = os.pread(reader.file, EXCERPT, seen).removeprefix(b"\xef\xbb\xbf").strip()
        ended = rest.lstrip(b"[").strip() == b"]" if self.kind == "array" else rest in (b"", b",")
        if not ended:
            cut = tr("the file ends inside its list; it may have been cut off")
            yield 0, Broken(tr("text after the last row") if rest else cut, rest.decode("utf-8", "replace"))

    def _table(self) -> Iterator[tuple[int, Any]]:
        number = 0
        for batch, share in table_batches(self.path, self.kind):
            for record in batch:
                number += 1
                yield number, record
            self.share = share
        said = promised(self.path) if self.kind == "parquet" else number
        if said != number:
            yield (
                number + 1,
                Broken(tr("the file promises {said:,} rows and holds {number:,}", said=said, number=number)),
            )


def _triples(block: Spans) -> Iterator[tuple[int, int, int]]:
    return zip(block.starts.tolist(), block.ends.tolist(), block.lines.tolist(), strict=True)


def records(path: Path) -> Records:
    """Every row of a file in order. Raises ConfigError when the file as a whole cannot be read."""
    return Records(path)


def first_records(path: Path, count: int) -> list[dict[str, Any]]:
    """Those of the first `count` rows that can be read."""
    return [record for _, record in islice(records(path), count) if isinstance(record, dict)]
