"""A TCP proxy that cuts the connections that run through it: once, or until `repair` is called.

It can also lose the answer to a request that the server has done.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading

_BLOCK = 1 << 14
_WRITING = (b"PUT ", b"POST ", b"DELETE ")


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
        self._requests: int | None = None
        self.lost = 0
        """How many answers were lost."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, sent: int, for_good: bool = True) -> None:
        """Cut everything once clients have sent this many more bytes; `for_good`: refuse connections from then on."""
        with self._lock:
            self._left, self._for_good = sent, for_good

    def lose_answer(self, requests: int) -> None:
        """Let so many requests that write pass, and close the next one's connection in place of its answer."""
        with self._lock:
            self._requests = requests

    def repair(self) -> None:
        """Let everything through again."""
        with self._lock:
            self._left, self.broken, self._requests = None, False, None

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
        loses = False
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
                            loses = loses or self._is_lost(data)
                            data = self._count(data)
                        elif loses and not data.startswith(b"HTTP/1.1 100"):  # which only asks for the body
                            with self._lock:
                                self.lost += 1
                            return
                        (server if source is client else client).sendall(data)
                        if self.broken:
                            return
        except (OSError, ValueError):  # cut from here or from there
            return
        finally:
            with self._lock:
                self._open -= {client, server}

    def _is_lost(self, data: bytes) -> bool:
        """Whether the request that a client begins to send is the one without an answer."""
        with self._lock:
            if self._requests is None or not data.startswith(_WRITING):
                return False
            self._requests = self._requests - 1 if self._requests else None
            return self._requests is None

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
