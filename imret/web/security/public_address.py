"""By which address browsers reach a server that stands behind a proxy, and the path below which that puts it.

Most of it need not be known: the page, the login and redirects name each other by relative addresses, and
the session cookie has no Path, so a browser keeps it for the folder that it asked. Nothing is taken from
X-Forwarded-* headers, which anyone may send.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from imret.errors import DataError
from imret.web.security.http import DEFAULT_PORTS, Scope, parse_authority

# What a proxy, a browser and this server spell alike: nothing that would be percent-encoded.
_ROOT_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_OWN_PATHS = frozenset({"api", "static", "login", "logout", "healthz", "readyz", "metrics", "favicon.ico"})


@dataclass(frozen=True)
class PublicAddress:
    """What is known of the address that browsers use.

    Attributes:
        root_path: The path below which the proxy puts the server, such as /photos; empty for none.
        origin: Scheme, host and port of its pages, as a browser writes them; None where it was not said.
        host: The name in the origin.
        port: The port in the origin, also where a browser leaves it out.
    """

    root_path: str = ""
    origin: str | None = None
    host: str | None = None
    port: int | None = None

    @property
    def base(self) -> str:
        """What an address of this server begins with in a page or a redirect that stands beside /."""
        return self.root_path or "."

    @property
    def is_https(self) -> bool:
        """Whether it is known that browsers come by TLS."""
        return self.origin is not None and self.origin.startswith("https:")

    def in_page(self, text: str) -> str:
        """Return a page of the server whose addresses begin with `"./` as browsers have to see them."""
        return text.replace('"./', f'"{self.base}/')

    def without_root(self, scope: Scope) -> Scope:
        """Return the scope of a request as if the server stood at /.

        Some proxies strip the path, others leave it; either is taken. No path of the server's own begins
        like a root path (parse_root_path), so the two cannot be confused.
        """
        root = self.root_path
        path, raw = scope["path"], scope.get("raw_path")
        if not root or (path != root and not path.startswith(f"{root}/")):
            return scope
        stripped = {**scope, "path": path[len(root) :] or "/"}
        if raw:
            if not raw.startswith(root.encode()):
                return scope  # spelt with %XX, which nobody does without a purpose
            stripped["raw_path"] = raw[len(root) :] or b"/"
        return stripped


def parse_root_path(text: str) -> str:
    """Return a root path in its one spelling: with a slash before it and none after; empty for /.

    Raises:
        DataError: If it is no plain path, or begins with a path that the server itself has.
    """
    path = "/" + text.strip().strip("/")
    if path == "/":
        return ""
    first, *_ = segments = path[1:].split("/")
    if not _ROOT_PATH.fullmatch(path) or {".", ".."} & set(segments):
        raise DataError(
            f"{text!r} cannot be the path below which a proxy puts this server: a path has letters, digits "
            "and . _ ~ - between its slashes. For example: --root-path /photos"
        )
    if first in _OWN_PATHS:
        raise DataError(
            f"the path {path!r} is taken: /{first} is an address of imret serve itself, and could be meant "
            "by either. Choose another, such as: --root-path /photos"
        )
    return path


def parse_public_address(public_url: str | None, root_path: str | None) -> PublicAddress:
    """Return what --public-url and --root-path say.

    Args:
        public_url: Such as https://nas:8443/photos.
        root_path: The path alone, where the rest need not be known.

    Raises:
        DataError: If one of them cannot be read, or they name two paths.
    """
    root = None if root_path is None else parse_root_path(root_path)
    if public_url is None:
        return PublicAddress(root or "")
    try:
        url = urlsplit(public_url.strip())
        authority = parse_authority(url.netloc.encode("idna").decode())
    except ValueError:  # brackets without an address, a label that is too long
        authority = None
    if authority is None or url.scheme not in DEFAULT_PORTS:
        raise DataError(
            f"--public-url {public_url!r} is not the address of a page. Give it as browsers show it, for "
            "example: --public-url https://nas.example:8443/photos"
        )
    if url.query or url.fragment:
        raise DataError(f"--public-url {public_url!r} has more than a path behind the host: leave it out.")
    from_url = parse_root_path(url.path)
    if root is not None and root != from_url:
        raise DataError(
            f"--public-url {public_url!r} and --root-path {root_path!r} name two paths. Leave one out."
        )
    host, port = authority
    named = f"[{host}]" if ":" in host else host
    origin = f"{url.scheme}://{named}" + ("" if port in (None, DEFAULT_PORTS[url.scheme]) else f":{port}")
    return PublicAddress(from_url, origin, host, port or DEFAULT_PORTS[url.scheme])
