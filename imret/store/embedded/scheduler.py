"""Requests from many programs to one worker, a whole one at a time, and the answers back.

One thread, which never waits for any program in particular: bytes are taken and given as the kernel has
them, so one that is slow, stopped half way through a message, or killed holds up nobody. What a request means
is the worker's business. A program sends its next request after the answer to its last.
"""

from __future__ import annotations

import pickle
import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from imret import ipc
from imret.store.embedded.unix_socket import Listener

MAX_MESSAGE_BYTES = 1 << 32  # what claims to be longer is no message of ours
MAX_PEERS = 64  # connected at a time, besides the own one: more wait; macOS allows a process 256 files
_CHUNK_BYTES = 1 << 20


class Peer:
    """A program at the other end.

    Args:
        connection: To it; does not block.

    Attributes:
        request: What it asks, once it is whole, until it is answered.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.request: Any = None
        self._incoming = bytearray()
        self._outgoing = memoryview(b"")

    def receive(self) -> bool:
        """Take what has come in, perhaps until a request is whole; returns False if nothing will any more."""
        try:
            chunk = self.connection.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._incoming += chunk
        return bool(chunk) and self.take()

    def take(self) -> bool:
        """Make a request of the bytes that have come in, if they are enough; False if they cannot be one."""
        end = ipc.HEADER_BYTES + ipc.unpack_length(self._incoming[: ipc.HEADER_BYTES])
        if len(self._incoming) < ipc.HEADER_BYTES or len(self._incoming) < end <= MAX_MESSAGE_BYTES:
            return True
        if end > MAX_MESSAGE_BYTES:
            return False
        try:
            with memoryview(self._incoming) as incoming, incoming[ipc.HEADER_BYTES : end] as body:
                self.request = pickle.loads(body)
        except Exception:  # a pickle can raise anything
            return False
        del self._incoming[:end]
        return True

    def answer(self, message: object) -> bool:
        """Begin to send the answer to its request; returns False if the program is gone."""
        self._outgoing = memoryview(ipc.pack(message))
        self.request = None
        return self.send()

    def send(self) -> bool:
        """Send what the kernel takes of what is left; returns False if the program is gone."""
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[self.connection.send(self._outgoing) :]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def is_receiving(self) -> bool:
        """Whether it has not taken the whole of its last answer yet."""
        return bool(self._outgoing)


class RequestScheduler:
    """Gives every program its turn: the own one every second, the others in the order of their requests.

    Args:
        connection: To the own program.
        listener: What other programs connect to, if any may.
        on_leave: Called with another program that is gone.

    Attributes:
        own: The own program.
        ended: Whether the own program has hung up.
    """

    def __init__(
        self,
        connection: socket.socket,
        listener: Listener | None,
        *,
        on_leave: Callable[[Peer], None] = lambda peer: None,
    ) -> None:
        connection.setblocking(False)
        self.own = Peer(connection)
        self.ended = False
        self._listener = listener
        self._on_leave = on_leave
        self._others: set[Peer] = set()
        self._waiting: deque[Peer] = deque()  # of the others, those with a request
        self._own_was_last = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ, self.own)
        self._listen()

    def next(self, timeout_s: float) -> Peer | None:
        """Return the program whose `request` is to be answered; None if there is none for so long.

        None, too, as soon as the own program has hung up.
        """
        nobody_asks = self.own.request is None and not self._waiting
        for key, _ in self._selector.select(timeout_s if nobody_asks else 0):
            if key.data is None:
                self._accept()
            else:
                self._move(key.data)
        if self.ended:
            return None
        if self.own.request is not None and not (self._own_was_last and self._waiting):
            self._own_was_last = True
            return self.own
        self._own_was_last = False
        return self._waiting.popleft() if self._waiting else None

    def answer(self, peer: Peer, message: object) -> None:
        """Answer a program's request; returns at once, whether or not the program takes it."""
        if not peer.answer(message):
            self._leave(peer)
        elif peer.is_receiving():
            self._selector.register(peer.connection, selectors.EVENT_WRITE, peer)
        else:
            self._listen_to(peer)

    def close(self) -> None:
        """Hang up on all other programs, and let none connect."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for peer in list(self._others):
            peer.connection.close()
        self._others.clear()
        self._selector.close()

    def _accept(self) -> None:
        assert self._listener is not None
        connection = self._listener.accept()
        if connection is None:
            return
        peer = Peer(connection)
        self._others.add(peer)
        self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        if len(self._others) == MAX_PEERS:
            self._selector.unregister(self._listener.socket)

    def _listen(self) -> None:
        if self._listener is not None:
            self._selector.register(self._listener.socket, selectors.EVENT_READ, None)

    def _move(self, peer: Peer) -> None:
        """Go on with a program that has something for us, or takes more from us."""
        if peer.is_receiving():
            if not peer.send():
                self._selector.unregister(peer.connection)
                self._leave(peer)
            elif not peer.is_receiving():
                self._selector.unregister(peer.connection)
                self._listen_to(peer)
        elif not peer.receive():
            self._selector.unregister(peer.connection)
            self._leave(peer)
        elif peer.request is not None:
            # Until it is answered there is nothing to hear from it, not even that it has gone.
            self._selector.unregister(peer.connection)
            self._line_up(peer)

    def _listen_to(self, peer: Peer) -> None:
        """Wait for a program's next request, which may have come in already."""
        if not peer.take():
            self._leave(peer)
        elif peer.request is not None:
            self._line_up(peer)
        else:
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)

    def _line_up(self, peer: Peer) -> None:
        if peer is not self.own:
            self._waiting.append(peer)

    def _leave(self, peer: Peer) -> None:
        if peer is self.own:
            self.ended = True
            return
        peer.connection.close()
        if len(self._others) == MAX_PEERS:
            self._listen()
        self._others.discard(peer)
        self._on_leave(peer)
