"""How often pieces of pages may redraw themselves: all browsers together take a small part of the machine, whatever their
number, so that the run they look at is not slowed by it."""

from __future__ import annotations

import os
import threading
import time

SHARE = 0.03
"""Of all cores."""
ON_ITS_WAY = 1.6
"""What a redraw costs in all for each second that its script takes: the rest goes into sending it."""
AT_FIRST = 0.015
"""Seconds that a script is taken to need before any did."""
GONE = 15.0
"""Seconds after which a piece that nobody asks for any more is no longer counted."""


class Redraws:
    """Every piece gets its turn: with n of them, a redraw of c seconds and b seconds to spend each second, after n c / b."""

    def __init__(self, budget: float | None = None):
        self._budget = (os.cpu_count() or 1) * SHARE if budget is None else budget
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, str], float] = {}
        self._drawn: dict[tuple[str, str], float] = {}
        self._cost = ON_ITS_WAY * AT_FIRST

    def due(self, session: str, piece: str) -> bool:
        """Whether it is this piece's turn, which asks for it now. A turn that is given is taken."""
        key, now = (session, piece), time.monotonic()
        with self._lock:
            self._asked[key] = now
            for old in [k for k, asked in self._asked.items() if now - asked > GONE]:
                self._asked.pop(old)
                self._drawn.pop(old, None)
            if now - self._drawn.get(key, 0.0) < len(self._asked) * self._cost / self._budget:
                return False
            self._drawn[key] = now
            return True

    def took(self, seconds: float) -> None:
        """What the script of one redraw has taken of the processor."""
        with self._lock:
            self._cost += 0.1 * (seconds * ON_ITS_WAY - self._cost)
