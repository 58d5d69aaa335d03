"""Opening pictures while the step before them is worked on, by processes of their own: unpacking and resizing holds Python's
lock for most of its time, so that threads are no faster than one."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tuner.jobs.ranks import PR_SET_PDEATHSIG

if TYPE_CHECKING:
    from tuner.models.vision import Sight

MOST = 8
"""Processes that open pictures where nothing else is asked for."""
AHEAD = 64
"""Pictures of the next step that are opened while this one is worked on."""

Pixels = dict[str, Tensor]


def reader_count(asked: int, ranks: int) -> int:
    """How many processes open pictures: as many as `dataloader_num_workers` says, else half of this process's cores."""
    return asked or max(1, min(MOST, len(os.sched_getaffinity(0)) // (2 * ranks)))


class Opening:
    """Opens pictures, those of the next step already while this one is worked on."""

    def __init__(self, sight: Sight, readers: int) -> None:
        self.sight = sight
        self.pool = _processes(readers) if readers > 1 else ThreadPoolExecutor(1)
        self.coming: dict[str, Future[Any]] = {}
        self.next: dict[str, Future[Any]] = {}
        self.began = False

    def begin(self, paths: Sequence[str]) -> None:
        """Open these, which will be asked for soon. What was begun two calls ago and never asked for is let go."""
        if (
            not self.began
        ):  # the image processor's first call imports: once, before there are threads and processes
            return
        self.coming, waiting = self.next, self.coming
        for future in waiting.values():
            future.cancel()
        self.next = {path: self._submit(path) for path in dict.fromkeys(paths[:AHEAD])}

    def all(self, paths: Sequence[str]) -> list[Pixels]:
        """The tensors of each. Raises PictureError."""
        ready = [] if self.began else [_pixels(self.sight, path) for path in paths[:1]]
        self.began = True
        rest = {path: self._begun(path) for path in paths[len(ready) :]}
        return [_tensors(made) for made in (*ready, *(self._made(*one) for one in rest.items()))]

    def _begun(self, path: str) -> Future[Any]:
        return self.coming.pop(path, None) or self.next.pop(path, None) or self._submit(path)

    def _submit(self, path: str) -> Future[Any]:
        try:
            return self.pool.submit(_pixels, self.sight, path)
        except BrokenExecutor:
            self.pool = ThreadPoolExecutor(1)
            return self.pool.submit(_pixels, self.sight, path)

    def _made(self, path: str, begun: Future[Any]) -> dict[str, Any]:
        """What was begun; opened here where its process was killed."""
        try:
            found: dict[str, Any] = begun.result()
        except BrokenExecutor:
            return _pixels(self.sight, path)
        return found


def _pixels(sight: Sight, path: str) -> dict[str, Any]:
    """A picture's tensors as arrays, which need no shared memory on the way from another process."""
    return {name: tensor.numpy() for name, tensor in sight.pixels([[path]]).items()}


def _tensors(made: dict[str, Any]) -> Pixels:
    return {name: torch.from_numpy(array) for name, array in made.items()}


def _processes(count: int) -> Executor:
    """Forked, as torch's own loaders are: they have the image processor already and never touch the GPU."""
    return ProcessPoolExecutor(
        count, mp_context=get_context("fork"), initializer=_begin_reader, initargs=(os.getpid(),)
    )


def _begin_reader(parent: int) -> None:
    """A process that opens pictures ends with the one that trains, and leaves signals to it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that could be asked for
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
