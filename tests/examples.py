"""How often a property is tried: a quarter as often in the fast suite as in the slow one (TUNER_EXAMPLES=all)."""

from __future__ import annotations

import os

ALL = os.environ.get("TUNER_EXAMPLES") == "all"
LEAST = 8


def examples(full: int) -> int:
    """The number for hypothesis' `max_examples` where `full` are what the slow suite tries."""
    return full if ALL else min(full, max(LEAST, full // 4))
