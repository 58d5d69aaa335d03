"""Regular expressions that cannot hold a run up.

Python's own engine cannot be interrupted, and some patterns take it longer than a life on a text of thirty letters. The
library `regex` reads the same patterns and takes a limit of seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import regex

from tuner.rewards.reward import wrong

SECONDS = 0.5
"""How long one pattern may look at one text."""
PATIENCE = 16
"""Texts that may take too long before the pattern is given up."""
LONGEST = 2000
"""Characters of a pattern: longer ones can take minutes to compile."""


def compiled(pattern: str, ignore_case: bool = False) -> regex.Pattern[str]:
    """The pattern. Raises ValueError with what is wrong with it."""
    if len(pattern) > LONGEST:
        raise ValueError(f"has {len(pattern)} characters, and {LONGEST} are the most")
    try:
        return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"is no regular expression: {error}") from error


class Searcher:
    """Looks for patterns in texts, and gives up on what takes too long: each such text is None, too many raise ConfigError."""

    def __init__(self, what: str):
        self.what, self.gave_up = what, 0

    def __call__(self, look: Callable[[float], object]) -> bool | None:
        """Whether `look` finds something; it is told how many seconds it has."""
        try:
            return look(SECONDS) is not None
        except TimeoutError:
            self.gave_up += 1
            if self.gave_up >= PATIENCE:
                said = f"{self.what} took longer than {SECONDS:g} s on {PATIENCE} answers; write a simpler pattern."
                raise wrong(f"{said} Nested repeats such as (a+)+ are the usual reason.") from None
            return None
