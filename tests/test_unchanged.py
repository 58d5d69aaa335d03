"""A database that nobody changed is not asked twice, and whatever anybody changes shows at once."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scale import world

from tuner.tracking import runs, store, unchanged
from tuner.tracking.runs import RunFilter
from tuner.tracking.sqlite_reader import SqliteReader

FIRST, SECOND = world.run_id(0), world.run_id(5)
BETA = RunFilter(text="beta")


@pytest.fixture
def file(home: Path) -> Path:
    world.fill_runs(11)
    found = store.database()
    assert found is not None
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the file was asked."""
    said: list[str] = []
    ask = SqliteReader._ask

    def counted(self: SqliteReader, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        said.append(sql)
        return ask(self, sql, values)

    monkeypatch.setattr(SqliteReader, "_ask", counted)
    return said


def write(file: Path, sql: str) -> None:
    with closing(sqlite3.connect(file)) as db, db:
        db.execute(sql)


def write_elsewhere(file: Path, sql: str) -> None:
    """From another process."""
    code = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute(sys.argv[2]); db.commit()"
    subprocess.run([sys.executable, "-c", code, str(file), sql], check=True)


def named(filter: RunFilter = BETA) -> set[str]:
    return {row.id for row in runs.list_runs(filter).items}


def test_an_unchanged_file_is_asked_once(file: Path, asked: list[str]) -> None:
    before = runs.list_runs(BETA).items
    assert asked and [row.id for row in before] == [SECOND]
    asked.clear()
    assert runs.list_runs(BETA).items == before and not asked
    write(file, "UPDATE runs SET end_time = end_time + 1 WHERE rowid = 1")
    assert runs.list_runs(BETA).items == before and asked


@pytest.mark.parametrize("writes", [write, write_elsewhere])
def test_what_anybody_writes_shows_at_once(file: Path, writes: Callable[[Path, str], None]) -> None:
    assert named() == {SECOND} and FIRST in named(RunFilter())
    writes(file, f"UPDATE runs SET name = 'beta too' WHERE run_uuid = '{FIRST}'")
    assert named() == {FIRST, SECOND}
    writes(file, f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = '{SECOND}'")
    assert named() == {FIRST} and named(RunFilter(text="beta", deleted=True)) == {SECOND}
    writes(file, f"UPDATE runs SET lifecycle_stage = 'active' WHERE run_uuid = '{SECOND}'")
    writes(file, f"INSERT INTO tags VALUES ('colour', 'red', '{SECOND}')")
    assert named(RunFilter(tags={"colour": "red"})) == {SECOND} and runs.choices().tags["colour"] == ("red",)
    writes(file, f"DELETE FROM tags WHERE key = 'colour' AND run_uuid = '{SECOND}'")
    assert not named(RunFilter(tags={"colour": "red"})) and "colour" not in runs.choices().tags
    writes(file, f"UPDATE runs SET status = 'FAILED' WHERE run_uuid = '{FIRST}'")
    assert FIRST in named(RunFilter(states=("failed",)))


def test_what_mlflow_writes_shows_at_once(file: Path) -> None:
    assert named() == {SECOND}
    client = store.open_store()
    client.update_run(FIRST, name="beta by hand")
    assert named() == {FIRST, SECOND}
    client.set_tag(FIRST, "colour", "red")
    assert named(RunFilter(tags={"colour": "red"})) == {FIRST}
    client.delete_run(FIRST)
    assert named() == {SECOND}
    client.restore_run(FIRST)
    assert named() == {FIRST, SECOND}


def test_another_file_in_its_place_is_another_one(file: Path, tmp_path: Path) -> None:
    assert named() == {SECOND}
    backup = tmp_path / "backup.db"
    with closing(sqlite3.connect(file)) as db, closing(sqlite3.connect(backup)) as copy:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.backup(copy)
    write(backup, f"UPDATE runs SET name = 'beta too' WHERE run_uuid = '{FIRST}'")
    Path(shutil.copy(backup, file.with_name("new.db"))).replace(file)
    assert named() == {FIRST, SECOND}
    write(backup, f"UPDATE runs SET name = 'gamma' WHERE run_uuid = '{SECOND}'")
    shutil.copyfile(backup, file)  # over it, as a person does who brings a backup back
    assert named() == {FIRST}


def test_a_file_that_was_forgotten_meanwhile_is_looked_at_anew(file: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        assert named() == {SECOND}
        for number in range(unchanged.MOST_FILES):
            other = tmp_path / f"{number}.db"
            write(other, "CREATE TABLE others(name)")
            unchanged.kept(other, "any", list)
        # into the log beside the file, which itself stays as it was: one more change, as its first look was one
        assert db.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        write(file, f"UPDATE runs SET name = 'beta too' WHERE run_uuid = '{FIRST}'")
        assert named() == {FIRST, SECOND}


def test_answers_in_memory_have_a_limit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged, "MOST_ROWS", 50)
    reader = SqliteReader(file)
    for word in map(str, range(40)):
        reader.search(RunFilter(text=word), [])
        reader.heads()
    assert sum(len(one.rows) + 1 for one in unchanged._answers.values()) <= 50
    assert len(unchanged._watches) <= unchanged.MOST_FILES
