"""The starter model and the sample sets, copied into a studio that has no catalog yet."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from tuner import paths, private
from tuner.runs.files import replacing

MODELS = ("data/starter", "data/starter-vision")
"""The starter models' names in recipes and on command lines."""
CATALOG = "dataset_info.json"


def lay_out() -> None:
    """Copy the samples into the studio's data folder, unless it has a catalog. What is there stays as it is.

    Raises OSError.
    """
    source, target = paths.shipped() / "data", paths.datasets()
    if (target / CATALOG).exists():
        return
    with private.as_the_person():
        for file in _files(source):
            _copy(file, target / file.relative_to(source))


def lay_out_for(model: str | None) -> None:
    """Lay the samples out where a command names a starter model. Raises OSError."""
    if model in MODELS:
        lay_out()


def _files(source: Path) -> Iterator[Path]:
    """The samples; the catalog comes last, so that a copy which was interrupted is taken up again."""
    for path in sorted(source.glob("starter*")):
        yield from sorted(path.iterdir()) if path.is_dir() else [path]
    yield source / CATALOG


def _copy(file: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        shutil.copyfile(file, partial)
