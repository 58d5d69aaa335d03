"""A browser session without a browser: it opens a page over Streamlit's websocket and keeps its live pieces alive."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.sync.client import ClientConnection, connect


class Visitor:
    """One tab on one page. `words` is all the text of its last answer, for asking whether the right thing was drawn."""

    def __init__(self, port: int, page: str = "", query: str = ""):
        self.port, self.page, self.query = port, page, query
        self.hash = ""
        self.widgets: dict[str, WidgetState] = {}
        self.words = ""
        self.bytes = 0
        self.draws = 0
        self._listening = True
        self._every: dict[str, float] = {}
        self._due: dict[str, float] = {}
        origin = f"http://127.0.0.1:{port}"
        self._socket: ClientConnection = connect(
            f"ws://127.0.0.1:{port}/_stcore/stream",
            subprotocols=["streamlit"],  # type: ignore[list-item]
            origin=origin,  # type: ignore[arg-type]
            max_size=None,
            open_timeout=60,
            ping_interval=None,
        )

    def __enter__(self) -> Visitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    @property
    def pieces(self) -> list[str]:
        """The live pieces of the page."""
        return list(self._every)

    def draw(self, patience: float = 120.0, fragment: str = "") -> None:
        """Ask for the page, or for one live piece of it, and read until it is drawn: as a click would, not a clock."""
        self._ask(fragment)
        self.words, self.bytes = "", 0
        end = time.monotonic() + patience
        while not self._read(end - time.monotonic()):
            pass

    def live(self, seconds: float) -> None:
        """Be a tab that is left open: each live piece is asked for again when it is due, and drawn or not."""
        end, self._listening = time.monotonic() + seconds, False  # thirty that read along would take a core
        while (now := time.monotonic()) < end:
            piece = min(self._due, key=self._due.__getitem__, default="")
            if piece and self._due[piece] <= now:
                self._due[piece] = now + self._every[piece]
                self._ask(piece, clock=True)
            else:
                with suppress(TimeoutError):
                    self._read(min(end, self._due[piece] if piece else end) - now)

    def _ask(self, fragment: str, clock: bool = False) -> None:
        message = BackMsg()
        state = message.rerun_script
        state.query_string = self.query
        state.page_script_hash = self.hash
        state.page_name = "" if self.hash else self.page
        state.fragment_id = fragment
        state.is_auto_rerun = clock
        state.widget_states.widgets.extend(self.widgets.values())
        mark = "?" if self.query else ""
        state.context_info.url = f"http://127.0.0.1:{self.port}/{self.page}{mark}{self.query}"
        state.context_info.timezone = "UTC"
        self._socket.send(message.SerializeToString())

    def _read(self, patience: float) -> bool:
        """Take one answer; whether it was the last one of a draw."""
        raw = self._socket.recv(timeout=max(0.01, patience))
        assert isinstance(raw, bytes)
        self.bytes += len(raw)
        answer = ForwardMsg.FromString(raw)
        kind = answer.WhichOneof("type")
        if kind == "new_session" and not answer.metadata.run.fragment_ids:
            self._every.clear()
            self._due.clear()
        elif kind == "navigation":
            self.hash = answer.navigation.page_script_hash
        elif kind == "auto_rerun":
            piece = answer.auto_rerun
            self._every[piece.fragment_id] = piece.interval
            self._due[piece.fragment_id] = time.monotonic() + piece.interval
        elif kind == "delta" and self._listening:
            self.words += str(answer.delta)
        if kind != "script_finished":
            return False
        # A script that asks for another draw ends early, and the other one follows.
        last = answer.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN
        self.draws += last
        return last
