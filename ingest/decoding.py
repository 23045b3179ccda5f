"""Picture files to pixels and what is noted of them, in the calling thread or in processes.

Python runs one thread at a time, and of the time that a photo takes about half a millisecond is Python's own:
threads alone decode some 1,000 photos a second, however many cores there are, while nothing else runs. A GPU
takes more. A process of its own for each thread costs seconds to start, so it is for long ingests.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret.errors import ImageError
from imret.images import lift_pillow_limit
from imret.models import Preprocess
from imret.payload import sha256_of
from imret.resizing import load_pixels, prepare

_BOOT = "import sys; sys.path[:] = sys.argv[2:]; from ingest.decoding import serve; serve(int(sys.argv[1]))"
_HEADER_BYTES = 8
_CLOSE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture as a model takes it.

    Attributes:
        pixels: (H, W, 3) uint8 of the model's size.
        width: Of the whole picture, upright, in pixels.
        height: Likewise.
        sha256: 64 hex digits over the file's bytes.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    sha256: str


def decode(file: str, preprocess: Preprocess, max_pixels: int) -> Pixels | str:
    """Read, decode, resize and hash one picture.

    Args:
        file: Its path.
        preprocess: Of the model.
        max_pixels: As for `imret.images.load_image`.

    Returns:
        The picture, or the reason why there is none.
    """
    try:
        with open(file, "rb") as opened:
            # Decoded before it is hashed, through one handle: what is no picture is refused unread, and no
            # file is ever in memory whole.
            pixels, (width, height) = load_pixels(opened, preprocess, max_pixels=max_pixels)
            opened.seek(0)
            return Pixels(pixels, width, height, sha256_of(opened))
    except ImageError as error:
        return str(error)
    except FileNotFoundError:
        return "gone while the folder was read"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except MemoryError:
        return "not enough memory to decode it"


class Decoders:
    """Decodes for many threads at a time: in them, and once spread, in a process for each.

    Args:
        preprocess: Of the model.
        max_pixels: As for `decode`.
    """

    def __init__(self, preprocess: Preprocess, *, max_pixels: int) -> None:
        self._preprocess, self._max_pixels = preprocess, max_pixels
        self._lock = threading.Lock()
        self._starting: list[_Process] = []
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()

    def spread(self, processes: int) -> None:
        """Begin to start processes. Until they are ready, and where they cannot start, threads decode."""
        with self._lock, suppress(OSError):
            for _ in range(processes):
                self._starting.append(self._started())

    def decode(self, file: str) -> Pixels | str:
        """Return what the function `decode` does.

        A picture that brings down a process is tried once more in another. If it brings down that, too, it
        is left out, and the others go on.
        """
        process = self._taken()
        if process is None:
            return decode(file, self._preprocess, self._max_pixels)
        for _ in range(2):
            try:
                made = process.decode(file)
            except EOFError:
                fate = process.end()
                self._all.discard(process)
                try:
                    process = self._started()
                except OSError as error:
                    return f"the process that decoded it {fate}, and no other can start: {error.strerror}"
                continue
            with self._lock:
                self._idle.append(process)
            return made
        with self._lock:
            self._starting.append(process)
        return f"the process that decoded it {fate}, twice"

    def close(self) -> None:
        """End the processes; none of them may be decoding."""
        for process in self._all:
            process.end()
        self._all.clear()

    def _started(self) -> _Process:
        process = _Process(self._preprocess, self._max_pixels)
        self._all.add(process)
        return process

    def _taken(self) -> _Process | None:
        with self._lock:
            if not self._idle and self._starting:
                for process in [one for one in self._starting if one.has_begun()]:
                    self._starting.remove(process)
                    self._idle.append(process)
            return self._idle.pop() if self._idle else None


class _Process:
    """One process that decodes, and the line to it: one request at a time.

    A request is a path, an answer the reason why there are no pixels, or what else `Pixels` has, with the
    pixels after it as they are.
    """

    def __init__(self, preprocess: Preprocess, max_pixels: int) -> None:
        self._size = (*preprocess.size, 3)
        self._listens = False
        self._line, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, str(theirs.fileno()), *sys.path],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    # Its own session: Ctrl-C is for the program, which then hangs up.
                    start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            _send(self._line, (preprocess, max_pixels))  # it lies there until it is read
        except OSError:
            self._line.close()
            raise

    def has_begun(self) -> bool:
        """Whether it listens, or is gone."""
        return bool(select.select([self._line], [], [], 0)[0])

    def decode(self, file: str) -> Pixels | str:
        """Have a picture decoded; waits.

        Raises:
            EOFError: If the process is gone.
        """
        try:
            if not self._listens:
                self._listens = _receive(self._line) is None
            _send(self._line, file)
            answer: str | tuple[int, int, str] = _receive(self._line)
            if isinstance(answer, str):
                return answer
            pixels = np.empty(self._size, dtype=np.uint8)
            _fill(self._line, pixels.data.cast("B"))
        except OSError as error:
            raise EOFError from error
        return Pixels(pixels, *answer)

    def end(self) -> str:
        """Hang up, wait for its end, and return what is known of it."""
        self._line.close()
        try:
            code = self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def serve(descriptor: int) -> None:
    """Decode what the program at the other end of a socket asks for, until it hangs up."""
    with socket.socket(fileno=descriptor) as line, suppress(EOFError, OSError):
        preprocess, max_pixels = _receive(line)
        lift_pillow_limit(max_pixels)
        prepare()  # now, while nobody waits
        _send(line, None)
        while True:
            made = decode(_receive(line), preprocess, max_pixels)
            if isinstance(made, str):
                _send(line, made)
            else:
                _send(line, (made.width, made.height, made.sha256))
                line.sendall(np.ascontiguousarray(made.pixels).data)


def _send(line: socket.socket, message: object) -> None:
    body = pickle.dumps(message, protocol=5)
    line.sendall(len(body).to_bytes(_HEADER_BYTES, "little") + body)


def _receive(line: socket.socket) -> Any:
    """Return the next message; it is from a process of this program, so unpickling it is safe.

    Raises:
        EOFError: If there is none any more.
    """
    header = bytearray(_HEADER_BYTES)
    _fill(line, memoryview(header))
    body = bytearray(int.from_bytes(header, "little"))
    _fill(line, memoryview(body))
    return pickle.loads(body)


def _fill(line: socket.socket, left: memoryview) -> None:
    while left:
        n = line.recv_into(left)
        if n == 0:
            raise EOFError
        left = left[n:]
