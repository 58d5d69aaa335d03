"""Trouble that one run makes whoever looks after many."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("tuner.supervisor")
_troubles: dict[str, str] = {}


@contextmanager
def logged(run_id: str) -> Iterator[None]:
    """Trouble with one run is written down, once and not at every look, and must not touch the others."""
    try:
        yield
        _troubles.pop(run_id, None)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if _troubles.get(run_id) != said:
            log.exception("%s: went on without it", run_id)
        _troubles[run_id] = said
