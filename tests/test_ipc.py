"""Messages between processes: whole, in order, and an end that is noticed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from imret import ipc


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_messages_and_what_follows_them_arrive_as_they_were_sent(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = ends
    array = np.random.default_rng(0).integers(256, size=(64, 224, 224), dtype=np.uint8)  # 3 MB: many pieces

    def send() -> None:
        ipc.send(sender, ("upsert", ["é", 1, None]))
        ipc.send(sender, array)
        sender.sendall(array.data)

    sending = threading.Thread(target=send)
    sending.start()
    assert ipc.receive(receiver) == ("upsert", ["é", 1, None])
    np.testing.assert_array_equal(ipc.receive(receiver), array)
    filled = np.empty_like(array)
    ipc.receive_into(receiver, filled.reshape(-1).data)
    np.testing.assert_array_equal(filled, array)
    sending.join()


@pytest.mark.parametrize("n_bytes", [0, 5, ipc.HEADER_BYTES, ipc.HEADER_BYTES + 3])
def test_an_end_before_or_within_a_message_is_noticed(
    ends: tuple[socket.socket, socket.socket], n_bytes: int
) -> None:
    sender, receiver = ends
    sender.sendall(ipc.pack("a message")[:n_bytes])
    sender.close()
    with pytest.raises(EOFError):
        ipc.receive(receiver)
