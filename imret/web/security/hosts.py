"""Which Host and Origin a request may name, and where a server may listen."""

from __future__ import annotations

import ipaddress
import re

from imret.errors import DataError
from imret.web.security.http import Scope, _RefusedError, _values
from imret.web.security.tokens import _token_fault

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")


_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


def check_binding(host: str, token: str | None, *, port: int = 8750) -> None:
    """Refuse to listen where others can reach the pictures without knowing a token.

    Raises:
        DataError: If the host is not a loopback address and there is no token, or the token is shorter than
            16 characters or has others than visible ASCII; the message says how to make one.
    """
    make = 'export IMRET_TOKEN=$(python -c "import secrets; print(secrets.token_urlsafe(24))")'
    fault = _token_fault(token)
    if fault:
        raise DataError(f"{fault}. Make one: {make}")
    if token is None and not is_loopback(host):
        raise DataError(
            f"{host!r} can be reached from other machines, and no token is set: anyone there could look "
            f"through the pictures. Set a token: {make}\n"
            f"or stay on 127.0.0.1 and come through a tunnel: ssh -L {port}:localhost:{port} THIS-MACHINE"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on host: localhost, 127.0.0.0/8 or ::1.

    Other names count as reachable from elsewhere, whatever they resolve to today.
    """
    if host.lower() == "localhost":
        return True
    try:
        return _is_loopback_address(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False


def _is_loopback_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    # Python before 3.13 does not see loopback in ::ffff:127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _parse_host(text: str) -> str | None:
    """Return the host in a Host header, in its one canonical spelling; None if it is malformed."""
    match = _HOST.fullmatch(text)
    if match is None or int(match[3] or 0) > 65535:
        return None
    try:
        if match[1] is not None:
            return str(ipaddress.IPv6Address(match[1]))
    except ValueError:
        return None
    name = match[2].lower().removesuffix(".")  # "localhost." is the same name
    return name if _NAME.fullmatch(name) else None


def _parse_allowed(name: str) -> str:
    """Return an entry of allow_hosts as _parse_host would."""
    bare = name.strip().strip("[]")
    try:
        host = _parse_host(f"[{bare}]" if ":" in bare else bare.encode("idna").decode())
    except UnicodeError:
        host = None
    if host is None:
        raise DataError(
            f"{name!r} is not a host name. Give it without scheme and port: --allow-host photos.example"
        )
    return host


def _check_origin(scope: Scope, host: str) -> None:
    """Raise _RefusedError for what another site's page makes a browser send (CSRF, embedded pictures).

    Programs send neither Origin nor Sec-Fetch-Site, and pass.
    """
    for origin in _values(scope, b"origin"):
        if origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
            raise _RefusedError(403, "requests from the pages of other sites are refused (Origin)")
    sites = _values(scope, b"sec-fetch-site")
    if all(site in (b"same-origin", b"none") for site in sites):
        return
    # A link to the page may stand anywhere; /login is where the page leads those who have no session.
    navigation = (
        scope["method"] in ("GET", "HEAD")
        and scope["path"] in ("/", "/login")
        and _values(scope, b"sec-fetch-mode") == [b"navigate"]
        and _values(scope, b"sec-fetch-dest") == [b"document"]
    )
    if not navigation:
        raise _RefusedError(403, "requests from the pages of other sites are refused (Sec-Fetch-Site)")
