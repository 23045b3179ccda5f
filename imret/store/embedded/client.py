"""A program's line to a worker of an embedded store: requests out, answers in, one after the other.

Either the program's own worker (`imret.store.embedded.store`), over pipes, or that of another program which
shares what it has open, over a socket.
"""

from __future__ import annotations

import os
import pickle
import socket
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from imret.errors import StoreError, StoreUnavailable
from imret.store.embedded import layout as folder
from imret.store.embedded import unix_socket

_HEADER_BYTES = 8
_CHUNK_BYTES = 1 << 20


class Line:
    """What both have in common: the messages (see `imret.store.embedded.scheduler`), and who talks.

    One thread does all the talking: it puts the requests of many threads in a row, and Ctrl-C, which Python
    delivers to the main thread, interrupts the wait for an answer but never a message half way.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._owner = os.getpid()
        self._talker = ThreadPoolExecutor(1, "imret-edge")

    def call(self, operation: str, *arguments: Any) -> Any:
        """Return the worker's answer, or raise the error it answered.

        Raises:
            StoreUnavailable: If it died; the message says what is known of it.
        """
        if os.getpid() != self._owner:
            raise StoreError("this store was opened before a fork; open it in the process that uses it")
        closed = StoreError(f"the store {self._address!r} is closed")
        try:
            answer = self._talker.submit(self._exchange, (operation, arguments))
        except RuntimeError:  # shut down
            raise closed from None
        try:
            succeeded, result = answer.result()
        except CancelledError:  # shut down while it waited for its turn
            raise closed from None
        if not succeeded:
            raise result
        return result

    def close(self) -> None:
        """Hang up."""
        if os.getpid() == self._owner:
            self._talker.shutdown(wait=False, cancel_futures=True)
            self._hang_up()

    def _exchange(self, request: tuple[str, tuple[Any, ...]]) -> tuple[bool, Any]:
        try:
            body = pickle.dumps(request, protocol=5)
            left = memoryview(len(body).to_bytes(_HEADER_BYTES, "little") + body)
            while left:
                left = left[self._send(left) :]
            length = int.from_bytes(self._read(_HEADER_BYTES), "little")
            answer: tuple[bool, Any] = pickle.loads(self._read(length))
            return answer
        except (OSError, EOFError, ValueError) as error:  # ValueError: closed under us
            raise self._dead() from error

    def _read(self, n: int) -> bytes:
        received = bytearray()
        while len(received) < n:
            chunk = self._receive(min(n - len(received), _CHUNK_BYTES))
            if not chunk:
                raise EOFError
            received += chunk
        return bytes(received)

    def _send(self, left: memoryview) -> int:
        raise NotImplementedError

    def _receive(self, n: int) -> bytes:
        raise NotImplementedError

    def _dead(self) -> StoreUnavailable:
        raise NotImplementedError

    def _hang_up(self) -> None:
        raise NotImplementedError


class Sharer(Line):
    """The line to the worker of another program, for the versions which that has open.

    Args:
        address: Of the store, for messages.
        holder: The other program.
        connection: From `edge_socket.connect`.
    """

    def __init__(self, address: str, holder: folder.Holder, connection: socket.socket) -> None:
        super().__init__(address)
        self._holder = holder
        self._connection = connection
        self._finalizer = weakref.finalize(self, _close, connection, self._owner)

    @classmethod
    def of(cls, address: str, holder: folder.Holder) -> Sharer | None:
        """Return a line to a program that shares, or None if it does not answer: its note was stale."""
        connection = unix_socket.connect(holder.socket)
        return None if connection is None else cls(address, holder, connection)

    def _send(self, left: memoryview) -> int:
        return self._connection.send(left)

    def _receive(self, n: int) -> bytes:
        return self._connection.recv(n)

    def _dead(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"process {self._holder.pid} ({self._holder.command}) has ended, through which this one used "
            f"the store {self._address!r}. What was acknowledged is safe: run the command again."
        )

    def _hang_up(self) -> None:
        self._finalizer()


def _close(connection: socket.socket, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not end its parent's conversation
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for an answer
    connection.close()
