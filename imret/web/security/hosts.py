"""Which Host and Origin a request may name, and where a server may listen."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

from imret.errors import DataError
from imret.net import is_loopback
from imret.web.security.http import RefusedError, Scope, header_values
from imret.web.security.tokens import token_fault

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


def check_binding(host: str, token: str | None, *, port: int = 8750) -> None:
    """Refuse to listen where others can reach the pictures without knowing a token.

    Raises:
        DataError: If the host is not a loopback address and there is no token, or the token is shorter than
            16 characters or has others than visible ASCII; the message says how to make one.
    """
    make = 'export IMRET_TOKEN=$(python -c "import secrets; print(secrets.token_urlsafe(24))")'
    fault = token_fault(token)
    if fault:
        raise DataError(f"{fault}. Make one: {make}")
    if token is None and not is_loopback(host):
        raise DataError(
            f"{host!r} can be reached from other machines, and no token is set: anyone there could look "
            f"through the pictures. Set a token: {make}\n"
            f"or stay on 127.0.0.1 and come through a tunnel: ssh -L {port}:localhost:{port} THIS-MACHINE"
        )


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


def _parse_allowed_host(name: str) -> str:
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


class AllowedHosts:
    """The names by which a server may be called.

    A page of another site can point its own name at 127.0.0.1 (DNS rebinding) and then reads this server as
    its own; its name in the Host header gives it away. An IP literal cannot be rebound.
    """

    def __init__(
        self, host: str, port: int, allow_hosts: Iterable[str] = (), *, is_open: bool = True
    ) -> None:
        """Take what a server is bound to.

        Args:
            host: The address; a loopback one narrows the hosts that pass.
            port: Only messages need it, because a tunnel may show another.
            allow_hosts: Further names (a reverse proxy's), without port.
            is_open: Whether everybody may learn the port: the server asks for no token.

        Raises:
            DataError: If an entry of allow_hosts is no host name.
        """
        self._advice = f"Ask for http://localhost:{port}, or allow" if is_open else "Allow"
        self._loopback = is_loopback(host)
        self._names = {"localhost"} | {_parse_allowed_host(name) for name in allow_hosts}
        if not self._loopback:
            # Its first label too: `http://nas:8750` is typed where the machine calls itself nas.home.lan.
            name = socket.gethostname().lower().rstrip(".")
            self._names |= {name, name.partition(".")[0]}

    def check(self, scope: Scope) -> str:
        """Return the Host header of a request, in lower case.

        Raises:
            RefusedError: If there is none, it is malformed (400), or it is not a name of this server (421).
        """
        values = header_values(scope, b"host")
        if not values:
            raise RefusedError(400, "a request needs a Host header (RFC 9112, section 3.2)")
        text = values[0].decode("latin-1")
        host = _parse_host(text)
        if host is None:
            raise RefusedError(400, f"the Host header {text[:80]!r} is not a host")
        if not self._is_allowed(host):
            raise RefusedError(
                421,
                f"this server does not answer to the name {host!r}. {self._advice} the name: "
                f"imret serve --allow-host {host}",
            )
        return text.lower()

    def _is_allowed(self, host: str) -> bool:
        if host in self._names:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return not self._loopback or is_loopback(host)


def check_origin(scope: Scope, host: str) -> None:
    """Raise RefusedError for what another site's page makes a browser send (CSRF, embedded pictures).

    Programs send neither Origin nor Sec-Fetch-Site, and pass.
    """
    for origin in header_values(scope, b"origin"):
        if origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
            raise RefusedError(403, "requests from the pages of other sites are refused (Origin)")
    sites = header_values(scope, b"sec-fetch-site")
    if all(site in (b"same-origin", b"none") for site in sites):
        return
    # A link to the page may stand anywhere; /login is where the page leads those who have no session.
    navigation = (
        scope["method"] in ("GET", "HEAD")
        and scope["path"] in ("/", "/login")
        and header_values(scope, b"sec-fetch-mode") == [b"navigate"]
        and header_values(scope, b"sec-fetch-dest") == [b"document"]
    )
    if not navigation:
        raise RefusedError(403, "requests from the pages of other sites are refused (Sec-Fetch-Site)")
