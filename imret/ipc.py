"""Messages between processes over sockets: a pickle after its length in 8 bytes, little-endian.

Whoever may send a pickle may run what they like, so this is for sockets whose other end is a process that
this one started or was started by, or was checked to be this user's. Not `multiprocessing.connection`: 512
vectors of 1,024 numbers took it three times as long, and arrays that come after a message are read into
their place here.
"""

from __future__ import annotations

import pickle
import socket
from typing import Any

HEADER_BYTES = 8


def pack(message: object) -> bytes:
    """Return the bytes that a message travels as."""
    body = pickle.dumps(message, protocol=5)
    return len(body).to_bytes(HEADER_BYTES, "little") + body


def unpack_length(header: bytes | bytearray) -> int:
    """Return how many bytes follow a header."""
    return int.from_bytes(header, "little")


def send(connection: socket.socket, message: object) -> None:
    """Send a message over a blocking socket."""
    connection.sendall(pack(message))


def receive(connection: socket.socket) -> Any:
    """Return the next message of a blocking socket.

    Raises:
        EOFError: If the other end has hung up.
    """
    header = bytearray(HEADER_BYTES)
    receive_into(connection, memoryview(header))
    body = bytearray(unpack_length(header))
    receive_into(connection, memoryview(body))
    return pickle.loads(body)


def receive_into(connection: socket.socket, buffer: memoryview) -> None:
    """Fill a buffer with the bytes that come next.

    Args:
        connection: A blocking socket.
        buffer: Of bytes, in one dimension.

    Raises:
        EOFError: If the other end hangs up before it is full.
    """
    while buffer:
        # All that is missing in one call: each would wait for its turn in Python.
        n = connection.recv_into(buffer, 0, socket.MSG_WAITALL)
        if n == 0:
            raise EOFError
        buffer = buffer[n:]
