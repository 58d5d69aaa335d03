"""Which cases of a table are quick: a few in the fast suite, all of them with `make test-slow` beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some(names: Iterable[str], *quick: str) -> list[Any]:
    """Cases by name, of which all but the quick ones are slow."""
    names = list(names)
    assert set(quick) <= set(names), "a quick case is not in the table"
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
