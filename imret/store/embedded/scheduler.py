"""Requests from many programs to one worker, a whole one at a time, and the answers back.

One thread, which never waits for any program in particular: bytes are taken and given as the kernel has
them, so one that is slow, stopped half way through a message, or killed holds up nobody. The worker's own
program comes in by pipes, others by a socket. What a request means is the worker's business.

A message is a pickle, after its length in 8 bytes, little-endian. A program sends its next request after
the answer to its last.
"""

from __future__ import annotations

import os
import pickle
import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from imret.store.embedded.unix_socket import Listener

HEADER_BYTES = 8
MAX_MESSAGE_BYTES = 1 << 32  # what claims to be longer is no message of ours
MAX_PROGRAMS = 64  # connected at a time, besides the own one: more wait; macOS allows a process 256 files
_CHUNK_BYTES = 1 << 20


class Program:
    """A program at the other end.

    Args:
        reading: Descriptor that its requests come from; does not block.
        writing: Descriptor that the answers go to; the same for a socket.
        connection: The socket, if it is one.
    """

    def __init__(self, reading: int, writing: int, connection: socket.socket | None = None) -> None:
        self.reading = reading
        self.writing = writing
        self.connection = connection
        self.request: Any = None  # whole, and not answered yet
        self._incoming = bytearray()
        self._outgoing = memoryview(b"")

    def receive(self) -> bool:
        """Take what has come in, perhaps until a request is whole; returns False if nothing will any more."""
        try:
            chunk = os.read(self.reading, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._incoming += chunk
        return bool(chunk) and self.take()

    def take(self) -> bool:
        """Make a request of the bytes that have come in, if they are enough; False if they cannot be one."""
        length = int.from_bytes(self._incoming[:HEADER_BYTES], "little")
        end = HEADER_BYTES + length
        if len(self._incoming) < HEADER_BYTES or len(self._incoming) < end <= MAX_MESSAGE_BYTES:
            return True
        if end > MAX_MESSAGE_BYTES:
            return False
        try:
            self.request = pickle.loads(memoryview(self._incoming)[HEADER_BYTES:end].tobytes())
        except Exception:  # a pickle can raise anything
            return False
        del self._incoming[:end]
        return True

    def answer(self, message: object) -> bool:
        """Begin to send the answer to its request; returns False if the program is gone."""
        body = pickle.dumps(message, protocol=5)
        self._outgoing = memoryview(len(body).to_bytes(HEADER_BYTES, "little") + body)
        self.request = None
        return self.send()

    def send(self) -> bool:
        """Send what the kernel takes of what is left; returns False if the program is gone."""
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[os.write(self.writing, self._outgoing) :]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def is_receiving(self) -> bool:
        """Whether it has not taken the whole of its last answer yet."""
        return bool(self._outgoing)


class Turns:
    """Gives every program its turn: the own one every second, the others in the order of their requests.

    Args:
        requests: Descriptor of the pipe from the own program.
        replies: Descriptor of the pipe to it.
        listener: What other programs connect to, if any may.
        on_leave: Called with another program that is gone.

    Attributes:
        own: The own program.
        ended: Whether the own program has hung up.
    """

    def __init__(
        self,
        requests: int,
        replies: int,
        listener: Listener | None,
        *,
        on_leave: Callable[[Program], None] = lambda program: None,
    ) -> None:
        for descriptor in (requests, replies):
            os.set_blocking(descriptor, False)
        self.own = Program(requests, replies)
        self.ended = False
        self._listener = listener
        self._on_leave = on_leave
        self._others: set[Program] = set()
        self._waiting: deque[Program] = deque()  # of the others, those with a request
        self._own_was_last = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ, self.own)
        self._listen()

    def next(self, timeout_s: float) -> Program | None:
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

    def answer(self, program: Program, message: object) -> None:
        """Answer a program's request; returns at once, whether or not the program takes it."""
        if not program.answer(message):
            self._leave(program)
        elif program.is_receiving():
            self._selector.register(program.writing, selectors.EVENT_WRITE, program)
        else:
            self._listen_to(program)

    def close(self) -> None:
        """Hang up on all other programs, and let none connect."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for program in list(self._others):
            assert program.connection is not None
            program.connection.close()
        self._others.clear()
        self._selector.close()

    def _accept(self) -> None:
        assert self._listener is not None
        connection = self._listener.accept()
        if connection is None:
            return
        program = Program(connection.fileno(), connection.fileno(), connection)
        self._others.add(program)
        self._selector.register(program.reading, selectors.EVENT_READ, program)
        if len(self._others) == MAX_PROGRAMS:
            self._selector.unregister(self._listener.socket)

    def _listen(self) -> None:
        if self._listener is not None:
            self._selector.register(self._listener.socket, selectors.EVENT_READ, None)

    def _move(self, program: Program) -> None:
        """Go on with a program that has something for us, or takes more from us."""
        if program.is_receiving():
            if not program.send():
                self._selector.unregister(program.writing)
                self._leave(program)
            elif not program.is_receiving():
                self._selector.unregister(program.writing)
                self._listen_to(program)
        elif not program.receive():
            self._selector.unregister(program.reading)
            self._leave(program)
        elif program.request is not None:
            # Until it is answered there is nothing to hear from it, not even that it has gone.
            self._selector.unregister(program.reading)
            self._line_up(program)

    def _listen_to(self, program: Program) -> None:
        """Wait for a program's next request, which may have come in already."""
        if not program.take():
            self._leave(program)
        elif program.request is not None:
            self._line_up(program)
        else:
            self._selector.register(program.reading, selectors.EVENT_READ, program)

    def _line_up(self, program: Program) -> None:
        if program is not self.own:
            self._waiting.append(program)

    def _leave(self, program: Program) -> None:
        if program is self.own:
            self.ended = True
            return
        assert program.connection is not None
        program.connection.close()
        if len(self._others) == MAX_PROGRAMS:
            self._listen()
        self._others.discard(program)
        self._on_leave(program)
