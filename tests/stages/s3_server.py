"""A server that speaks the S3 protocol, with a proxy before it that can cut the connections."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.request import urlopen

import pytest
from cutting_proxy import CuttingProxy

BUCKET = "bucket"


@dataclass(frozen=True)
class S3:
    """The server behind its proxy."""

    proxy: CuttingProxy
    direct_url: str
    """The server itself, past the proxy."""

    @property
    def endpoint(self) -> str:
        """Where clients connect to."""
        return f"http://127.0.0.1:{self.proxy.port}"


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run a server with one empty bucket, and set the environment so that s3:// URLs lead to it."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with CuttingProxy(port) as proxy, pytest.MonkeyPatch.context() as patch:
        s3 = S3(proxy, f"http://{host}:{port}")
        patch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs tries again itself; botocore's own tries would multiply with it
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET)
        try:
            yield s3
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            urlopen(f"{s3.direct_url}/moto-api/reset", data=b"")  # it would live on in this process
            server.stop()
