"""Without what Windows has not: everything is imported, and an embedded store is filled and searched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imret import system
from tests.fakes.pictures import draw_picture

# Takes away what Windows has not, and gives the locks that it has, made of those that are here.
WITHOUT = """
import errno, os, select, signal, socket, sys, types
import asyncio, multiprocessing, selectors, shutil, subprocess, tempfile  # they have ways of their own
import torch, open_clip, qdrant_client, qdrant_edge
try:
    import fastapi, uvicorn
except ImportError:
    pass
import fcntl as _locks

MISSING = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty")
for name in MISSING:
    sys.modules.pop(name, None)

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
for where, names in (
    (os, "fork getuid geteuid getgid fchmod fchown chown pread pwrite statvfs killpg sched_getaffinity "
         "posix_fadvise O_CLOEXEC O_NOFOLLOW O_NONBLOCK O_NOCTTY O_DIRECTORY O_PATH "
         "SEEK_DATA SEEK_HOLE sysconf"),
    (socket, "AF_UNIX SO_PEERCRED"),
    (signal, "SIGHUP SIGUSR1 SIGUSR2 SIGKILL SIGBUS SIGQUIT pthread_sigmask pidfd_send_signal"),
    (select, "poll"),
):
    for name in names.split():
        if hasattr(where, name):
            delattr(where, name)

def locking(descriptor, mode, n):
    at = os.lseek(descriptor, 0, os.SEEK_CUR)
    flags = _locks.LOCK_EX | (_locks.LOCK_NB if mode == 2 else 0)
    try:
        _locks.lockf(descriptor, flags, n, at)
    except OSError as error:
        raise OSError(errno.EACCES, "locked") from error

def socketpair(*_):  # as Python makes one on Windows
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]

socket.socketpair = socketpair

windows = types.ModuleType("msvcrt")
windows.locking, windows.LK_LOCK, windows.LK_NBLCK, windows.LK_UNLCK = locking, 1, 2, 0
sys.modules["msvcrt"] = windows
"""


def run_without(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, cwd=folder, timeout=300
    )


def test_every_module_is_imported_without_what_only_linux_and_macos_have(tmp_path: Path) -> None:
    code = """
import importlib, pkgutil
import imret, ingest, finetune
n = 0
for package in (imret, ingest, finetune):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            n += 1
print("imported", n > 200)
"""
    done = run_without(code, tmp_path)
    assert done.stdout == "imported True\n", done.stderr[-3000:]


def test_an_embedded_store_is_filled_and_searched_without_them(tmp_path: Path, random_model: Path) -> None:
    for seed in range(4):
        draw_picture(tmp_path / "photos" / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    code = f"""
from imret.cli.main import cli
from imret.cli.stopping import heed_signals
heed_signals()
for words in (["ingest", "photos", "--model", {str(random_model)!r}], ["search", "bird"], ["info"]):
    cli([*words, "--db", "db"], standalone_mode=False)
"""
    done = run_without(code, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "photos: 4 added, 0 skipped" in done.stderr
    assert done.stdout.count(".png") == 4, done.stdout


def test_a_locked_file_is_locked_by_the_locks_of_windows_too(tmp_path: Path) -> None:
    code = """
import os, subprocess, sys
from imret import system
from imret.files import write_atomically
assert system.fcntl is None and system.msvcrt is not None
held = os.open("held", os.O_RDWR | os.O_CREAT)
system.lock(held)
write_atomically("written", b"whole")
assert open("written", "rb").read() == b"whole"
print("locked")
sys.stdout.flush()
sys.stdin.read()
"""
    command = [sys.executable, "-c", WITHOUT + code]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=tmp_path) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "locked\n"
            again = """
from imret import system
held = os.open("held", os.O_RDWR)
try:
    system.lock(held, shared=True)
except BlockingIOError:
    print("held by another", os.lseek(held, 0, os.SEEK_CUR))
"""
            assert run_without(again, tmp_path).stdout == "held by another 0\n"
        finally:
            first.communicate()


def test_a_folder_that_is_held_is_told_from_another_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_folders in (True, False):
        if not has_folders:
            monkeypatch.setattr(system, "DIRECTORY", 0)
        folder = tmp_path / f"{has_folders}"
        folder.mkdir()
        held = system.HeldFolder(folder)
        assert held.is_at(folder)
        folder.rename(tmp_path / f"away {has_folders}")
        assert not held.is_at(folder)
        folder.mkdir()
        assert not held.is_at(folder)
        held.close()
        held.close()


def test_imret_is_called_so_however_it_is_started() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imret", "--help"], capture_output=True, text=True, env=os.environ
    )
    assert done.stdout.startswith("Usage: imret ")
