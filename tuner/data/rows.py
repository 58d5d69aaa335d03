"""Encoded rows kept as flat arrays: four bytes a token, however many rows, and a dict of plain lists at each index."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tuner.text.lookup import tr

Ints = NDArray[np.int64]


class Column:
    """Lists of ids of different lengths, one behind the other."""

    def __init__(self) -> None:
        self.flat: Any = array("i")
        self.ends: Any = array("q", [0])

    def append(self, ids: Iterable[int]) -> None:
        self.flat.extend(ids)
        self.ends.append(len(self.flat))

    def __getitem__(self, index: int) -> list[int]:
        ids: list[int] = self.flat[self.ends[index] : self.ends[index + 1]].tolist()
        return ids

    def lengths(self) -> Ints:
        ends: Ints = np.frombuffer(self.ends, dtype=np.int64)
        return ends[1:] - ends[:-1]


class Rows(Sequence[dict[str, Any]]):
    """Rows of one stage, all with the same keys. Lists of ids go into columns, anything else is kept as it is."""

    def __init__(self) -> None:
        self._columns: dict[str, Column] = {}
        self._flags: dict[str, list[Any]] = {}
        self._order: Ints | None = None
        self._count = 0

    def append(self, row: dict[str, Any]) -> None:
        """Add a row. The first one decides which keys there are."""
        if not self._count:
            self._columns = {k: Column() for k, v in row.items() if isinstance(v, list)}
            self._flags = {k: [] for k in row if k not in self._columns}
        for name, column in self._columns.items():
            column.append(row[name])
        for name, flags in self._flags.items():
            flags.append(row[name])
        self._count += 1

    def extend(self, other: Rows) -> None:
        """Add all rows of another set with the same keys."""
        if not len(other):
            return
        if self._count and set(self.keys) != set(other.keys):
            raise ValueError(tr("the rows have other keys than those before"))
        if not self._count:
            self._columns = {name: Column() for name in other._columns}
            self._flags = {name: [] for name in other._flags}
        for row in other:
            self.append(row)

    def take(self, order: Iterable[int]) -> Rows:
        """These rows in this order, sharing the ids with the rows they come from."""
        view = Rows()
        view._columns, view._flags, view._count = self._columns, self._flags, self._count
        chosen = np.fromiter(order, dtype=np.int64)
        view._order = chosen if self._order is None else self._order[chosen]
        return view

    def without(self, name: str) -> Rows:
        """The same rows without what they have under a name that holds no ids, sharing the rest."""
        view = Rows()
        view._columns, view._order, view._count = self._columns, self._order, self._count
        view._flags = {n: f for n, f in self._flags.items() if n != name}
        return view

    def any(self, name: str) -> bool:
        """Whether a row has something under a name that holds no ids."""
        found = self._flags.get(name, ())
        return any(found) if self._order is None else any(found[i] for i in self._order if found)

    def save(self, folder: Path) -> None:
        """Write them to a new folder, from where other processes of this machine read the same memory."""
        folder.mkdir(parents=True)
        for name, column in self._columns.items():
            np.save(folder / f"{name}.ids.npy", np.asarray(column.flat, dtype=np.int32))
            np.save(folder / f"{name}.ends.npy", np.asarray(column.ends, dtype=np.int64))
        if self._order is not None:
            np.save(folder / "order.npy", self._order)
        about = {"columns": list(self._columns), "flags": self._flags, "count": self._count}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def saved(cls, folder: Path) -> Rows:
        """What `save` wrote; rows can be read and taken, and none added."""
        about, rows = json.loads((folder / "about.json").read_text(encoding="utf-8")), cls()
        for name in about["columns"]:
            rows._columns[name] = column = Column()
            column.flat = np.load(folder / f"{name}.ids.npy", mmap_mode="r", allow_pickle=False)
            column.ends = np.load(folder / f"{name}.ends.npy", mmap_mode="r", allow_pickle=False)
        if (folder / "order.npy").exists():
            rows._order = np.load(folder / "order.npy", allow_pickle=False)
        flags: dict[str, list[Any]] = about["flags"]
        # JSON has lists alone, and lists are ids here.
        rows._flags = {n: [tuple(f) if isinstance(f, list) else f for f in fs] for n, fs in flags.items()}
        rows._count = about["count"]
        return rows

    @property
    def keys(self) -> list[str]:
        """The names in each row."""
        return [*self._columns, *self._flags]

    def lengths(self, name: str) -> Ints:
        """How many ids each row has under a name."""
        lengths = self._columns[name].lengths()
        return lengths if self._order is None else lengths[self._order]

    def __len__(self) -> int:
        return self._count if self._order is None else len(self._order)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        at = place if self._order is None else int(self._order[place])
        return {n: c[at] for n, c in self._columns.items()} | {n: f[at] for n, f in self._flags.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))
