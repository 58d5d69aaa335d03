"""What takes room on the disk: a run's files by what they are, and the studio's in all. Links are never followed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuner import paths
from tuner.data.tokenized_cache import ours
from tuner.data.upload import UPLOADS
from tuner.runs import checkpoints
from tuner.runs.run import Run
from tuner.text.lookup import mark

PLACES = {
    "artifacts": mark("registered adapters"),
    "models": mark("merged and converted models"),
    "references": mark("reference log-probs"),
    "fetched": mark("copies of a server's adapters"),
}
"""Folders of mlruns, and what lies in them."""
REST = mark("database and the rest")
_TOKENIZED = re.compile(r"^tokenized_path: *['\"]?(.+?)['\"]?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class RunRoom:
    """What a run takes, in bytes: its checkpoints, also those in an output_dir, its output, and logs with all else."""

    checkpoints: int = 0
    output: int = 0
    logs: int = 0

    @property
    def total(self) -> int:
        return self.checkpoints + self.output + self.logs


def size_of(path: Path | str) -> int:
    """Bytes of a file, or of all files in a folder; a file of several names counts once, a link nothing."""
    seen: set[tuple[int, int]] = set()
    return sum(_sizes(str(path), seen))


def _sizes(path: str, seen: set[tuple[int, int]]) -> Iterator[int]:
    with suppress(OSError):
        about = os.lstat(path)
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114  quicker than Path
            for name in os.listdir(path):  # noqa: PTH208
                yield from _sizes(f"{path}/{name}", seen)
        elif not os.path.islink(path) and (about.st_dev, about.st_ino) not in seen:  # noqa: PTH114
            if about.st_nlink > 1:
                seen.add((about.st_dev, about.st_ino))
            yield about.st_size


def of_run(run: Run) -> RunRoom:
    """What one run takes; nothing where it has no folder here."""
    whole = size_of(run.folder)
    output = size_of(run.folder / "output")
    if run.checkpoints.is_symlink():  # they lie in the output_dir that a person named
        return RunRoom(sum(map(size_of, checkpoints.of(run))), output, whole - output)
    saved = size_of(run.checkpoints)
    return RunRoom(saved, output, whole - output - saved)


def of_runs() -> dict[str, RunRoom]:
    """What each run with a folder here takes, by its id."""
    with suppress(FileNotFoundError), os.scandir(paths.runs()) as entries:
        return {e.name: of_run(Run(e.name)) for e in entries if e.is_dir(follow_symlinks=False)}
    return {}


def of_studio(runs: dict[str, RunRoom]) -> dict[str, int]:
    """Bytes by what they are, without those in folders that a person named; `runs` as `of_runs` says."""
    found = {
        mark("checkpoints of runs"): sum(size_of(paths.runs() / id / "checkpoints") for id in runs),
        mark("outputs of runs"): sum(room.output for room in runs.values()),
        mark("logs and records of runs"): sum(room.logs for room in runs.values()),
    }
    found |= dict.fromkeys(PLACES.values(), 0)
    found |= {
        mark("tokenised rows"): sum(map(size_of, tokenized())),
        mark("uploads"): size_of(paths.datasets() / UPLOADS),
        REST: 0,
    }
    with suppress(FileNotFoundError):
        for path in paths.mlruns().iterdir():
            if path != paths.runs():
                found[PLACES.get(path.name, REST)] += size_of(path)
    return found


def tokenized() -> list[Path]:
    """Folders of tokenised rows that this studio wrote in its own folder, as the runs name them."""
    named = set()
    with suppress(FileNotFoundError):
        for folder in paths.runs().iterdir():
            with suppress(OSError, UnicodeDecodeError):
                named |= set(_TOKENIZED.findall((folder / "config.yaml").read_text(encoding="utf-8")))
    folders = {paths.home() / name for name in named}
    return sorted(f for f in folders if is_own(f) and ours(f) and not paths.mlruns().is_relative_to(f))


def is_own(path: Path) -> bool:
    """Whether a path lies in the studio's folder, with no link on the way to it."""
    with suppress(OSError):
        return path.resolve() == path and path.is_relative_to(paths.home()) and path != paths.home()
    return False
