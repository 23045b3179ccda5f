"""Clients of the workers of an embedded store: requests out, answers in, one after the other.

Either of the program's own worker, which is started here, or of that of another program which shares what it
has open.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, TimeoutError
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from imret import ipc, system
from imret.errors import StoreError, StoreUnavailable
from imret.store.embedded import locks, unix_socket
from imret.store.placement import Creation

CLOSE_TIMEOUT_S = 5.0  # a worker that is still busy then is killed; what it acknowledged is in its log
STOP_TIMEOUT_S = 0.5  # the same, where a person has stopped what it does: it may be an index that takes hours
LET_GO_TIMEOUT_S = 0.5
_LOOK_S = 0.5  # between two looks at whether an answer is there, where somebody wants to know

_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; from imret.store.embedded.worker import main; "
    "main(int(sys.argv[1]))"
)


_CRASHES = system.signals_named("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")
_FULL_BYTES = 16 << 20
_IF_AGAIN = (
    " If that happens again with one collection, its files are damaged: put it back from a backup, or delete "
    "it (imret collections delete NAME) and ingest again."
)


class WorkerGone(StoreUnavailable):
    """A worker that is no longer there to be asked, for a reason that says nothing of what it was asked.

    Another takes its place: what it acknowledged is in the log, and every request may be repeated.
    """


class TookTooLong(StoreError):
    """A worker was asked for more than it had done when the time was over."""


class WorkerClient:
    """Asks a worker, for many threads.

    One thread does all the talking: it puts the requests of many threads in a row, and Ctrl-C, which Python
    delivers to the main thread, interrupts the wait for an answer but never a message half way.

    Args:
        address: Of the store, for messages.
        connection: To the worker. A request is (operation, arguments), an answer (True, result) or (False,
            exception).

    Attributes:
        is_abandoned: Whether nobody asks it any more, and another is to take its place.
        has_died: Whether it did not answer: what is opened next is opened in another.
    """

    def __init__(self, address: str, connection: socket.socket) -> None:
        self._address = address
        self._connection = connection
        self._pid = os.getpid()
        self._talker = ThreadPoolExecutor(1, "imret-edge")
        self.is_abandoned = self.has_died = False

    def call(
        self,
        operation: str,
        *arguments: Any,
        timeout_s: float | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> Any:
        """Return the worker's answer, or raise the error it answered.

        Whoever stops the wait, with Ctrl-C, stops the work: the worker is abandoned, as it is when the time
        is over.

        Args:
            operation: What is asked for.
            arguments: Of it.
            timeout_s: How long the answer is waited for at most.
            on_wait: Called now and then meanwhile.

        Raises:
            TookTooLong: If the time is over.
            WorkerGone: If it was abandoned, or another program's has ended.
            StoreUnavailable: If it died; the message says what is known of it.
        """
        try:
            succeeded, result = _awaited(self._ask(operation, arguments), timeout_s, on_wait)
        except CancelledError:  # shut down while it waited for its turn
            raise self._closed() from None
        except TookTooLong:
            self.abandon()
            raise
        except Exception:
            raise
        except BaseException:
            self.abandon()
            raise
        if not succeeded:
            raise result
        return result

    def tell(self, operation: str, *arguments: Any) -> None:
        """Ask for what nobody needs to wait for: the worker may be busy with the work of others.

        Raises:
            As for `call`, where that is known soon.
        """
        try:
            self._ask(operation, arguments).result(LET_GO_TIMEOUT_S)
        except CancelledError:
            raise self._closed() from None
        except TimeoutError:
            pass

    def close(self) -> None:
        """Hang up."""
        if os.getpid() == self._pid:
            self._talker.shutdown(wait=False, cancel_futures=True)
            self._hang_up()

    def abandon(self) -> None:
        """Hang up, and wait for nothing that it is busy with."""
        self.is_abandoned = True
        self.close()

    def _ask(self, operation: str, arguments: tuple[Any, ...]) -> Future[tuple[bool, Any]]:
        if os.getpid() != self._pid:
            raise StoreError("this store was opened before a fork; open it in the process that uses it")
        if self.has_died:
            raise self._closed()
        try:
            return self._talker.submit(self._exchange, (operation, arguments))
        except RuntimeError:  # shut down
            raise self._closed() from None

    def _closed(self) -> StoreError:
        if self.is_abandoned:
            return self._dead()
        if self.has_died:  # whoever asked it then was told why
            return WorkerGone(f"the process that served the store {self._address!r} has ended")
        return StoreError(f"the store {self._address!r} is closed")

    def _exchange(self, request: tuple[str, tuple[Any, ...]]) -> tuple[bool, Any]:
        try:
            ipc.send(self._connection, request)
            answer: tuple[bool, Any] = ipc.receive(self._connection)
            return answer
        except (OSError, EOFError) as error:
            self.has_died = True
            raise self._dead() from error

    def _dead(self) -> StoreUnavailable:
        raise NotImplementedError

    def _hang_up(self) -> None:
        raise NotImplementedError


def _awaited(
    answer: Future[tuple[bool, Any]], timeout_s: float | None, on_wait: Callable[[], None] | None
) -> tuple[bool, Any]:
    """Return an answer when it is there.

    Raises:
        TookTooLong: If the time is over before.
    """
    if timeout_s is None and on_wait is None:
        return answer.result()
    ends = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        try:
            left = _LOOK_S if ends is None else max(0.0, min(_LOOK_S, ends - time.monotonic()))
            return answer.result(left)
        except TimeoutError:
            if ends is not None and time.monotonic() >= ends:
                raise TookTooLong("the time is over") from None
        if on_wait is not None:
            on_wait()


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
        self.is_abandoned = True
        owner = self._lock_owner
        return WorkerGone(
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

    Args:
        address: Of the store, for messages.
        share_in: The folder for a socket if other programs may connect, or None.
        must_share: Whether to fail where no socket can be made there.
        index_from_kb: As for `Shard`.
        creation: The same.

    Attributes:
        socket: Path of the socket through which it lets others use what it has open, or "".
        crash: The signal that it died of, if that was a fault of its own, such as "SIGSEGV"; else "".
    """

    crash = ""

    def __init__(
        self,
        address: str,
        share_in: Path | None,
        *,
        must_share: bool,
        index_from_kb: int,
        creation: Creation | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(address, ours)
        self._stderr = _file_for_last_words()
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
            options = (owner, index_from_kb, creation)
            self.socket: str = self.call("hello", self._pid, share_in, must_share, *options)
        except BaseException:
            self.close()
            raise

    def _hang_up(self) -> None:
        """End the worker; waits until it has closed its files."""
        if self.is_abandoned and self._finalizer.detach() is not None:
            _end(self._process, self._connection, self._stderr, self._pid, timeout_s=STOP_TIMEOUT_S)
        self._finalizer()

    def _dead(self) -> StoreUnavailable:
        if self.is_abandoned:
            return WorkerGone(f"what was asked of the store {self._address!r} was stopped")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        code = self._process.returncode
        if code is None:
            how = "stopped answering"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code in system.signals_named("SIGBUS"):
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
        return shutil.disk_usage(Path(folder).expanduser()).free < _FULL_BYTES
    except OSError:
        return False


def _file_for_last_words() -> IO[bytes]:
    """Return where a worker writes what it dies of.

    A file, not a pipe: nobody needs to drain it, and its end can be read after the worker's death.
    """
    try:
        return tempfile.TemporaryFile()
    except OSError:  # a full disk is searched all the same
        return open(os.devnull, "w+b")


def _end(
    process: subprocess.Popen[bytes],
    connection: socket.socket,
    stderr: IO[bytes],
    pid: int,
    timeout_s: float = CLOSE_TIMEOUT_S,
) -> None:
    """Let a worker close its files and end; kill it if that takes long (a log keeps what it acknowledged)."""
    if os.getpid() == pid:  # a forked child must not wait for, or kill, its parent's worker
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)  # it may answer what it was asked; then it ends
        try:
            process.wait(timeout_s)
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
