"""A program's line to a worker of an embedded store: requests out, answers in, one after the other.

Either the program's own worker (`imret.store.embedded.store`), over pipes, or that of another program which
shares what it has open, over a socket.
"""

from __future__ import annotations

import os
import pickle
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from imret.errors import StoreError, StoreUnavailable
from imret.store.embedded import locks, unix_socket

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

    def __init__(self, address: str, holder: locks.Holder, connection: socket.socket) -> None:
        super().__init__(address)
        self._holder = holder
        self._connection = connection
        self._finalizer = weakref.finalize(self, _close, connection, self._owner)

    @classmethod
    def of(cls, address: str, holder: locks.Holder) -> Sharer | None:
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


CLOSE_TIMEOUT_S = 5.0  # a worker that is still busy then is killed; what it acknowledged is in its log


_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from imret.store.embedded.worker import main; main()"


class WorkerProcess(Line):
    """The line to this program's own worker.

    Attributes:
        socket: Path of the socket through which it lets others use what it has open, or "".
    """

    def __init__(self, address: str, share_in: Path | None, index_from_kb: int) -> None:
        super().__init__(address)
        # A file, not a pipe: nobody needs to drain it, and its end can be read after the worker's death.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            # Its own session, so that Ctrl-C in the terminal ends the program and not a write half way.
            start_new_session=True,
            # One thread is enough for the little that numpy does there, and starts faster.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._finalizer = weakref.finalize(self, _end, self._process, self._stderr, self._owner)
        holder = locks.Holder(self._owner, _command(), time.strftime("%Y-%m-%d %H:%M"))
        try:
            self.socket: str = self.call("hello", self._owner, share_in, holder, index_from_kb)
        except BaseException:
            self.close()
            raise

    def _send(self, left: memoryview) -> int:
        return self._stdin.write(left) or 0

    def _receive(self, n: int) -> bytes:
        return self._stdout.read(n) or b""

    def _hang_up(self) -> None:
        """End the worker; waits until it has closed its files."""
        self._finalizer()

    def _dead(self) -> StoreUnavailable:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        code = self._process.returncode
        if code is None:
            how = "stopped answering"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGBUS:
                how += " (is the disk full?)"
        else:
            how = f"ended with exit code {code}"
        said = ""
        with suppress(OSError, ValueError):
            size = self._stderr.seek(0, os.SEEK_END)
            self._stderr.seek(max(0, size - 4096))
            lines = self._stderr.read().decode(errors="replace").strip().splitlines()[-5:]
            said = "".join(f"\n  {line}" for line in lines)
        return StoreUnavailable(
            f"the process that serves the store {self._address!r} {how}. What it acknowledged is safe: "
            f"run the command again.{' Its last words:' if said else ''}{said}"
        )


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes], owner: int) -> None:
    """Let a worker close its files and end; kill it if that takes long (a log keeps what it acknowledged)."""
    assert process.stdin is not None
    assert process.stdout is not None
    if os.getpid() == owner:  # a forked child must not wait for, or kill, its parent's worker
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for file in (process.stdin, process.stdout, stderr):
        with suppress(OSError):
            file.close()


def _command() -> str:
    """Return what was typed to start this program, shortened."""
    argv = [os.path.basename(sys.argv[0]) or "python", *sys.argv[1:]] if sys.argv else ["python"]
    line = shlex.join(argv)
    return line if len(line) <= 200 else line[:197] + "..."
