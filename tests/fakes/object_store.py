"""An S3 that lies in the memory of the tests, spoken to over HTTP as any other."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

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
    """

    def __init__(self, endpoint: str, name: str) -> None:
        from pyarrow import fs

        self.endpoint, self.name, self.url = endpoint, name, f"s3://{name}"
        self._system = fs.S3FileSystem(
            endpoint_override=endpoint,
            access_key=KEYS["AWS_ACCESS_KEY_ID"],
            secret_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region=KEYS["AWS_REGION"],
            allow_bucket_creation=True,
        )
        self._system.create_dir(name)

    def put(self, key: str, data: bytes) -> str:
        """Store an object; return its URL."""
        with self._system.open_output_stream(f"{self.name}/{key}") as out:
            out.write(data)
        return f"{self.url}/{key}"

    def remove(self, key: str) -> None:
        self._system.delete_file(f"{self.name}/{key}")

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
    server_of_moto = pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[s3]' flask flask-cors")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of_moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for variable, value in KEYS.items():
            patch.setenv(variable, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        yield Bucket(f"http://{host}:{port}", name)
    finally:
        server.stop()
