"""Clients of the workers of an embedded store: requests out, answers in, one after the other.

Either of the program's own worker, which is started here, or of that of another program which shares what it
has open.
"""

from __future__ import annotations

import os
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

from imret import ipc
from imret.errors import StoreError, StoreUnavailable
from imret.store.embedded import locks, unix_socket

CLOSE_TIMEOUT_S = 5.0  # a worker that is still busy then is killed; what it acknowledged is in its log

_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; from imret.store.embedded.worker import main; "
    "main(int(sys.argv[1]))"
)


_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_FULL_BYTES = 16 << 20
_IF_AGAIN = (
    " If that happens again with one collection, its files are damaged: put it back from a backup, or delete "
    "it (imret collections delete NAME) and ingest again."
)


class WorkerClient:
    """Asks a worker, for many threads.

    One thread does all the talking: it puts the requests of many threads in a row, and Ctrl-C, which Python
    delivers to the main thread, interrupts the wait for an answer but never a message half way.

    Args:
        address: Of the store, for messages.
        connection: To the worker. A request is (operation, arguments), an answer (True, result) or (False,
            exception).
    """

    def __init__(self, address: str, connection: socket.socket) -> None:
        self._address = address
        self._connection = connection
        self._pid = os.getpid()
        self._talker = ThreadPoolExecutor(1, "imret-edge")

    def call(self, operation: str, *arguments: Any) -> Any:
        """Return the worker's answer, or raise the error it answered.

        Raises:
            StoreUnavailable: If it died; the message says what is known of it.
        """
        if os.getpid() != self._pid:
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
        if os.getpid() == self._pid:
            self._talker.shutdown(wait=False, cancel_futures=True)
            self._hang_up()

    def _exchange(self, request: tuple[str, tuple[Any, ...]]) -> tuple[bool, Any]:
        try:
            ipc.send(self._connection, request)
            answer: tuple[bool, Any] = ipc.receive(self._connection)
            return answer
        except (OSError, EOFError) as error:
            raise self._dead() from error

    def _dead(self) -> StoreUnavailable:
        raise NotImplementedError

    def _hang_up(self) -> None:
        raise NotImplementedError


class PeerClient(WorkerClient):
    """Asks the worker of another program, about the versions which that has open.

    Args:
        address: Of the store, for messages.
        owner: The other program.
        connection: From `unix_socket.connect`.
    """

    def __init__(self, address: str, owner: locks.LockOwner, connection: socket.socket) -> None:
        super().__init__(address, connection)
        self._lock_owner = owner
        self._finalizer = weakref.finalize(self, _close, connection, self._pid)

    @classmethod
    def connect(cls, address: str, owner: locks.LockOwner) -> PeerClient | None:
        """Return a client of a program that shares, or None if it does not answer: its note was stale."""
        connection = unix_socket.connect(owner.socket)
        return None if connection is None else cls(address, owner, connection)

    def _dead(self) -> StoreUnavailable:
        owner = self._lock_owner
        return StoreUnavailable(
            f"process {owner.pid} ({owner.command}) has ended, through which this one used "
            f"the store {self._address!r}. What was acknowledged is safe: run the command again."
        )

    def _hang_up(self) -> None:
        self._finalizer()


def _close(connection: socket.socket, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not end its parent's conversation
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for an answer
    connection.close()


class WorkerProcess(WorkerClient):
    """Starts this program's own worker, and asks it.

    Attributes:
        socket: Path of the socket through which it lets others use what it has open, or "".
        crash: The signal that it died of, if that was a fault of its own, such as "SIGSEGV"; else "".
    """

    crash = ""

    def __init__(self, address: str, share_in: Path | None, index_from_kb: int) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(address, ours)
        # A file, not a pipe: nobody needs to drain it, and its end can be read after the worker's death.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                # Its own session, so that Ctrl-C in the terminal ends the program and not a write half way.
                start_new_session=True,
                # One thread is enough for the little that numpy does there, and starts faster.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        self._finalizer = weakref.finalize(self, _end, self._process, ours, self._stderr, self._pid)
        owner = locks.LockOwner(self._pid, _command(), time.strftime("%Y-%m-%d %H:%M"))
        try:
            self.socket: str = self.call("hello", self._pid, share_in, owner, index_from_kb)
        except BaseException:
            self.close()
            raise

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
        last_words = ""
        with suppress(OSError, ValueError):
            size = self._stderr.seek(0, os.SEEK_END)
            self._stderr.seek(max(0, size - 4096))
            lines = self._stderr.read().decode(errors="replace").strip().splitlines()[-5:]
            last_words = "".join(f"\n  {line}" for line in lines)
        # Rust ends so, too, when there is no memory; and a write to a map on a full disk.
        if code is not None and -code in _CRASHES and "memory allocation" not in last_words:
            self.crash = "" if _is_full(self._address) else signal.Signals(-code).name
        again = _IF_AGAIN if self.crash else ""
        return StoreUnavailable(
            f"the process that serves the store {self._address!r} {how}. What it acknowledged is safe: "
            f"run the command again.{again}{' Its last words:' if last_words else ''}{last_words}"
        )


def _is_full(folder: str) -> bool:
    try:
        state = os.statvfs(Path(folder).expanduser())
    except OSError:
        return False
    return state.f_bavail * state.f_frsize < _FULL_BYTES


def _end(process: subprocess.Popen[bytes], connection: socket.socket, stderr: IO[bytes], pid: int) -> None:
    """Let a worker close its files and end; kill it if that takes long (a log keeps what it acknowledged)."""
    if os.getpid() == pid:  # a forked child must not wait for, or kill, its parent's worker
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)  # it may answer what it was asked; then it ends
        try:
            process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    connection.close()
    with suppress(OSError):
        stderr.close()


def _command() -> str:
    """Return what was typed to start this program, shortened."""
    argv = [os.path.basename(sys.argv[0]) or "python", *sys.argv[1:]] if sys.argv else ["python"]
    line = shlex.join(argv)
    return line if len(line) <= 200 else line[:197] + "..."
