"""As much of the Hugging Face Hub as a download asks for: serves one model folder, or fails in some way."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Hub:
    """What a server of the tests answers; may be changed while it runs.

    Attributes:
        folder: Whose files every repository has.
        status: Answered to all, unless it is 200.
        code: The hub's own word for what is wrong.
        linked_size: Stated of every file, whatever it has.
        cut_after: Bytes after which bodies of weights are broken off, one after the other.
        requests: What was asked, in order.
        ranges: Of which parts of a file.
        address: Where it listens.
    """

    folder: Path
    status: int = 200
    code: str = ""
    linked_size: int | None = None
    cut_after: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    address: str = ""


@contextmanager
def running_hub(hub: Hub) -> Iterator[Hub]:
    """Serve until the end of the block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            if "/resolve/" in self.path:  # not what huggingface_hub asks for itself
                hub.requests.append(f"{self.command} {self.path}")
            file = hub.folder / self.path.rpartition("/")[2]
            exists = "/resolve/main/" in self.path and file.is_file()
            status = hub.status if hub.status != 200 else 200 if exists else 404
            data = file.read_bytes() if exists and status == 200 else b""
            etag = hashlib.sha256(data).hexdigest()
            start = 0
            if part := self.headers.get("Range"):
                hub.ranges.append(part)
                start = int(part.removeprefix("bytes=").partition("-")[0])
                status = 206
            self.send_response(status)
            if status < 300:
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                if hub.linked_size is not None:
                    self.send_header("X-Linked-Size", str(hub.linked_size))
                if part:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            elif status == 404 and hub.status == 200:
                self.send_header("X-Error-Code", "EntryNotFound")
            elif hub.code:
                self.send_header("X-Error-Code", hub.code)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if not with_body:
                return
            end = len(data)
            if hub.cut_after and self.path.endswith(".safetensors"):
                end, self.close_connection = start + hub.cut_after.pop(0), True
            self.wfile.write(data[start:end])

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def put_into_cache(cache: Path, repo: str, model: Path) -> None:
    """Lay the files of a model folder into a hub cache as huggingface_hub does: blobs, a snapshot, a ref."""
    folder, commit = cache / f"models--{repo.replace('/', '--')}", "0" * 40
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for file in model.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, folder / "blobs" / digest)
        (folder / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{digest}")
