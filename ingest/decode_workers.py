"""Pictures to pixels and what is noted of them, from files or bytes, in the calling thread or in processes.

Python runs one thread at a time, and of the time that a photo takes about half a millisecond is Python's own:
threads alone decode some 1,000 photos a second, however many cores there are, while nothing else runs. A GPU
takes more, so in a long ingest each thread hands its pictures to a process of its own. They are forks of one
that has loaded what decoding needs and nothing else: no thread of another library is in it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imret import ipc
from imret.errors import ImageError
from imret.files import sha256_of, sha256_of_bytes
from imret.images.decode import lift_pillow_limit
from imret.images.decode_memory import of_this_machine
from imret.images.preprocess import Preprocess
from imret.images.resize import load_pixels, prepare

_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; from ingest.decode_workers import serve; "
    "serve([int(text) for text in sys.argv[1].split(',')])"
)
# Of the pictures that threads decode at a time: large ones wait for each other.
_MEMORY = of_this_machine()
_AT_ONCE = 16  # pictures a request: what Python does for each message is shared among them

# A file of at most so many bytes is read once, and hashed and decoded from memory; a larger one is read where
# it lies, as far as it is needed for each.
IN_MEMORY_BYTES = 32 << 20

Encoded: TypeAlias = str | bytes  # the path of a picture's file, or what is in it


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture as a model takes it.

    Attributes:
        pixels: (H, W, 3) uint8 of the model's size.
        width: Of the whole picture, upright, in pixels.
        height: Likewise.
        sha256: 64 hex digits over the file's bytes.
        notes: What a person should know of it; see `imret.images.notes`.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    sha256: str
    notes: tuple[str, ...] = ()


def decode(encoded: Encoded, preprocess: Preprocess, max_pixels: int | None) -> Pixels | str:
    """Read, decode, resize and hash one picture.

    Args:
        encoded: Its path, or its bytes.
        preprocess: Of the model.
        max_pixels: As for `imret.images.decode.load_image`.

    Returns:
        The picture, or the reason why there is none.
    """
    try:
        if isinstance(encoded, bytes):
            return _decoded(encoded, preprocess, max_pixels)
        with open(encoded, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size <= IN_MEMORY_BYTES:
                return _decoded(opened.read(size), preprocess, max_pixels)
            return _decoded(opened, preprocess, max_pixels)
    except ImageError as error:
        return str(error)
    except FileNotFoundError:
        return "gone while the folder was read"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except MemoryError:
        return "not enough memory to decode it"


def _decoded(content: bytes | BinaryIO, preprocess: Preprocess, max_pixels: int | None) -> Pixels:
    notes: list[str] = []
    # Decoded before it is hashed: of a large file, what is no picture is refused unread.
    with _MEMORY.reserving() as reserve:
        pixels, (width, height) = load_pixels(
            content, preprocess, max_pixels=max_pixels, reserve=reserve, on_note=notes.append
        )
    if isinstance(content, bytes):
        return Pixels(pixels, width, height, sha256_of_bytes(content), tuple(notes))
    content.seek(0)
    return Pixels(pixels, width, height, sha256_of(content), tuple(notes))


class Decoders:
    """Decodes for many threads at a time: in them, and once spread, in a process for each.

    Args:
        preprocess: Of the model.
        max_pixels: As for the function `decode`.

    Attributes:
        at_once: How many pictures to ask for in one call.
    """

    def __init__(self, preprocess: Preprocess, *, max_pixels: int | None) -> None:
        self.at_once = 1
        self._preprocess, self._max_pixels = preprocess, max_pixels
        self._lock = threading.Lock()
        self._starting: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._fork_servers: list[_ForkServer] = []
        self._given_up = False

    def spread(self, processes: int) -> None:
        """Begin to start processes. Until they are ready, and where they cannot start, threads decode."""
        if processes > 0:
            with suppress(OSError):
                workers = self._start(processes)
                with self._lock:
                    self._starting += workers
                self.at_once = _AT_ONCE

    def decode(self, pictures: Sequence[Encoded]) -> list[Pixels | str]:
        """Return what the function `decode` does of each.

        A picture that brings down a process is tried once more in another. If it brings down that, too, it
        is left out, and the others go on.
        """
        worker = self._take_idle() if pictures else None
        if worker is not None:
            try:
                return self._through(worker, pictures)
            except (_NeverBegunError, OSError):
                self._given_up = True
        return [decode(picture, self._preprocess, self._max_pixels) for picture in pictures]

    def _through(self, worker: _Worker, pictures: Sequence[Encoded]) -> list[Pixels | str]:
        """Have a process decode, or another, but no thread of this one: it may be the pictures."""
        for _ in range(2):
            try:
                results = worker.decode(pictures)
            except _GoneError:
                worker.close()
                worker = self._start(1)[0]
            else:
                with self._lock:
                    self._idle.append(worker)
                return results
        with self._lock:
            self._starting.append(worker)
        if len(pictures) == 1:
            return ["it brought down the process that decodes it, twice"]
        return [self._through(self._take_idle() or self._start(1)[0], [picture])[0] for picture in pictures]

    def close(self) -> None:
        """End the processes; none of them may be decoding."""
        for fork_server in self._fork_servers:
            fork_server.end()

    def _start(self, processes: int) -> list[_Worker]:
        fork_server = _ForkServer(processes, self._preprocess, self._max_pixels)
        with self._lock:
            self._fork_servers.append(fork_server)
        return fork_server.workers

    def _take_idle(self) -> _Worker | None:
        with self._lock:
            if self._given_up:
                return None
            if not self._idle and self._starting:
                begun = [worker for worker in self._starting if worker.has_begun()]
                self._idle += begun
                self._starting = [worker for worker in self._starting if worker not in begun]
            return self._idle.pop() if self._idle else None


class _GoneError(Exception):
    """The process at the other end is gone."""


class _NeverBegunError(Exception):
    """It has ended before it could decode anything."""


class _ForkServer:
    """A process that loads what decoding needs, and the forks of it that decode.

    Attributes:
        workers: One to each fork.
    """

    def __init__(self, n: int, preprocess: Preprocess, max_pixels: int | None) -> None:
        self.workers: list[_Worker] = []
        other_ends: list[socket.socket] = []
        try:
            for _ in range(n):
                ours, other_end = socket.socketpair()
                self.workers.append(_Worker(ours, preprocess, max_pixels))
                other_ends.append(other_end)
            descriptors = [end.fileno() for end in other_ends]
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, ",".join(map(str, descriptors)), *sys.path],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                # Its own session: Ctrl-C is for the program, which then hangs up.
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError:
            for worker in self.workers:
                worker.close()
            raise
        finally:
            for end in other_ends:
                end.close()

    def end(self) -> None:
        """Hang up and end all of them; what they read, they do not change."""
        for worker in self.workers:
            worker.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class _Worker:
    """One process that decodes, one request at a time.

    A request is a list of paths, with a length in the place of a picture that comes as bytes; those of all
    come after it as they are. The answer has, for each, the reason why there are no pixels, or what else
    `Pixels` has; the pixels of all come after it as they are.
    """

    def __init__(self, connection: socket.socket, preprocess: Preprocess, max_pixels: int | None) -> None:
        self._connection = connection
        self._size = (*preprocess.size, 3)
        self._listens = False
        ipc.send(connection, (preprocess, max_pixels))  # it lies there until it is read

    def has_begun(self) -> bool:
        """Whether the process listens, or is gone."""
        # Not by `select`, which takes no descriptor above 1,023.
        try:
            self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def decode(self, pictures: Sequence[Encoded]) -> list[Pixels | str]:
        """Have pictures decoded; waits.

        Raises:
            _GoneError: If the process is gone.
            _NeverBegunError: If it was before it listened.
        """
        try:
            if not self._listens:
                self._listens = ipc.receive(self._connection) is None
        except (OSError, EOFError) as error:
            raise _NeverBegunError from error
        try:
            ipc.send(self._connection, [one if isinstance(one, str) else len(one) for one in pictures])
            for one in pictures:
                if isinstance(one, bytes):
                    self._connection.sendall(one)
            answers: list[str | tuple[int, int, str, tuple[str, ...]]] = ipc.receive(self._connection)
            n = sum(not isinstance(answer, str) for answer in answers)
            pixels = np.empty((n, *self._size), dtype=np.uint8)
            ipc.receive_into(self._connection, pixels.reshape(-1).data)
        except (OSError, EOFError) as error:
            raise _GoneError from error
        rows = iter(pixels)
        return [answer if isinstance(answer, str) else Pixels(next(rows), *answer) for answer in answers]

    def close(self) -> None:
        """Hang up; the process ends."""
        self._connection.close()


def serve(descriptors: list[int]) -> None:
    """Load what decoding needs, decode in a fork for each socket, and wait until all have ended."""
    prepare()
    connections = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for connection in connections:
        if os.fork() == 0:
            for other in connections:
                if other is not connection:
                    other.close()
            _decode_for(connection)
            return
    for connection in connections:
        connection.close()  # so that whoever is at the other end of a fork's sees its end
    with suppress(ChildProcessError):
        while True:
            os.wait()


def _decode_for(connection: socket.socket) -> None:
    with suppress(EOFError, OSError):
        preprocess, max_pixels = ipc.receive(connection)
        lift_pillow_limit(max_pixels)
        ipc.send(connection, None)
        while True:
            request: list[str | int] = ipc.receive(connection)
            asked = [one if isinstance(one, str) else _received(connection, one) for one in request]
            results = [decode(one, preprocess, max_pixels) for one in asked]
            pictures = [result for result in results if isinstance(result, Pixels)]
            ipc.send(
                connection,
                [
                    result
                    if isinstance(result, str)
                    else (result.width, result.height, result.sha256, result.notes)
                    for result in results
                ],
            )
            for picture in pictures:
                connection.sendall(np.ascontiguousarray(picture.pixels).data)


def _received(connection: socket.socket, n_bytes: int) -> bytes:
    data = bytearray(n_bytes)
    ipc.receive_into(connection, memoryview(data))
    return bytes(data)
