"""What a script draws is handed to the server's loop in batches.

Streamlit wakes the loop for every element, twice: by a byte through a socket from the script's thread, and by another
one from the loop to itself. Each takes the interpreter's lock away from the script that draws, and so a page of two
hundred elements took about a tenth more of the processor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

from streamlit.runtime.app_session import AppSession
from streamlit.runtime.runtime import Runtime

_lock = threading.Lock()
_waiting: WeakKeyDictionary[AppSession, list[Callable[[], None]]] = WeakKeyDictionary()


def hand_over_in_batches() -> None:
    """Let the loop be woken once for all that is waiting for it, in the order in which it came."""
    wake, told = AppSession._call_soon_on_event_loop, Runtime._enqueued_some_message

    def call_soon(self: AppSession, callback: Callable[[], None]) -> None:
        with _lock:
            waiting = _waiting.setdefault(self, [])
            waiting.append(callback)
            first = len(waiting) == 1
        if first:
            wake(self, lambda: _take(self))

    def tell(self: Runtime) -> None:
        # It is cleared before what waits is sent: where it is set, this message is still among that.
        if not self._get_async_objs().need_send_data.is_set():
            told(self)

    AppSession._call_soon_on_event_loop = call_soon  # type: ignore[method-assign]
    Runtime._enqueued_some_message = tell  # type: ignore[method-assign]


def _take(session: AppSession) -> None:
    """Schedule all that waits; on the loop's own thread."""
    with _lock:
        waiting = _waiting.pop(session, [])
    for callback in waiting:
        session._event_loop.call_soon(callback)
