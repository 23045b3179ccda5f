"""A picture's address on the web to the bytes behind it, for a query: limited in time, size and reach.

Hides name lookup, TLS, HTTP and redirects. A host is looked up once and the very address that was checked is
connected to, so a name that answers differently the second time changes nothing. Proxy settings
(HTTPS_PROXY and the like) are not used: a proxy would look the host up itself, and the check of its address
would mean nothing. Decoding is for `imret.images.decode.load_image`, which takes the bytes.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

from imret.errors import ImageError
from imret.settings import __version__

if TYPE_CHECKING:
    from http.client import HTTPResponse

MAX_BYTES = 30_000_000
TIMEOUT_S = 15.0
MAX_REDIRECTS = 5

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_BLOCK_BYTES = 65_536
_SHOWN_CHARACTERS = 200
_BY_HAND = "Download the picture and search with the file instead."

# Where no address of the public internet lies. Not ipaddress's own is_private and is_global, whose answers
# change between the Python versions that imret runs on.
# Source: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), IPv6 Global Unicast Allocations.
_NOT_PUBLIC_V4 = {
    "0.0.0.0/8": "an unspecified address",
    "10.0.0.0/8": "a private address",
    "100.64.0.0/10": "a carrier-grade NAT address",
    "127.0.0.0/8": "a loopback address",
    "169.254.0.0/16": "a link-local address",
    "172.16.0.0/12": "a private address",
    "192.0.0.0/24": "a reserved address",
    "192.0.2.0/24": "a reserved address",
    "192.88.99.0/24": "a 6to4 address",
    "192.168.0.0/16": "a private address",
    "198.18.0.0/15": "a reserved address",
    "198.51.100.0/24": "a reserved address",
    "203.0.113.0/24": "a reserved address",
    "224.0.0.0/4": "a multicast address",
    "240.0.0.0/4": "a reserved address",
}
# The first that fits counts. Addresses that carry an IPv4 address inside go to wherever a gateway likes, so
# they are refused whatever they carry.
_NOT_PUBLIC_V6 = {
    "::/128": "an unspecified address",
    "::1/128": "a loopback address",
    "::ffff:0:0/96": "an IPv4-mapped address",
    "::/96": "an IPv4-compatible address",
    "64:ff9b::/96": "a NAT64 address",
    "64:ff9b:1::/48": "a NAT64 address",
    "2001::/32": "a Teredo address",
    "2001::/23": "a reserved address",
    "2001:db8::/32": "a reserved address",
    "2002::/16": "a 6to4 address",
    "3fff::/20": "a reserved address",
    "fc00::/7": "a private address",
    "fe80::/10": "a link-local address",
    "fec0::/10": "a private address",
    "ff00::/8": "a multicast address",
}
_GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")

# (family, socket address) as getaddrinfo gives them and connect takes them.
_Address: TypeAlias = tuple[int, tuple[Any, ...]]


def shown_url(url: str) -> str:
    """Return an address as errors and logs may show it.

    Without user name and password; without the query, which is where signed addresses keep their keys; on
    one line, and shortened in its middle to at most 200 characters.
    """
    try:
        has_host = urlsplit(url.strip()).port != 0
    except ValueError:
        has_host = False  # a "/" in a password looks like the end of the host
    secret = r"://[^/?#]*@" if has_host else r"://.*@"
    text = re.sub(secret, "://...@", url.strip(), flags=re.DOTALL)
    path, mark, _ = text.split("#")[0].partition("?")
    path = path.encode("utf-8", "backslashreplace").decode("utf-8")
    path = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in path)
    room = _SHOWN_CHARACTERS - len("?...")
    if len(path) > room:
        path = f"{path[: room - 63]}...{path[-60:]}"
    return path + ("?..." if mark else "")


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
    deadline = _Deadline(timeout_s)
    hops = [url]
    try:
        while True:
            with _open(_parse(hops[-1]), deadline, allow_private=allow_private) as response:
                if response.status not in _REDIRECTS:
                    return _read(response, max_bytes)
                hops.append(_next_hop(response, hops))
    except _Fault as fault:
        raise _error(hops, fault) from fault.__cause__
    except TimeoutError as error:
        cause = f"nothing complete came within {timeout_s:g} s (the time ran out while {deadline.doing})"
        raise _error(hops, _Fault(cause, _direct("Try again, or download the picture."))) from error
    except OSError as error:
        # str(error) may be "[Errno 111] Connection refused"; strerror alone reads better.
        cause = f"{deadline.doing} failed: {error.strerror or error}"
        raise _error(hops, _Fault(cause, _direct("Check the address and your connection."))) from error


class _Fault(Exception):
    """Why a picture cannot be had, before it is known how to show the address."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.remedy = remedy


def _error(hops: list[str], fault: _Fault) -> ImageError:
    via = f" (redirected from {shown_url(hops[0])})" if len(hops) > 1 else ""
    return ImageError(f"Cannot fetch {shown_url(hops[-1])}{via}: {fault}.\n{fault.remedy}")


def _direct(remedy: str) -> str:
    """Add to a remedy, where a proxy is set up, that imret does not use it."""
    names = ("http_proxy", "https_proxy", "all_proxy")
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in names):
        return f"{remedy} imret connects directly: the proxy of your environment is not used."
    return remedy


class _Deadline:
    """One limit in time over many steps."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.doing = "looking up the host"

    def left(self) -> float:
        """Return the seconds that are left; raise TimeoutError when there are none."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


# ---- Address -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """What one request needs of an address."""

    tls: bool
    host: str  # ASCII, without brackets
    port: int
    path: str  # with its query, percent-encoded

    @property
    def host_header(self) -> str:
        host = f"[{self.host.split('%')[0]}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def _parse(url: str) -> _Target:
    url = url.strip()
    if any(ord(char) < 32 or ord(char) == 127 for char in url):
        raise _Fault("the address holds a control character", "Copy the address again.")
    try:
        url.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise _Fault("the address holds half a character", "Copy the address again.") from error
    check = "Check the address."
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _Fault("this is not a valid address", check) from error
    if parts.scheme == "file":
        raise _Fault("only http and https are fetched", "Give the path of the file instead.")
    if parts.scheme not in ("http", "https"):
        raise _Fault("only http and https are fetched", _BY_HAND)
    if "@" in parts.netloc:
        raise _Fault("the address holds a user name or password, which imret does not send", _BY_HAND)
    try:
        port = parts.port if parts.port is not None else (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise _Fault("its port is not a number from 1 to 65535", check) from error
    if port == 0:
        raise _Fault("its port is not a number from 1 to 65535", check)
    host = _ascii_host(parts.hostname or "")
    if host is None:
        raise _Fault("it names no valid host", check)
    path = _percent(parts.path or "/")
    query = f"?{_percent(parts.query)}" if parts.query else ""
    return _Target(tls=parts.scheme == "https", host=host, port=port, path=path + query)


def _ascii_host(host: str) -> str | None:
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host.replace("%25", "%")))
        except ValueError:
            return None
    try:
        ascii_host = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return None
    return ascii_host if re.fullmatch(r"[a-z0-9._-]+", ascii_host) else None


def _percent(text: str) -> str:
    # "%" stays: what is encoded already must not be encoded again.
    return quote(text, safe="%/:=&?~+!$,;'@()*[]|", errors="surrogateescape")


def _next_hop(response: HTTPResponse, hops: list[str]) -> str:
    location = response.headers.get("Location")
    if not location:
        raise _Fault(f"it redirects (status {response.status}) to nowhere", "Check the address.")
    # http.client reads headers as Latin-1; what servers send there is UTF-8, if not ASCII.
    location = location.encode("latin-1").decode("utf-8", "surrogateescape")
    try:
        following = urljoin(hops[-1].strip(), location.strip())
    except ValueError as error:
        raise _Fault("it redirects to what is not a valid address", "Check the address.") from error
    if following in hops:
        raise _Fault("it redirects in a circle", "Open it in a browser and copy the picture's own address.")
    if len(hops) > MAX_REDIRECTS:
        raise _Fault(
            f"it redirects more than {MAX_REDIRECTS} times",
            "Open it in a browser and copy the picture's own address.",
        )
    return following


# ---- Host --------------------------------------------------------------------------------------


def _addresses(target: _Target, deadline: _Deadline, *, allow_private: bool) -> list[_Address]:
    """Look the host up, once, and return the addresses that may be connected to, in the resolver's order."""
    deadline.doing = "looking up the host"
    found = _look_up(target, deadline)
    allowed = []
    refused: tuple[str, str] | None = None
    for address in dict.fromkeys(found):
        number = str(address[1][0])
        kind = None if allow_private else _not_public(number)
        if kind is None:
            allowed.append(address)
        else:
            refused = (number, kind)
    if allowed:
        return allowed
    if refused is None:
        raise _Fault(f"the host {target.host!r} has no address", "Check the address.")
    where = f"its host {target.host!r} is" if target.host == refused[0] else f"its host {target.host!r} is at"
    what = f"{refused[1]}" if target.host == refused[0] else f"{refused[0]}, {refused[1]}"
    raise _Fault(
        f"{where} {what}, which is not of the public internet",
        "If you trust it, use --allow-private-urls (in Python: allow_private=True).",
    )


def _look_up(target: _Target, deadline: _Deadline) -> list[_Address]:
    # getaddrinfo cannot be interrupted and takes no time limit, so it is left behind when time runs out; the
    # resolver's own limits end it.
    answer: queue.SimpleQueue[list[_Address] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(target.host, target.port, 0, socket.SOCK_STREAM)
            answer.put([(family, address) for family, _, _, _, address in found])
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, name="imret-look-up", daemon=True).start()
    try:
        found = answer.get(timeout=deadline.left())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, (socket.gaierror, UnicodeError)):
        reason = getattr(found, "strerror", None) or "no valid name"
        raise _Fault(
            f"the host {target.host!r} cannot be found ({reason})",
            _direct("Check the address and your connection."),
        ) from found
    if isinstance(found, Exception):
        raise found
    return found


def _not_public(number: str) -> str | None:
    """Return what kind of address this is, in words, or None for one of the public internet."""
    address = ipaddress.ip_address(number.split("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return next((kind for block, kind in _NOT_PUBLIC_V4.items() if _within(address, block)), None)
    kind = next((kind for block, kind in _NOT_PUBLIC_V6.items() if _within(address, block)), None)
    return kind or (None if address in _GLOBAL_UNICAST_V6 else "a reserved address")


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, block: str) -> bool:
    return address in ipaddress.ip_network(block)


# ---- Exchange ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _open(target: _Target, deadline: _Deadline, *, allow_private: bool) -> Iterator[HTTPResponse]:
    """Send the request and yield the response, whose headers have been read."""
    import http.client  # 20 ms, and ssl 30 ms more: only for those who search by URL

    addresses = _addresses(target, deadline, allow_private=allow_private)
    deadline.doing = "connecting"
    sock = _connect(addresses, deadline)
    try:
        if target.tls:
            deadline.doing = "agreeing on a secure connection"
            sock = _secure(sock, target, deadline)
        deadline.doing = "asking for the picture"
        _send(sock, _request(target), deadline)
        deadline.doing = "waiting for the answer"
        with http.client.HTTPResponse(_Wire(sock, deadline), method="GET") as response:  # type: ignore[arg-type]
            response.begin()
            deadline.doing = "receiving the picture"
            yield response
    except http.client.IncompleteRead as error:
        raise _Fault("the connection ended before the picture was complete", "Try again.") from error
    except http.client.HTTPException as error:
        raise _Fault(f"the server does not answer in HTTP ({type(error).__name__})", _BY_HAND) from error
    finally:
        sock.close()


def _request(target: _Target) -> bytes:
    lines = (
        f"GET {target.path} HTTP/1.1",
        f"Host: {target.host_header}",
        f"User-Agent: imret/{__version__}",
        "Accept: image/*,*/*;q=0.5",
        "Accept-Encoding: identity",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode("ascii")


def _connect(addresses: list[_Address], deadline: _Deadline) -> socket.socket:
    """Connect to the first address that answers; one that does not may use only its share of the time."""
    for index, (family, address) in enumerate(addresses):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(deadline.left() / (len(addresses) - index))
            sock.connect(address)
            return sock
        except OSError:
            sock.close()
            if index == len(addresses) - 1:
                raise
        except BaseException:
            sock.close()
            raise
    raise AssertionError("no address to connect to")


def _secure(sock: socket.socket, target: _Target, deadline: _Deadline) -> socket.socket:
    import ssl

    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    try:
        sock.settimeout(deadline.left())  # of the whole handshake, not of each of its messages
        # The name from the address, never the number that was looked up: it is what the certificate must
        # name, and what the server chooses the certificate by.
        return context.wrap_socket(sock, server_hostname=target.host.split("%")[0].rstrip("."))
    except ssl.SSLCertVerificationError as error:
        raise _Fault(
            f"the certificate of {target.host!r} is not valid ({error.verify_message.rstrip('.')})",
            "Check the address; certificates of your own authority are found through SSL_CERT_FILE.",
        ) from error
    except ssl.SSLError as error:
        reason = (error.reason or "unknown").replace("_", " ").lower()
        raise _Fault(f"no secure connection could be agreed on ({reason})", "Check the address.") from error


def _send(sock: socket.socket, data: bytes, deadline: _Deadline) -> None:
    rest = memoryview(data)
    while rest:
        sock.settimeout(deadline.left())
        rest = rest[sock.send(rest) :]


class _Wire:
    """What http.client needs of a socket, with a limit over all reading instead of one for each read.

    A server that sends a byte a second never runs into a socket's own timeout.
    """

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._reader = _WireReader(sock, deadline)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reader, _BLOCK_BYTES)


class _WireReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)


def _read(response: HTTPResponse, max_bytes: int) -> bytes:
    """Read the body of a final response."""
    if response.status != 200:
        raise _status_fault(response.status)
    coding = (response.headers.get("Content-Encoding") or "identity").strip().lower()
    if coding != "identity":
        raise _Fault("the server sends it compressed, though asked not to", _BY_HAND)
    announced = response.length
    if announced is not None and announced > max_bytes:
        raise _Fault(f"its {announced:,} bytes are more than the limit of {max_bytes:,} bytes", _BY_HAND)
    body = bytearray()
    while len(body) <= max_bytes:
        block = response.read(_BLOCK_BYTES)
        if not block:
            break
        body += block
    if _is_page(response.headers.get("Content-Type") or "", bytes(body[:1024])):
        raise _Fault(
            "this is a web page, not a picture", "Open it and copy the address of the picture itself."
        )
    if len(body) > max_bytes:
        raise _Fault(f"the server sends more than the limit of {max_bytes:,} bytes", _BY_HAND)
    if announced is not None and len(body) < announced:
        raise _Fault(f"the connection ended after {len(body):,} of {announced:,} bytes", "Try again.")
    if not body:
        raise _Fault("the server sent nothing (0 bytes)", "Check the address.")
    return bytes(body)


def _status_fault(status: int) -> _Fault:
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
        remedy = _BY_HAND
    return _Fault(f"the server answers with status {status}{phrase}", remedy)


def _is_page(content_type: str, start: bytes) -> bool:
    # By content first: servers call pages pictures, and pictures pages.
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return True
    kind = content_type.partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml") and text.startswith(b"<")
