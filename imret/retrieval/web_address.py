"""Addresses on the web: how they are read and shown, and which of them lie in the public internet."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

_SHOWN_CHARACTERS = 200
DOWNLOAD_IT = "Download the picture and search with the file instead."

# Where no address of the public internet lies. Not ipaddress's own is_private and is_global, whose answers
# change between the Python versions that imret runs on.
# Source: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), IPv6 Global Unicast Allocations.
# The first that fits counts. Addresses that carry an IPv4 address inside go to wherever a gateway likes, so
# they are refused whatever they carry.
_NOT_PUBLIC = {
    "an unspecified address": "0.0.0.0/8 ::/128",
    "a loopback address": "127.0.0.0/8 ::1/128",
    "a private address": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 fec0::/10",
    "a link-local address": "169.254.0.0/16 fe80::/10",
    "a multicast address": "224.0.0.0/4 ff00::/8",
    "a carrier-grade NAT address": "100.64.0.0/10",
    "a 6to4 address": "192.88.99.0/24 2002::/16",
    "an IPv4-mapped address": "::ffff:0:0/96",
    "an IPv4-compatible address": "::/96",
    "a NAT64 address": "64:ff9b::/96 64:ff9b:1::/48",
    "a Teredo address": "2001::/32",
    "a reserved address": "192.0.0.0/24 192.0.2.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 "
    "240.0.0.0/4 2001::/23 2001:db8::/32 3fff::/20",
}
_GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")


class FetchError(Exception):
    """Why a picture cannot be had, before it is known how to show the address.

    Attributes:
        remedy: A sentence on what to do.
        public: The cause without what only this machine's resolver knows: see `ImretError.public`.
    """

    def __init__(self, cause: str, remedy: str, *, public: str = "") -> None:
        super().__init__(cause)
        self.remedy = remedy
        self.public = public or cause


@dataclass(frozen=True)
class Target:
    """What one request needs of an address.

    Attributes:
        tls: Whether it is https.
        host: ASCII, without brackets.
        port: From 1 to 65535.
        path: With its query, percent-encoded.
    """

    tls: bool
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        """The value of the request's Host header."""
        host = f"[{self.host.split('%')[0]}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def parse_target(url: str) -> Target:
    """Return what to request of an http or https address.

    Raises:
        FetchError: If it is malformed, of another scheme, or holds a user name or password.
    """
    url = url.strip()
    if any(ord(char) < 32 or ord(char) == 127 for char in url):
        raise FetchError("the address holds a control character", "Copy the address again.")
    try:
        url.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise FetchError("the address holds half a character", "Copy the address again.") from error
    check = "Check the address."
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise FetchError("this is not a valid address", check) from error
    if parts.scheme == "file":
        raise FetchError("only http and https are fetched", "Give the path of the file instead.")
    if parts.scheme not in ("http", "https"):
        raise FetchError("only http and https are fetched", DOWNLOAD_IT)
    if "@" in parts.netloc:
        raise FetchError("the address holds a user name or password, which imret does not send", DOWNLOAD_IT)
    try:
        port = parts.port if parts.port is not None else (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise FetchError("its port is not a number from 1 to 65535", check) from error
    if port == 0:
        raise FetchError("its port is not a number from 1 to 65535", check)
    host = _ascii_host(parts.hostname or "")
    if host is None:
        raise FetchError("it names no valid host", check)
    path = _percent(parts.path or "/")
    query = f"?{_percent(parts.query)}" if parts.query else ""
    return Target(tls=parts.scheme == "https", host=host, port=port, path=path + query)


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


def direct_remedy(remedy: str) -> str:
    """Add to a remedy, where a proxy is set up, that imret does not use it."""
    names = ("http_proxy", "https_proxy", "all_proxy")
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in names):
        return f"{remedy} imret connects directly: the proxy of your environment is not used."
    return remedy


def not_public(number: str) -> str | None:
    """Return what kind of IP address this is, in words, or None for one of the public internet."""
    address = ipaddress.ip_address(number.split("%")[0])
    for kind, blocks in _NOT_PUBLIC.items():
        if any(address in ipaddress.ip_network(block) for block in blocks.split()):
            return kind
    is_unassigned = isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST_V6
    return "a reserved address" if is_unassigned else None
