"""Curves of any length: thinned once, in bounded memory, with nothing lost that one would see."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scale import world

from tuner.config.config import make
from tuner.runs import lines, points
from tuner.runs.curve import Curve, thinned
from tuner.runs.metrics import MetricsLog
from tuner.runs.run import Run
from tuner.tracking import history, outcome, runs, sqlite_reader, store

LONG = 60_000
"""Points of a curve that is longer than what is held of it, and worth keeping."""


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    points._held.clear()
    yield
    points._held.clear()


def one_by_one(pairs: list[tuple[int, float]]) -> dict[int, float]:
    """What a run that went on from checkpoints has measured in the end: a point replaces all from its step on."""
    kept: dict[int, float] = {}
    for step, value in pairs:
        kept = {s: v for s, v in kept.items() if s < step} | {step: value}
    return kept


VALUES = st.floats(-100, 100) | st.just(float("nan")) | st.just(float("inf"))


@given(
    pairs=st.lists(st.tuples(st.integers(0, 60), VALUES), min_size=1, max_size=60),
    cuts=st.sets(st.integers(1, 59)),
)
def test_a_short_curve_is_every_point_in_however_many_pieces(
    pairs: list[tuple[int, float]], cuts: set[int]
) -> None:
    curve, kept = Curve(), one_by_one(pairs)
    edges = sorted({0, len(pairs), *(cut for cut in cuts if cut < len(pairs))})
    for begin, end in zip(edges, edges[1:], strict=False):
        curve.add(
            np.array([s for s, _ in pairs[begin:end]], np.int64), np.array([v for _, v in pairs[begin:end]])
        )
    for steps, values in (curve.series(), curve.means()):
        assert steps.tolist() == list(kept)
        assert np.array_equal(values, list(kept.values()), equal_nan=True)


@given(
    seed=st.integers(0, 9), length=st.integers(100, 3000), piece=st.integers(1, 700), gap=st.integers(1, 9)
)
@settings(max_examples=examples(60))
def test_a_long_curve_keeps_the_extremes_of_each_stretch(
    seed: int, length: int, piece: int, gap: int
) -> None:
    random = np.random.default_rng(seed)
    steps = np.cumsum(random.integers(1, gap + 1, length)).astype(np.int64)
    values = random.normal(size=length)
    values[random.integers(0, length, length // 10)] = np.nan
    curve = Curve()
    for at in range(0, length, piece):
        curve.add(steps[at : at + piece], values[at : at + piece], most=64)
    assert len(curve.rows) <= 64
    found, kept = curve.series()
    assert found[0] == steps[0] and found[-1] == steps[-1] and (np.diff(found) > 0).all()
    where = np.searchsorted(steps, found)
    assert np.array_equal(steps[where], found) and np.array_equal(values[where], kept, equal_nan=True)
    for stretch in np.unique(steps // curve.width):
        own, there = values[steps // curve.width == stretch], kept[found // curve.width == stretch]
        if np.isfinite(own).any():
            assert np.nanmin(there) == np.nanmin(own) and np.nanmax(there) == np.nanmax(own)
    finite = values[np.isfinite(values)]
    assert curve.rows["sum"].sum() == pytest.approx(finite.sum()) and curve.rows["count"].sum() == len(finite)


@given(back=st.integers(0, 2999))
def test_what_came_after_a_checkpoint_is_gone_from_a_long_curve(back: int) -> None:
    steps = np.arange(3000)
    curve = Curve()
    curve.add(steps, np.ones(3000), most=64)
    curve.add(np.arange(back, back + 100), np.full(100, 5.0), most=64)
    found, values = curve.series()
    assert (values[found >= back] == 5).all() and (values[found < back] == 1).all()
    assert found[-1] == back + 99 and (np.diff(found) > 0).all()
    assert not back or found[found < back].max() >= back - 2 * curve.width


def one_by_one_read(block: bytes) -> dict[str, list[tuple[int, float]]]:
    """What every line says, told by json."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in block.decode().split("\n"):
        with suppress(ValueError, AttributeError, KeyError, OverflowError):
            row = json.loads(line)
            for name in row.keys() - {"step", "time"}:
                if isinstance(row[name], int | float) and not isinstance(row[name], bool):
                    found.setdefault(name, []).append((int(row["step"]), float(row[name])))
    return found


def said(block: bytes) -> dict[str, list[tuple[int, float]]]:
    return {n: list(zip(s.tolist(), v.tolist(), strict=True)) for n, s, v in lines.points(block)}


ODD = [
    '{"step": 3, "lo',
    "[1]",
    "7",
    "",
    '{"step": "x", "time": 1, "loss": 1}',
    '{"step": 4, "time": 1, "loss": "word"}',
    '{"step": 4, "time": 1, "loss": true}',
    '{"step": 4, "time": 1, "loss": null}',
    '{"step": 4, "time": 1, "loss": [1, 2]}',
    '{"step": 4, "time": 1, "los": 1}',
    '{"step": 4, "time": 1, "loss": 1',
    '{"step": 4, "time": 1, "loss": 1}}',
    '{"step": 4, "time": 1, "loss": }',
    '{"loss": 5, "step": 9, "time": 2}',
    '{"step":4,"time":1,"loss":2}',
    '{"step": 5, "time": 2, "a,b": 1, "Gr\\u00f6\\u00dfe": 2}',
    '{"step": 9007199254740993, "time": 2, "loss": 8}',
    '{"step": 1e400, "loss": 1}',
    '{"step": 6, "time": 2, "loss": 1e400, "x": 18446744073709551616}',
]


@given(
    odd=st.lists(st.tuples(st.integers(0, 6000), st.sampled_from(ODD)), max_size=20),
    values=st.lists(st.floats() | st.integers(-(2**70), 2**70), min_size=4, max_size=9),
)
@settings(max_examples=examples(15))
def test_lines_read_at_once_and_one_by_one_say_the_same(
    odd: list[tuple[int, str]], values: list[float]
) -> None:
    rows: list[dict[str, float]] = []
    for step in range(3000):
        value = values[step % len(values)]
        rows.append({"step": step, "time": step + 0.5, "loss": step / 7, "count": step, "any": value})
        # The same metric from lines of another shape, and one that went back to a checkpoint.
        rows.append({"step": step - 2000 * (step > 2500), "time": 1, "eval_loss": value, "loss": value})
    told = [json.dumps(row) for row in rows]
    for place, line in odd:
        told.insert(place, line)
    block = ("\n".join(told) + "\n").encode()
    assert len(block) > lines.MANY
    wanted, found = one_by_one_read(block), said(block)
    assert wanted.keys() == found.keys()
    for name, pairs in wanted.items():
        assert repr(found[name]) == repr(pairs)  # NaN is NaN


def test_all_that_a_shape_has_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand: list[bytes] = []
    read = lines._by_hand
    monkeypatch.setattr(
        lines, "_by_hand", lambda found: read([by_hand.append(one[1]) or one for one in found])
    )
    rows: list[dict[str, float]] = [{"step": s, "time": s / 3, "loss": 1e-5 * s} for s in range(5000)]
    rows += [{"step": s, "time": s, "loss": float("inf"), "system/gpu": -s} for s in range(5000)]
    block = b'{"step": 3, "lo\n' + "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert len(said(block)["loss"]) == 10_000
    assert by_hand == [b'{"step": 3, "lo']


def test_a_file_is_read_in_pieces_that_end_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BLOCK", 64)
    whole = b"".join(b"%d %s\n" % (n, b"x" * (n * 37 % 300)) for n in range(100))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(whole + b'{"step": 9, "time"')
    pieces = [bytes(piece) for piece in lines.blocks(path, 0)]
    assert b"".join(pieces) == whole and all(piece.endswith(b"\n") for piece in pieces) and len(pieces) > 20
    assert b"".join(map(bytes, lines.blocks(path, 5))) == whole[5:]


@cache
def long_text() -> str:
    rows = ({"step": s, "time": s, "loss": 9.5 if s == 777 else s % 101 / 101} for s in range(LONG))
    return "".join(json.dumps(row) + "\n" for row in rows)


def long_run(name: str = "long") -> Run:
    run = runs.create_run(make({"model_name_or_path": "m"}), name)
    run.metrics_path.write_text(long_text())
    return run


def test_a_run_that_learns_from_rewards_is_drawn_by_its_reward(home: Path) -> None:
    run = runs.create_run(make({"model_name_or_path": "m"}), "rewarded")
    rows = [{"step": s, "time": s, "loss": 0.0, "reward": s / 4} for s in range(4)]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert points.spark(run) == (0.0, 0.25, 0.5, 0.75)


def ended_run() -> Run:
    run = long_run()
    run.update(state="finished")
    points.tail(run)
    return run


def test_a_run_that_ended_is_read_once_for_all_processes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = long_run()
    points.tail(run)
    kept = run.folder / "curves"
    assert not kept.exists()  # it goes on
    run.update(state="finished")
    points.tail(run)
    assert kept.stat().st_size < run.metrics_path.stat().st_size / 4
    first = history.history([run.id], "loss")[run.id]
    assert len(first[0]) <= 2000 and 9.5 in first[1]
    monkeypatch.setattr(lines, "points", lambda block: pytest.fail("it was read again"))
    points._held.clear()  # as in another process
    again = history.history([run.id], "loss")[run.id]
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert points.tail(run).last() == {"loss": (LONG - 1) % 101 / 101}


def test_the_end_of_a_run_keeps_its_curves(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "WORTH_KEEPING", 100)
    run = runs.create_run(make({"model_name_or_path": "m"}), "short")
    log = MetricsLog(run)
    for step in range(20):
        log.log(step, {"loss": step})
    log.close()
    outcome.finish(run, "finished")
    assert (run.folder / "curves").is_file()


def test_kept_curves_of_other_points_are_thrown_away(home: Path) -> None:
    run = ended_run()
    kept = run.folder / "curves"
    head, _, body = kept.read_bytes().partition(b"\n")
    for broken in (b"", b"\x80\x04N.", head, head + b"\n" + body[:-8], head.replace(b'"form"', b'"from"')):
        kept.write_bytes(broken)
        points._held.clear()
        assert points.tail(run).last() == {"loss": (LONG - 1) % 101 / 101}
    kept.write_bytes(head + b"\n" + body)
    MetricsLog(run).log(LONG, {"loss": 3.0})
    points._held.clear()
    assert points.tail(run).last() == {"loss": 3.0}
    text = run.metrics_path.read_text().replace("9.5", "8.5", 1)
    run.metrics_path.write_text(text)
    points._held.clear()
    assert points.tail(run).series("loss")[1].max() == 8.5


def test_where_curves_cannot_be_kept_they_are_drawn_all_the_same(home: Path) -> None:
    run = long_run()
    (run.folder / "curves").mkdir()
    run.update(state="finished")
    assert history.history([run.id], "loss")[run.id][1].max() == 9.5
    assert not list(run.folder.glob(".curves*"))


def test_points_in_memory_have_a_limit(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "MOST_BYTES", 2**19)
    for number in range(8):
        points.tail(long_run(f"run {number}"))
        assert sum(one.size for one in points._held.values()) <= 2**19
    assert 1 < len(points._held) < 8
    many = runs.create_run(make({"model_name_or_path": "m"}), "many metrics")
    with many.metrics_path.open("w") as file:
        for step in range(600):
            file.write(json.dumps({"step": step, "time": 0, **{f"m{n}": step for n in range(200)}}) + "\n")
    monkeypatch.setattr(points, "ROWS", 200 * 300)
    found = points.tail(many)
    assert len(found.names()) == 200 and found.size < 200 * 300 * 64 + 4096
    assert found.last()["m199"] == 599


def test_a_curve_that_only_the_tracker_has_is_asked_for_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,) = world.fill_runs(1)
    world.fill_curve(id, LONG)
    shutil.rmtree(Run(id).folder)
    first = history.history([id], "loss")[id]
    assert first[1].max() == 9.5 and len(first[0]) <= 2000
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_reader.SqliteReader, "history", lambda *_: pytest.fail("it was asked again"))
        for _ in range(2):
            again = history.history([id], "loss")[id]
            assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
            points._held.clear()  # as in another process
    with sqlite3.connect(store.database() or "") as db:  # another program logs an older step
        db.execute("INSERT INTO metrics VALUES ('loss', 99.0, 9e15, ?, 12, 0)", (id,))
    assert history.history([id], "loss")[id][1].max() == 99


def test_a_metric_that_the_folder_lacks_is_the_trackers(home: Path) -> None:
    (id,) = world.fill_runs(1)
    with sqlite3.connect(store.database() or "") as db:
        db.execute("INSERT INTO metrics VALUES ('judged', 0.5, 1, ?, 3, 0)", (id,))
    assert history.history([id], "judged")[id][1].tolist() == [0.5]
    assert history.history([id], "loss")[id][0].tolist() == [1, 2, 3, 4, 5]


def test_many_at_once_read_a_run_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, read, by_hand = long_run(), [], lines.points
    monkeypatch.setattr(lines, "points", lambda block: read.append(len(block)) or by_hand(block))
    points.tail(run)
    once = sum(read)
    readers = [threading.Thread(target=points.tail, args=(run,)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert sum(read) == once == run.metrics_path.stat().st_size


def test_reading_a_long_run_imports_no_pandas(home: Path) -> None:
    run = long_run()
    code = (
        "import sys; from tuner.runs import points, run\n"
        f"assert points.spark(run.Run({run.id!r}))\n"
        "assert not {'pandas', 'mlflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], env=os.environ)


def test_thinned_twice_is_still_within_the_limit() -> None:
    curve = Curve()
    curve.add(np.arange(10**6), np.random.default_rng(0).normal(size=10**6))
    assert len(thinned(curve.series(), 2000)[0]) <= 2000
    assert len(thinned(curve.series(), 900)[0]) <= 900
