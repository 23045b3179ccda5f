"""A picture's address on the web to the bytes behind it, for a query: limited in time, size and reach.

A host is looked up once and the very address that was checked is connected to, so a name that answers
differently the second time changes nothing. Proxy settings (HTTPS_PROXY and the like) are not used: a proxy
would look the host up itself, and the check of its address would mean nothing. httpcore, the transport of
httpx, does HTTP and TLS: unlike httpx it leaves redirects, compression and proxies alone. Decoding is for
`imret.images.decode.load_image`, which takes the bytes.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urljoin

from imret.errors import ImageError
from imret.retrieval.web_address import DOWNLOAD_IT, FetchError, Target, not_public, parse_target, shown_url
from imret.settings import __version__

if TYPE_CHECKING:
    import ssl

    import httpcore

MAX_BYTES = 30_000_000
TIMEOUT_S = 15.0
MAX_REDIRECTS = 5

_REDIRECTS = frozenset((301, 302, 303, 307, 308))


def fetch_picture(
    url: str, *, allow_private: bool = False, max_bytes: int = MAX_BYTES, timeout_s: float = TIMEOUT_S
) -> bytes:
    """Fetch the picture behind an http or https address.

    Args:
        url: The address; spaces and letters beyond ASCII may stand in it as they are. Up to five redirects
            are followed, each under the same rules.
        allow_private: Also connect to addresses that are not of the public internet: this machine, the
            local network, cloud metadata services.
        max_bytes: Refuse more, whether the server announces it or sends it. About twice that is the most
            that is ever in memory.
        timeout_s: Seconds for everything together: name lookup, connecting, TLS, redirects and the last
            byte.

    Returns:
        The body as it came: not decoded, and not even known to be a picture, but that it is no web page.

    Raises:
        ImageError: If the address is malformed, is no http(s), holds a password, leads to an address that is
            not public, or redirects in a circle; if the host is unknown, its certificate not valid, or the
            connection fails; if the status is other than 200; if it is a web page, empty, cut short, too
            large or too slow. The message holds the address as `shown_url` shows it, cause and remedy.
        ValueError: If max_bytes or timeout_s is not positive.
    """
    if max_bytes < 1 or not timeout_s > 0:
        raise ValueError(f"max_bytes ({max_bytes}) and timeout_s ({timeout_s}) must be positive")
    import httpcore  # 60 ms, and ssl 30 ms more: only for those who search by URL

    deadline = _Deadline(timeout_s)
    hops = [url]
    try:
        while True:
            body = _request(parse_target(hops[-1]), deadline, hops, allow_private, max_bytes)
            if body is not None:
                return body
    except FetchError as fault:
        raise _error(hops, str(fault), fault.remedy) from fault.__cause__
    except (TimeoutError, httpcore.TimeoutException) as error:
        cause = f"nothing complete came within {timeout_s:g} s (the time ran out while {deadline.doing})"
        raise _error(hops, cause, _direct("Try again, or download the picture.")) from error
    except httpcore.ProtocolError as error:
        cause = f"the server does not answer in HTTP ({type(error).__name__})"
        raise _error(hops, cause, DOWNLOAD_IT) from error
    except (OSError, httpcore.NetworkError) as error:
        # str(error) may be "[Errno 111] Connection refused"; strerror alone reads better.
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        cause = f"{deadline.doing} failed: {reason}"
        raise _error(hops, cause, _direct("Check the address and your connection.")) from error


def _error(hops: list[str], cause: str, remedy: str) -> ImageError:
    via = f" (redirected from {shown_url(hops[0])})" if len(hops) > 1 else ""
    return ImageError(f"Cannot fetch {shown_url(hops[-1])}{via}: {cause}.\n{remedy}")


def _direct(remedy: str) -> str:
    """Add to a remedy, where a proxy is set up, that imret does not use it."""
    names = ("http_proxy", "https_proxy", "all_proxy")
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in names):
        return f"{remedy} imret connects directly: the proxy of your environment is not used."
    return remedy


# ---- One request -------------------------------------------------------------------------------


def _request(
    target: Target, deadline: _Deadline, hops: list[str], allow_private: bool, max_bytes: int
) -> bytes | None:
    """Return the body of an answer; or None, and what it redirects to is one more of the hops."""
    import ssl

    import httpcore

    headers: dict[bytes | str, bytes | str] = {
        "Host": target.host_header,
        "User-Agent": f"imret/{__version__}",
        "Accept": "image/*,*/*;q=0.5",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    url = httpcore.URL(
        scheme="https" if target.tls else "http", host=target.host, port=target.port, target=target.path
    )
    # The name from the address, never the number that was looked up: it is what the certificate must name,
    # and what the server chooses the certificate by.
    name = target.host.split("%")[0].rstrip(".")
    # Trusts the system's authorities, or those in SSL_CERT_FILE.
    context = ssl.create_default_context() if target.tls else None
    backend = cast("httpcore.NetworkBackend", _PublicBackend(deadline, allow_private))
    with (
        httpcore.HTTPConnection(url.origin, context, network_backend=backend) as connection,
        connection.stream("GET", url, headers=headers, extensions={"sni_hostname": name}) as response,
    ):
        deadline.doing = "receiving the picture"
        if response.status not in _REDIRECTS:
            return _body(response, max_bytes)
        hops.append(_next_hop(response, hops))
        return None


def _header(response: httpcore.Response, name: str) -> str:
    values = [value for key, value in response.headers if key.decode("ascii").lower() == name]
    return values[0].decode("utf-8", "surrogateescape").strip() if values else ""


def _next_hop(response: httpcore.Response, hops: list[str]) -> str:
    location = _header(response, "location")
    if not location:
        raise FetchError(f"it redirects (status {response.status}) to nowhere", "Check the address.")
    try:
        following = urljoin(hops[-1].strip(), location)
    except ValueError as error:
        raise FetchError("it redirects to what is not a valid address", "Check the address.") from error
    by_hand = "Open it in a browser and copy the picture's own address."
    if following in hops:
        raise FetchError("it redirects in a circle", by_hand)
    if len(hops) > MAX_REDIRECTS:
        raise FetchError(f"it redirects more than {MAX_REDIRECTS} times", by_hand)
    return following


def _body(response: httpcore.Response, max_bytes: int) -> bytes:
    """Read the body of a final response."""
    import httpcore

    if response.status != 200:
        raise _status_error(response.status)
    if _header(response, "content-encoding").lower() not in ("", "identity"):
        raise FetchError("the server sends it compressed, though asked not to", DOWNLOAD_IT)
    length = _header(response, "content-length")
    limit = f"more than the limit of {max_bytes:,} bytes"
    if length and int(length) > max_bytes:
        raise FetchError(f"its {int(length):,} bytes are {limit}", DOWNLOAD_IT)
    body = bytearray()
    try:
        for block in response.iter_stream():
            body += block
            if len(body) > max_bytes:
                break
    except httpcore.RemoteProtocolError as error:
        far = f"after {len(body):,} of {int(length):,} bytes" if length else "before the picture was complete"
        raise FetchError(f"the connection ended {far}", "Try again.") from error
    if _is_page(_header(response, "content-type"), bytes(body[:1024])):
        raise FetchError(
            "this is a web page, not a picture", "Open it and copy the address of the picture itself."
        )
    if len(body) > max_bytes:
        raise FetchError(f"the server sends {limit}", DOWNLOAD_IT)
    if not body:
        raise FetchError("the server sent nothing (0 bytes)", "Check the address.")
    return bytes(body)


def _status_error(status: int) -> FetchError:
    # Our words for the status, not the server's: those could hold anything.
    try:
        phrase = f" ({HTTPStatus(status).phrase})"
    except ValueError:
        phrase = ""
    if status in (404, 410):
        remedy = "Check the address: the picture is not there, or not any more."
    elif status in (408, 425, 429) or status >= 500:
        remedy = "Try again later."
    else:
        remedy = DOWNLOAD_IT
    return FetchError(f"the server answers with status {status}{phrase}", remedy)


def _is_page(content_type: str, start: bytes) -> bool:
    # By content first: servers call pages pictures, and pictures pages.
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return True
    kind = content_type.partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml") and text.startswith(b"<")


# ---- Network -----------------------------------------------------------------------------------


class _Deadline:
    """One limit in time over many steps.

    A server that sends a byte a second never runs into a limit on each read.

    Attributes:
        doing: The step at work, for the message when the time runs out.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.doing = "looking up the host"

    def left(self) -> float:
        """Return the seconds that are left; raise TimeoutError when there are none."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


class _PublicBackend:
    """What `httpcore.ConnectionPool` connects through: only to addresses that were checked, within the limit.

    Not derived from httpcore.NetworkBackend, which would load httpcore together with this module.
    """

    def __init__(self, deadline: _Deadline, allow_private: bool) -> None:
        self._deadline, self._allow_private = deadline, allow_private

    def connect_tcp(self, host: str, port: int, **_: Any) -> _TimedStream:
        """Look the host up and connect to the first address that answers."""
        import httpcore

        deadline = self._deadline
        deadline.doing = "looking up the host"
        numbers = _allowed(host, _look_up(host, port, deadline), self._allow_private)
        deadline.doing = "connecting"
        for index, number in enumerate(numbers):
            # One that does not answer may use only its share of the time.
            timeout_s = deadline.left() / (len(numbers) - index)
            try:
                stream = httpcore.SyncBackend().connect_tcp(number, port, timeout_s)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if index == len(numbers) - 1:
                    raise
            else:
                return _TimedStream(stream, deadline)
        raise AssertionError("no address to connect to")


class _TimedStream:
    """A connection on which the limit holds for all reading and writing together."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> _TimedStream:
        import ssl

        import httpcore

        self._deadline.doing = "agreeing on a secure connection"
        try:
            stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left())
        except httpcore.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise FetchError(
                    f"the certificate of {server_hostname!r} is not valid "
                    f"({error.__cause__.verify_message.rstrip('.')})",
                    "Check the address; certificates of your own authority are found through SSL_CERT_FILE.",
                ) from error
            if isinstance(error.__cause__, ssl.SSLError):
                reason = (error.__cause__.reason or "unknown").replace("_", " ").lower()
                raise FetchError(
                    f"no secure connection could be agreed on ({reason})", "Check the address."
                ) from error
            raise
        return _TimedStream(stream, self._deadline)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._deadline.doing = "asking for the picture"
        self._stream.write(buffer, self._deadline.left())
        self._deadline.doing = "waiting for the answer"

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _allowed(host: str, numbers: Iterable[str], allow_private: bool) -> list[str]:
    """Return those of a host's addresses that may be connected to, in the resolver's order."""
    kinds = {number: None if allow_private else not_public(number) for number in numbers}
    allowed = [number for number, kind in kinds.items() if kind is None]
    if allowed:
        return allowed
    if not kinds:
        raise FetchError(f"the host {host!r} has no address", "Check the address.")
    number, kind = list(kinds.items())[-1]
    is_at = f"is {kind}" if host == number else f"is at {number}, {kind}"
    raise FetchError(
        f"its host {host!r} {is_at}, which is not of the public internet",
        "If you trust it, use --allow-private-urls (in Python: allow_private=True).",
    )


def _look_up(host: str, port: int, deadline: _Deadline) -> list[str]:
    """Return the addresses of a host as numbers."""
    # getaddrinfo cannot be interrupted and takes no time limit, so it is left behind when time runs out; the
    # resolver's own limits end it.
    answer: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            infos = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
            answer.put([str(address[0]) for *_, address in infos])
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, name="imret-look-up", daemon=True).start()
    try:
        numbers = answer.get(timeout=deadline.left())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(numbers, (socket.gaierror, UnicodeError)):
        reason = getattr(numbers, "strerror", None) or "no valid name"
        raise FetchError(
            f"the host {host!r} cannot be found ({reason})",
            _direct("Check the address and your connection."),
        ) from numbers
    if isinstance(numbers, Exception):
        raise numbers
    return numbers
