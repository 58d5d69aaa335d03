"""A real small disk that can be filled to its last byte and emptied again: a tmpfs, where one may be mounted.

Elsewhere this process may write no file beyond a few bytes, which the system answers as it answers a full disk.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

SIZE = 96 * 2**20
BEYOND = 48 * 1024  # bytes of a file that may be written where the limit stands in for a disk


class SmallDisk:
    """`path` is its root; `real` says whether it is a disk of its own."""

    def __init__(self, path: Path, mounted: bool = True):
        self.path = path
        path.mkdir()
        self.real = mounted and self._mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs")
        self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def _mount(self, *words: str) -> bool:
        if not shutil.which("mount"):
            return False
        return subprocess.run(["mount", *words, str(self.path)], capture_output=True).returncode == 0

    def fill(self) -> None:
        """Leave not one byte."""
        if not self.real:
            resource.setrlimit(resource.RLIMIT_FSIZE, (BEYOND, self._limit[1]))
            return
        with suppress(OSError), (self.path / "filler").open("ab") as filler:
            while True:
                os.write(filler.fileno(), bytes(2**16))
        with suppress(OSError), (self.path / "filler").open("ab") as filler:
            while True:
                os.write(filler.fileno(), b"x")

    def empty(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
        (self.path / "filler").unlink(missing_ok=True)

    def make_read_only(self) -> bool:
        """Whether nothing can be written here from now on, not even by root."""
        return self.real and self._mount("-o", "remount,ro")

    def close(self) -> None:
        with suppress(OSError):
            self.empty()
        if self.real:
            subprocess.run(["umount", "--lazy", str(self.path)], check=False)
