"""Whether a run's loss runs away: looked for now and then while it goes on, and noted once in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from tuner.runs.run import Run

FEW = 20
"""Points before anything is said."""
AT_ONCE = 5
"""Points of which the middle one counts: one bad batch is no divergence."""
MUCH = 2.0
"""How many times its best the loss has to be."""
_HEAD, _TAIL = 2**14, 2**16


def diverging(losses: Sequence[float]) -> bool:
    """Whether a loss has left what it had reached: above where it began, and at `MUCH` times its best."""
    if len(losses) < FEW:
        return False
    means = [median(losses[i : i + AT_ONCE]) for i in range(len(losses) - AT_ONCE + 1)]
    first, best, last = max(losses[:AT_ONCE]), min(means), means[-1]
    return best > 0 and last > first and last > MUCH * best


def noted(run: Run) -> bool:
    """Whether it was found to diverge."""
    return _note(run).exists()


def look(run: Run) -> bool:
    """Look once. True where it is found for the first time, which is noted. Reads the ends of the file only."""
    if noted(run) or not diverging(list(_losses(run.folder / "metrics.jsonl"))):
        return False
    with suppress(OSError):
        _note(run).touch()
        return True
    return False


def _note(run: Run) -> Path:
    return run.folder / "diverging"


def _losses(file: Path) -> Iterator[float]:
    for line in _ends(file):
        with suppress(ValueError, TypeError, AttributeError):
            value = json.loads(line).get("loss")
            if isinstance(value, int | float):
                yield float(value)


def _ends(file: Path) -> list[bytes]:
    """The lines of a file's beginning and of its end; those that were cut are left out by whoever reads them."""
    with suppress(OSError), file.open("rb") as text:
        head = text.read(_HEAD)
        size = file.stat().st_size
        if size > _HEAD:
            text.seek(max(_HEAD, size - _TAIL))
        return [*head.splitlines(), *text.read().splitlines()]
    return []
