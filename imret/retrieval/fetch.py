"""A picture's address on the web to the bytes behind it, for a query: limited in time, size and reach.

Proxy settings (HTTPS_PROXY and the like) are not used: a proxy would look the host up itself, and the check
of its address in `imret.retrieval.public_network` would mean nothing. httpcore, the transport of httpx, does
HTTP and TLS: unlike httpx it leaves redirects, compression and proxies alone. Decoding is for
`imret.images.decode.load_image`, which takes the bytes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from imret.errors import ImageError
from imret.retrieval.web_address import (
    DOWNLOAD_IT,
    FetchError,
    Target,
    direct_remedy,
    parse_target,
    shown_url,
)
from imret.settings import __version__

if TYPE_CHECKING:
    import httpcore

    from imret.retrieval.public_network import Deadline

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

    from imret.retrieval.public_network import Deadline

    deadline = Deadline(timeout_s)
    hops = [url]
    try:
        while True:
            body = _request(parse_target(hops[-1]), deadline, hops, allow_private, max_bytes)
            if body is not None:
                return body
    except FetchError as fault:
        raise _error(hops, str(fault), fault.remedy, public=fault.public) from fault.__cause__
    except (TimeoutError, httpcore.TimeoutException) as error:
        cause = f"nothing complete came within {timeout_s:g} s (the time ran out while {deadline.doing})"
        raise _error(hops, cause, direct_remedy("Try again, or download the picture.")) from error
    except httpcore.ProtocolError as error:
        cause = f"the server does not answer in HTTP ({type(error).__name__})"
        raise _error(hops, cause, DOWNLOAD_IT) from error
    except (OSError, httpcore.NetworkError) as error:
        # str(error) may be "[Errno 111] Connection refused"; strerror alone reads better.
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        cause = f"{deadline.doing} failed: {reason}"
        raise _error(hops, cause, direct_remedy("Check the address and your connection.")) from error


def _error(hops: list[str], cause: str, remedy: str, *, public: str = "") -> ImageError:
    via = f" (redirected from {shown_url(hops[0])})" if len(hops) > 1 else ""
    what = f"Cannot fetch {shown_url(hops[-1])}{via}"
    # The address is the one that was asked for: whoever asked may be told of it.
    return ImageError(f"{what}: {cause}.\n{remedy}", public=f"{what}: {public or cause}.\n{remedy}")


# ---- One request -------------------------------------------------------------------------------


def _request(
    target: Target, deadline: Deadline, hops: list[str], allow_private: bool, max_bytes: int
) -> bytes | None:
    """Return the body of an answer; or None, and what it redirects to is one more of the hops."""
    import ssl

    import httpcore

    from imret.retrieval.public_network import PublicBackend

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
    backend = PublicBackend(deadline, allow_private)
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
