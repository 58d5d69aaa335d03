"""Answers while they are written: a thread each, which reads the server's socket, keeps what came, and ends with it.

A page that shows an answer only looks at it here, so that a refresh, or a second browser, finds the same one. Who asks
for an answer says whether somebody still looks; one that nobody looks at is stopped, and its server is free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from tuner.chats.completions import Completion, Piece, Place, Stopped, Unanswered
from tuner.chats.talk import OPEN, Answer, AnswerState
from tuner.text.message import Message, message, plain

KEEP_EVERY = 1.0
"""Seconds between two writes of an unfinished answer to the disk: what a killed dashboard loses at most."""
LOOK = 0.05
LEFT = 5.0
"""Seconds that an answer goes on with nobody there: a reload of the page takes less."""
Key = tuple[Hashable, ...]
Connect = Callable[[], Place | None]
"""Where the server listens; None while it does not yet. Raises Unanswered once it never will."""
_living: dict[Key, Writing] = {}
_lock = threading.Lock()


class Writing:
    """One answer on its way. `answer` is how far it is; it is replaced, never changed."""

    def __init__(
        self,
        key: Key,
        answer: Answer,
        request: dict[str, object],
        connect: Connect,
        keep: Callable[[Answer], None],
        watched: Callable[[], bool],
    ):
        self.key, self.answer = key, answer
        self._request, self._connect, self._keep, self._watched = request, connect, keep, watched
        self._completion: Completion | None = None
        self._asked, self._why = False, Message()
        self._began = self._kept = self._seen = time.monotonic()
        self.thread = threading.Thread(target=self._work, name="answer", daemon=True)

    @property
    def alive(self) -> bool:
        return self.answer.state in OPEN

    def stop(self, why: Message | None = None) -> None:
        """End the answer where it is; what was written stays."""
        self._asked, self._why = True, why or message("answer.stopped")
        if self._completion is not None:
            self._completion.stop()

    def _work(self) -> None:
        watcher = threading.Thread(target=self._watch, name="answer-watched", daemon=True)
        watcher.start()
        state: AnswerState
        try:
            state, why = "done", self._written()
        except Unanswered as error:
            state, why = "failed", plain(str(error))
        except Stopped:
            state, why = "stopped", self._why
        except Exception as error:  # a thread has nobody above it who could say so
            state, why = "failed", message("error", kind=type(error).__name__, detail=str(error))
            self._end(replace(self.answer, state="failed", why=why))
            raise
        self._end(replace(self.answer, state=state, why=why, seconds=self._seconds))

    def _written(self) -> Message:
        place = self._place()
        self._completion = Completion(place, self._request)
        if self._asked:
            raise Stopped
        self.answer = replace(self.answer, state="writing")
        for piece in self._completion:
            self.answer = replace(joined(self.answer, piece), seconds=self._seconds)
            if time.monotonic() - self._kept > KEEP_EVERY:
                self._kept = time.monotonic()
                self._keep(self.answer)
        return message("answer.cut") if self.answer.finish == "length" else Message()

    def _place(self) -> Place:
        """Where the server listens, once it does. Raises Unanswered, or Stopped."""
        while not self._asked:
            if (place := self._connect()) is not None:
                self._began = time.monotonic()  # loading a model is no part of answering
                return place
            time.sleep(4 * LOOK)
        raise Stopped

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _watch(self) -> None:
        """Stop the answer once nobody has looked at it for a while."""
        while self.alive and not self._asked:
            time.sleep(0.25)
            if self._watched():
                self._seen = time.monotonic()
            elif time.monotonic() - self._seen > LEFT:
                self.stop(message("answer.left"))

    def _end(self, answer: Answer) -> None:
        try:
            self._keep(answer)
        finally:
            self.answer = answer
            with _lock:
                _living.pop(self.key, None)


def joined(answer: Answer, piece: Piece) -> Answer:
    """An answer with one more piece of it."""
    calls = list(answer.calls)
    for at, (name, arguments) in sorted(piece.calls.items()):
        calls += [("", "")] * (at + 1 - len(calls))
        calls[at] = (calls[at][0] + name, calls[at][1] + arguments)
    return replace(
        answer,
        text=answer.text + piece.text,
        thoughts=answer.thoughts + piece.thoughts,
        calls=tuple(calls),
        finish=piece.finish or answer.finish,
        checksum=piece.checksum or answer.checksum,
        tokens=piece.tokens or answer.tokens,
    )


def start(
    key: Key,
    answer: Answer,
    request: dict[str, object],
    connect: Connect,
    keep: Callable[[Answer], None],
    watched: Callable[[], bool] = lambda: True,
) -> Writing:
    """Begin to ask for an answer; the one of this key that is on its way already, if there is one."""
    with _lock:
        if key in _living:
            return _living[key]
        made = _living[key] = Writing(key, answer, request, connect, keep, watched)
    made.thread.start()
    return made


def of(*key: Hashable) -> list[Writing]:
    """The answers on their way whose keys begin with this."""
    with _lock:
        return [one for known, one in _living.items() if known[: len(key)] == key]


def stop(*key: Hashable) -> Sequence[Writing]:
    """Stop them all."""
    found = of(*key)
    for one in found:
        one.stop()
    return found
