"""An S3 in this process (moto), with its requests counted; skipped where moto is not installed."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Bucket:
    """A bucket of a running S3.

    Attributes:
        name: Of it.
        client: boto3's.
        requests: Method, key and range of each request that has come, without those of `put` and `delete`.
    """

    name: str
    client: Any
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)
        self.requests.clear()

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)
        self.requests.clear()

    def gets(self) -> list[tuple[str, str]]:
        """Return key and range of each object that was read."""
        return [(key, span) for method, key, span in self.requests if method == "GET" and span]


@contextmanager
def s3_bucket(monkeypatch: pytest.MonkeyPatch, name: str = "pictures") -> Iterator[Bucket]:
    """Run an S3 with one bucket, which the environment names until the block ends."""
    pytest.importorskip("pyarrow.fs", reason="needs the extra parquet: pip install 'imret[parquet]'")
    server_module = pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[s3]' flask flask-cors")
    import boto3
    from moto.moto_server import werkzeug_app

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    seen: list[tuple[str, str, str]] = []
    application = werkzeug_app.DomainDispatcherApplication.__call__

    def counted(self: Any, environ: dict[str, Any], start_response: Any) -> Any:
        seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
        return application(self, environ, start_response)

    monkeypatch.setattr(werkzeug_app.DomainDispatcherApplication, "__call__", counted)
    server.start()
    try:
        host, port = server.get_host_and_port()
        reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # what is stored outlives the server
        for key, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(key, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=name)
        seen.clear()
        yield Bucket(name, client, seen)
    finally:
        server.stop()
