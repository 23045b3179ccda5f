"""What this machine and its ports are: which hosts are this one, and whether something listens."""

from __future__ import annotations


def is_loopback(host: str) -> bool:
    """Whether a host, a name or an address without brackets, is this machine and nothing else."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def accepts_connections(host: str, port: int, *, timeout_s: float) -> bool:
    """Whether something listens at a port, and soon. On this machine a free port refuses at once."""
    import socket

    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True
