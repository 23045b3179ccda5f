"""Which hosts are this machine, and whether something listens at a port."""

from __future__ import annotations

import socket

import pytest

from imret.net import accepts_connections, is_loopback


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "::ffff:127.0.0.1", "[::1]", "127.0.0.1", "127.9.9.9", "::1"]
)
def test_this_machine_is_known_by_its_names_and_addresses(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "a.localhost", "example.com", "localhost.example.com", "0.0.0.0", "::", "10.0.0.1"]
)
def test_other_hosts_are_not_this_machine(host: str) -> None:
    assert not is_loopback(host)


def test_a_port_accepts_connections_while_something_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert accepts_connections("127.0.0.1", port, timeout_s=5)
    assert not accepts_connections("127.0.0.1", port, timeout_s=5)
