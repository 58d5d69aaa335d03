"""A door before a tracking server that can be shut: then it takes connections and never answers, the worst way to be away."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """Passes bytes between `port` and a server's port while `open` is set."""

    def __init__(self, server: int):
        self._server = server
        self.open = threading.Event()
        self.open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        """From now on nobody is answered, also where a call is under way."""
        self.open.clear()
        for end in self._pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)
        self._pairs.clear()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if not self.open.is_set():
                threading.Thread(target=self._swallow, args=(client,), daemon=True).start()
                continue
            with suppress(OSError):
                server = socket.create_connection(("127.0.0.1", self._server))
                self._pairs += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _swallow(self, client: socket.socket) -> None:
        with suppress(OSError):
            while client.recv(2**16):
                pass

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                target.sendall(data)
        if self.open.is_set():
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)
        # Shut meanwhile: the other end is left waiting, as a machine that went away leaves it.
