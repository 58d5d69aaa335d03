"""What every process of the studio does before anything else."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tuner import private, redact


def begin(words: Sequence[str] = ()) -> None:
    """Write private files only, mask secrets in all that this process says on stderr, its tracebacks and its libraries'
    logs too, and hide those among the words it was started with."""
    private.begin()
    if not isinstance(sys.stderr, redact.Redacted):
        sys.stderr = redact.Redacted(sys.stderr)
    secrets = set(_secrets(words))
    redact.remember(secrets)
    hide(secrets)


@contextmanager
def importing() -> Iterator[None]:
    """Import large libraries in this block. What they are made of stays, and is never looked through for garbage: not
    while it is made, not in training, and not by the interpreter when it ends. A third of a worker's start and end.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _secrets(words: Sequence[str]) -> Iterator[str]:
    """The values of secret flags in a command line, and every word that is a secret by its shape."""
    for word, after in zip(words, [*words[1:], ""], strict=False):
        name, given, value = word.removeprefix("--").partition("=")
        if redact.is_secret_name(name.replace("-", "_")):
            yield value if given else after
        elif redact.redact(word) != word:
            yield value or word


def hide(secrets: Iterable[str]) -> None:
    """Overwrite secrets among the words this process was started with, so that no list of processes shows them.

    The words lie in the process's own memory, from where the kernel reads them whenever somebody asks (proc(5),
    arg_start). Where that is not to be had they stay as they are.
    """
    with suppress(OSError, ValueError, IndexError):
        words = Path("/proc/self/cmdline").read_bytes()
        # Fields are counted behind the name, which may hold anything; arg_start is the 48th.
        start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45])
        for secret in {s.encode("utf-8", "surrogateescape") for s in secrets if s}:
            at = words.find(secret)
            while start and at >= 0:
                ctypes.memset(start + at, ord("*"), len(secret))
                at = words.find(secret, at + len(secret))
