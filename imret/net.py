"""What this machine and its ports are: which hosts are this one, and whether something listens."""

from __future__ import annotations


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on a host: localhost, 127.0.0.0/8 or ::1.

    Other names count as reachable from elsewhere, whatever they resolve to today.
    """
    import ipaddress

    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    # Python before 3.13 does not see loopback in ::ffff:127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def qdrant_port(scheme: str, path: str) -> int:
    """Return the port of a Qdrant server whose URL names none.

    Qdrant's own, 6333; but a URL with a path is that of a proxy, and means what it means in a browser.

    Args:
        scheme: http or https.
        path: Of the URL.
    """
    if path.strip("/"):
        return 443 if scheme == "https" else 80
    return 6333


def accepts_connections(host: str, port: int, *, timeout_s: float) -> bool:
    """Whether something listens at a port, and soon. On this machine a free port refuses at once."""
    import socket

    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True
