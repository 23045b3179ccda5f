"""The uvicorn server around the application: its settings, its socket, and the limit on open files.

What h11 bounds is left to it: the size of a request head (431), and pipelined requests, which wait unread.
There is no deadline for a head and no limit per client: that is the business of a proxy (docs/serve.md).
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import uvicorn

from imret.errors import DataError

MAX_HEAD_BYTES = 64 << 10  # the security middleware allows less, and says why; this bounds what h11 holds
GRACE_S = 10  # how long requests that run may take until the server ends; docker stop waits as long
STALL_S = 60  # how long a client may take none of what is sent to it

FILES_WANTED = 65_536
FILES_RESERVED = 256


def raise_file_limit() -> int:
    """Raise this process's limit on open files, and return how many connections that leaves room for.

    The soft limit goes up to the hard one, at most to 65,536. Of what results, 256 files (a quarter, where
    that is less) stay reserved for everything that is no connection: the store's segments, pictures and
    thumbnails that are being read, the model, the log, the listening socket, threads.

    Returns:
        Connections that may be open at once, at least 1.
    """
    try:
        import resource
    except ImportError:  # Windows, where sockets are no files
        return FILES_WANTED - FILES_RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = FILES_WANTED if hard == unlimited else min(FILES_WANTED, hard)
    if soft != unlimited and soft < wanted:
        # Some systems refuse what they said was allowed (macOS above OPEN_MAX); the limit then stays.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = FILES_WANTED if soft == unlimited else soft
    return max(1, files - min(FILES_RESERVED, files // 4))


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address, before anything is loaded for nothing.

    Raises:
        DataError: If there is no such address, or the port is taken; the message names another port.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise DataError(f"there is no address {host!r} to listen at: {error.strerror}.") from error
    family, kind, protocol, _, address = addresses[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; connections inherit it from the socket they came by
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * STALL_S)
    try:
        listener.bind(address)
        listener.listen()  # who asks from now on waits for the answer, rather than being refused
    except OSError as error:
        listener.close()
        raise DataError(
            f"cannot listen at {host} port {port}: {error.strerror}.\n"
            f"Another imret serve may be running; take another port: --port {port + 1 if port < 65535 else 0}"
        ) from error
    return listener


class _Server(uvicorn.Server):
    """Leaves signals to the command: `should_exit` ends it, once the requests that run have ended."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


def make_server(app: Any, *, max_connections: int) -> uvicorn.Server:
    """Return the server of an ASGI application.

    Args:
        app: The application.
        max_connections: With more open, requests are answered 503.
    """
    return _Server(
        uvicorn.Config(
            app,
            http="h11",
            loop="asyncio",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            limit_concurrency=max_connections,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=GRACE_S,
            log_level="error",  # a warning is about what a client sent
            access_log=False,  # queries are nobody's business
            server_header=False,
            proxy_headers=False,  # nothing here depends on who forwards
            ws="none",
            lifespan="on",
        )
    )


def local_url(host: str, port: int) -> str:
    """Return the URL by which this machine reaches a server that is bound to host and port."""
    return (
        f"http://{bracketed({'0.0.0.0': '127.0.0.1', '': '127.0.0.1', '::': '::1'}.get(host, host))}:{port}"
    )


def bracketed(host: str) -> str:
    """Return a host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
