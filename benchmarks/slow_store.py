"""A server like a distant S3: as much of the protocol as listing and small objects need, a delay before each answer.

The test server (moto) takes longer to look through 40,000 keys for one page than a real store takes to send it; here a
page costs the delay and little else.
"""

from __future__ import annotations

import bisect
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
_HEAD = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


class Store:
    """Objects of one bucket by key, and how many requests of which kind were answered."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        """Seconds before each answer."""
        self.requests: Counter[str] = Counter()
        self._objects: dict[str, bytes] = {}
        self._keys: list[str] = []
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes) -> None:
        """Add or replace an object."""
        with self._lock:
            if key not in self._objects:
                bisect.insort(self._keys, key)
            self._objects[key] = data

    def get(self, key: str) -> bytes | None:
        """An object's content."""
        return self._objects.get(key)

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        with self._lock:
            if self._objects.pop(key, None) is not None:
                del self._keys[bisect.bisect_left(self._keys, key)]

    def page(self, prefix: str, delimiter: str, after: str) -> tuple[list[str], list[str], str]:
        """Keys and common prefixes after the key `after`, at most PAGE together, and where the next page begins."""
        with self._lock:
            at = max(bisect.bisect_left(self._keys, prefix), bisect.bisect_right(self._keys, after))
            keys: list[str] = []
            folders: list[str] = []
            while at < len(self._keys) and self._keys[at].startswith(prefix):
                if len(keys) + len(folders) == PAGE:
                    return keys, folders, self._keys[at - 1]
                key = self._keys[at]
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                if cut >= 0:
                    folders.append(key[: cut + 1])
                    at = bisect.bisect_left(self._keys, key[: cut + 1] + "\U0010ffff")
                else:
                    keys.append(key)
                    at += 1
            return keys, folders, ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: Store

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        if "list-type" in query:
            self._list(query)
            return
        data = self.store.get(self._key())
        self._answer("GET", 404 if data is None else 200, data or b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        data = self.store.get(self._key())
        self._answer("HEAD", 404 if data is None else 200, data or b"")

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        taken = self.headers.get("If-None-Match") == "*" and self.store.get(self._key()) is not None
        if not taken:
            self.store.put(self._key(), data)
        self._answer("PUT", 412 if taken else 200, b"")

    def do_DELETE(self) -> None:
        self.store.delete(self._key())
        self._answer("DELETE", 204, b"")

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).split("/", 2)[2]

    def _list(self, query: dict[str, str]) -> None:
        after = query.get("continuation-token", query.get("start-after", ""))
        keys, folders, rest = self.store.page(query.get("prefix", ""), query.get("delimiter", ""), after)
        rows = [
            f"<Contents><Key>{quote(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;0&quot;</ETag><Size>{len(self.store.get(key) or b'')}</Size></Contents>"
            for key in keys
        ]
        rows += [f"<CommonPrefixes><Prefix>{quote(one)}</Prefix></CommonPrefixes>" for one in folders]
        more = f"<NextContinuationToken>{escape(rest)}</NextContinuationToken>" if rest else ""
        text = f"{_HEAD}<EncodingType>url</EncodingType><IsTruncated>{str(bool(rest)).lower()}</IsTruncated>{more}"
        self._answer("LIST", 200, f"{text}{''.join(rows)}</ListBucketResult>".encode())

    def _answer(self, kind: str, status: int, body: bytes) -> None:
        self.store.requests[kind] += 1
        time.sleep(self.store.delay)
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        """Nothing."""


@contextmanager
def slow_store(delay: float) -> Iterator[tuple[Store, str]]:
    """Run a store whose every answer takes `delay` seconds; yields it and the URL to reach it by."""
    store = Store(delay)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
