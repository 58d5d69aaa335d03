"""A model at work in a thread of its own: requests from any thread, each told in pieces while others run."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from tuner.generate.request import Piece, Request
from tuner.generate.scheduler import Scheduler


class Service:
    """Runs a scheduler until it is closed. The model belongs to its thread; other work on it goes through `between`."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self.closing = threading.Event()
        self.errands: list[Callable[[], None]] = []
        self.thread = threading.Thread(target=self._work, name="generate", daemon=True)

    def __enter__(self) -> Service:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End: whoever still waits is told that it is cancelled."""
        self.closing.set()
        with self.scheduler.lock:
            self.scheduler.lock.notify_all()
        self.thread.join(timeout=30)

    def submit(self, request: Request) -> Request:
        """Take a request in; `told` hears of it in the service's thread."""
        if self.closing.is_set():
            request.told(Piece(finish="cancelled"))
            return request
        return self.scheduler.submit(request)

    def between(self, errand: Callable[[], None]) -> None:
        """Do something with the model between two steps."""
        with self.scheduler.lock:
            self.errands.append(errand)
            self.scheduler.lock.notify_all()

    def _work(self) -> None:
        with torch.no_grad():
            while not self.closing.is_set():
                self._wait()
                while self.errands:
                    self.errands.pop(0)()
                self.scheduler.step()
        self.scheduler.cancel_all()

    def _wait(self) -> None:
        with self.scheduler.lock:
            self.scheduler.lock.wait_for(
                lambda: self.scheduler.busy or self.errands or self.closing.is_set(), timeout=1.0
            )
