"""Which Host and Origin a request may name, and where a server may listen."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from imret.errors import DataError
from imret.net import is_loopback
from imret.web.security.http import DEFAULT_PORTS, RefusedError, Scope, header_values, parse_authority
from imret.web.security.public_address import PublicAddress
from imret.web.security.tokens import token_fault


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


def _parse_allowed_host(name: str) -> str:
    """Return an entry of allow_hosts as parse_authority would."""
    bare = name.strip().strip("[]")
    try:
        authority = parse_authority(f"[{bare}]" if ":" in bare else bare.encode("idna").decode())
    except UnicodeError:
        authority = None
    if authority is None:
        raise DataError(
            f"{name!r} is not a host name. Give it without scheme and port: --allow-host photos.example\n"
            "or the whole address that browsers use: --public-url https://photos.example:8443/"
        )
    return authority[0]


class AllowedHosts:
    """The names by which a server may be called.

    A page of another site can point its own name at 127.0.0.1 (DNS rebinding) and then reads this server as
    its own; its name in the Host header gives it away. An IP literal cannot be rebound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        allow_hosts: Iterable[str] = (),
        *,
        public: PublicAddress,
        is_open: bool = True,
    ) -> None:
        """Take what a server is bound to.

        Args:
            host: The address; a loopback one narrows the hosts that pass.
            port: Only messages need it, because a tunnel may show another.
            allow_hosts: Further names (a reverse proxy's), without port.
            public: The address that browsers use, whose host is allowed, too.
            is_open: Whether everybody may learn the port: the server asks for no token.

        Raises:
            DataError: If an entry of allow_hosts is no host name.
        """
        self._advice = f"Ask for http://localhost:{port}, or allow" if is_open else "Allow"
        self._loopback = is_loopback(host)
        self._names = {"localhost"} | {_parse_allowed_host(name) for name in allow_hosts}
        if public.host is not None:
            self._names.add(public.host)
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
        authority = parse_authority(text)
        if authority is None:
            raise RefusedError(400, f"the Host header {text[:80]!r} is not a host")
        host, _ = authority
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


def check_origin(scope: Scope, host: str, public: PublicAddress) -> None:
    """Refuse what another site's page makes a browser send (CSRF, embedded pictures).

    Sec-Fetch-Site decides where it is sent, because it compares the page with the address that the browser
    itself uses, whatever a proxy makes of Host; no script can set it. Browsers leave it out on plain http to
    other machines, and there Origin has to name the Host, or the public address. Programs send neither, and
    pass.

    Args:
        scope: The request.
        host: Its Host header.
        public: The address that browsers use, as far as it was said.

    Raises:
        RefusedError: For a page that is not this server's own (403).
    """
    sites = header_values(scope, b"sec-fetch-site")
    if sites == [b"same-origin"]:
        return
    for value in header_values(scope, b"origin"):
        origin = value.decode("latin-1").lower()
        if origin != public.origin and not _names_host(origin, host, public):
            raise RefusedError(
                403, "requests from the pages of other sites are refused (Origin)" + _advice(origin, host)
            )
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


def _names_host(origin: str, host: str, public: PublicAddress) -> bool:
    """Whether an Origin is the server that a Host header names, at the same port."""
    scheme, _, authority = origin.partition("://")
    parsed, wanted = parse_authority(authority), parse_authority(host)
    if parsed is None or wanted is None or scheme not in DEFAULT_PORTS:
        return False
    if wanted[0] == public.host and wanted[1] in (None, public.port):
        return False  # through the proxy, whose origin is known; it may have left out the port
    default = DEFAULT_PORTS[scheme]  # which a browser leaves out, and a proxy may add
    return (parsed[0], parsed[1] or default) == (wanted[0], wanted[1] or default)


def _advice(origin: str, host: str) -> str:
    """What to do where the Origin looks like this server behind a proxy that does not pass the port."""
    parsed, wanted = parse_authority(origin.partition("://")[2]), parse_authority(host)
    if parsed is None or wanted is None or parsed[0] != wanted[0]:
        return ""
    return (
        f". The page was at {origin}, and the request names the host {host}. If a proxy stands between: let "
        f"it pass the Host header with its port, or start imret serve --public-url {origin}"
    )
