"""Regular expressions that cannot hold a run up.

Python's own engine cannot be interrupted, and some patterns take it longer than a life on a text of thirty letters. The
library `regex` reads the same patterns and takes a limit of seconds. But it writes out what has to be repeated, so that
twenty repeats around each other take all memory while it compiles: what that comes to is counted first, by Python's own parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import regex

from tuner.rewards.reward import wrong
from tuner.text.lookup import tr

SECONDS = 0.5
"""How long one pattern may look at one text."""
PATIENCE = 16
"""Texts that may take too long before the pattern is given up."""
LONGEST = 2000
"""Characters of a pattern: longer ones can take minutes to compile."""
LARGEST = 200_000
"""Parts of a pattern whose repeats are written out."""


def compiled(pattern: str, ignore_case: bool = False) -> regex.Pattern[str]:
    """The pattern. Raises ValueError with what is wrong with it."""
    if len(pattern) > LONGEST:
        raise ValueError(
            tr("has {number} characters, and {longest} are the most", number=len(pattern), longest=LONGEST)
        )
    try:
        if _size(re._parser.parse(pattern)) > LARGEST:  # type: ignore[attr-defined]
            raise ValueError(tr("has too many repeats around each other; write a simpler one"))
        return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise ValueError(tr("is no regular expression: {error}", error=error)) from error


def _size(tree: Any) -> int:
    """Of how many parts a parsed pattern is, each repeat written out as often as it has to match and once more."""
    if isinstance(tree, tuple) and tree and str(tree[0]).endswith("_REPEAT"):
        least, _, repeated = tree[1]
        return (int(least) + 1) * _size(repeated)
    return 1 + sum(map(_size, _below(tree)))


def _below(tree: Any) -> Iterator[Any]:
    if isinstance(tree, tuple | list):
        yield from tree
    elif hasattr(tree, "data"):  # a sequence of the parser's
        yield from tree.data


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
                said = tr(
                    "{what} took longer than {seconds:g} s on {patience} answers; write a simpler pattern.",
                    what=self.what,
                    seconds=SECONDS,
                    patience=PATIENCE,
                )
                raise wrong(
                    tr("{said} Nested repeats such as (a+)+ are the usual reason.", said=said)
                ) from None
            return None
