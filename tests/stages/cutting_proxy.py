"""A TCP proxy that cuts the connections that run through it: once, or until it is told to mend them."""

from __future__ import annotations

import contextlib
import select
import socket
import threading

_BLOCK = 1 << 14


class CuttingProxy:
    """Forwards 127.0.0.1:port to another port of this machine. Use as a context manager."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._left: int | None = None
        self._for_good = False
        self.broken = False
        """True while every connection is refused."""
        self.cuts = 0
        """How often connections were cut."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, sent: int, for_good: bool = True) -> None:
        """Cut everything once clients have sent this many more bytes; `for_good`: refuse connections from then on."""
        with self._lock:
            self._left, self._for_good = sent, for_good

    def mend(self) -> None:
        """Let everything through again."""
        with self._lock:
            self._left, self.broken = None, False

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()
        self._cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.broken:
                client.close()
                continue
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._target))
        with self._lock:
            self._open |= {client, server}
        try:
            with client, server:
                while True:
                    for source in select.select([client, server], [], [])[0]:
                        data = source.recv(_BLOCK)
                        if not data:
                            return
                        if source is client:
                            data = self._count(data)
                        (server if source is client else client).sendall(data)
                        if self.broken:
                            return
        except (OSError, ValueError):  # cut from here or from there
            return
        finally:
            with self._lock:
                self._open -= {client, server}

    def _count(self, data: bytes) -> bytes:
        """What of a client's bytes still goes through."""
        with self._lock:
            if self._left is None:
                return data
            through, self._left = data[: self._left], self._left - len(data)
            if self._left > 0:
                return through
            self._left, self.broken = None, self._for_good
            self.cuts += 1
        self._cut()
        return b""

    def _cut(self) -> None:
        with self._lock:
            connections, self._open = list(self._open), set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
