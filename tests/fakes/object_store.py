"""An S3 that lies in the memory of the tests, spoken to over HTTP as any other."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Bucket:
    """A bucket of it.

    Attributes:
        url: Of the bucket.
        endpoint: What AWS_ENDPOINT_URL is to be.
        requests: Method, key and range of each request that has come, without those of this class.
    """

    def __init__(self, endpoint: str, name: str, requests: list[tuple[str, str, str]]) -> None:
        from pyarrow import fs

        self.endpoint, self.name, self.url, self.requests = endpoint, name, f"s3://{name}", requests
        self._system = fs.S3FileSystem(
            endpoint_override=endpoint,
            access_key=KEYS["AWS_ACCESS_KEY_ID"],
            secret_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region=KEYS["AWS_REGION"],
            allow_bucket_creation=True,
        )
        self._system.create_dir(name)
        requests.clear()

    def put(self, key: str, data: bytes) -> str:
        """Store an object; return its URL."""
        with self._system.open_output_stream(f"{self.name}/{key}") as out:
            out.write(data)
        self.requests.clear()
        return f"{self.url}/{key}"

    def remove(self, key: str) -> None:
        self._system.delete_file(f"{self.name}/{key}")
        self.requests.clear()

    def gets(self) -> list[tuple[str, str]]:
        """Return key and range of each object that was read."""
        return [(key, span) for method, key, span in self.requests if method == "GET" and span]

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Have the store look at keys until the end of the block; it knows none."""
        self._ask("reset-auth", b"0")
        try:
            yield
        finally:
            self._ask("reset-auth", b"inf")

    def _ask(self, what: str, data: bytes) -> None:
        request = urllib.request.Request(
            f"{self.endpoint}/moto-api/{what}",
            data=data,
            headers={"Content-Type": "text/plain"},
            method="POST",
        )
        with urllib.request.urlopen(request):
            pass


@contextmanager
def served_bucket(patch: pytest.MonkeyPatch, name: str = "bucket") -> Iterator[Bucket]:
    """Serve an S3 with an empty bucket, and set the environment to it."""
    pytest.importorskip("pyarrow.fs", reason="needs the extra remote: pip install 'imret[remote]'")
    moto = pytest.importorskip("moto.server", reason="needs pip install 'moto[s3]' flask flask-cors")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    requests: list[tuple[str, str, str]] = []
    application = DomainDispatcherApplication.__call__

    def noted(self: Any, environ: dict[str, Any], start_response: Any) -> Any:
        requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
        return application(self, environ, start_response)

    patch.setattr(DomainDispatcherApplication, "__call__", noted)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # what is stored outlives a server
        for variable, value in KEYS.items():
            patch.setenv(variable, value)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield Bucket(endpoint, name, requests)
    finally:
        server.stop()
