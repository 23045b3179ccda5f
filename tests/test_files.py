"""A file is the old one or the new one, whole: after errors, kills, links, and other writers."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imret import system
from imret.files import check_writable, replace_if_absent, write_atomically
from tests import ROOT


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_bytes_text_and_what_a_function_writes_become_the_file(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "a.json"
    for content in (b"one", "zw\u00f6lf", lambda path: path.write_bytes(b"three")):
        write_atomically(file, content, durable=durable)
    assert file.read_bytes() == b"three"
    write_atomically(file, "zw\u00f6lf")
    assert file.read_bytes() == "zw\u00f6lf".encode()
    assert names(tmp_path) == ["a.json"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(file, fail)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_what_a_killed_process_left_is_used_again(tmp_path: Path) -> None:
    code = (
        "import os, sys; from imret.files import write_atomically\n"
        "write_atomically(sys.argv[1], lambda part: (part.write_bytes(b'half'), os.kill(os.getpid(), 9)))"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code, tmp_path / "a"], cwd=ROOT).returncode == -9
        assert names(tmp_path) == [".a.part", ".a.part~"]
    write_atomically(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert names(tmp_path) == ["a"]


def test_a_new_file_has_the_permissions_of_any_and_a_replaced_one_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    write_atomically(tmp_path / "new", b"")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "any").stat().st_mode
    (tmp_path / "new").chmod(0o604)
    for content in (b"", lambda part: (part.unlink(), part.write_bytes(b""))):
        write_atomically(tmp_path / "new", content)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604
    write_atomically(tmp_path / "new", b"", mode=0o600)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", lambda part: (part.unlink(), part.touch(0o600))])
@pytest.mark.parametrize("left", [0o600, 0o666, 0o4755])
def test_a_new_file_has_the_permissions_of_any_whatever_a_killed_process_left(
    tmp_path: Path, left: int, content: Callable[[Path], object]
) -> None:
    (tmp_path / "any").touch()
    for name in (".new.part", ".new.part~"):
        (tmp_path / name).write_text("half")
        (tmp_path / name).chmod(left)
    write_atomically(tmp_path / "new", content)
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "any").stat().st_mode
    assert (tmp_path / "new").read_bytes() == b""
    assert names(tmp_path) == ["any", "new"]


def test_a_link_is_written_through_and_a_pipe_into(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    read: list[bytes] = []
    reader.start()
    write_atomically(tmp_path / "pipe", b"told")
    reader.join()
    assert read == [b"told"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_that_leads_nowhere_yet_leads_to_the_file_then(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/new")
    write_atomically(tmp_path / "link", "told")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "new").read_text() == "told"


@pytest.mark.parametrize("content", ["b'told'", "lambda part: part.write_bytes(b'told')"])
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "out"])
@pytest.mark.parametrize("to", ["pipe", "file", "deleted"])
def test_a_descriptor_of_ones_own_is_written_to_in_order(
    tmp_path: Path, content: str, name: str, to: str
) -> None:
    (tmp_path / "out").symlink_to("/proc/self/fd/1")
    code = (
        "import os, sys; from imret.files import check_writable, write_atomically\n"
        "print('before'); check_writable(sys.argv[1])\n"
        f"write_atomically(sys.argv[1], {content}); print(' after')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / name)]  # an absolute name stays as it is
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if to == "pipe":
        said = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    else:
        with (tmp_path / "log").open("w+b") as log:
            if to == "deleted":
                (tmp_path / "log").unlink()
            subprocess.run(command, stdout=log, check=True, env=environment)
            log.seek(0)
            said = log.read()
    assert said == b"before\ntold after\n"
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path) == (["log", "out"] if to == "file" else ["out"])


def test_a_process_substitution_of_the_shell_is_a_pipe_that_is_written_to(tmp_path: Path) -> None:
    code = "import sys; from imret.files import write_atomically; write_atomically(sys.argv[1], b'told')"
    script = f'"$0" -c "$1" >(cat > {tmp_path}/got); wait $!'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", script, sys.executable, code], check=True, env=environment)
    assert (tmp_path / "got").read_bytes() == b"told"


def test_a_device_stays_one(tmp_path: Path) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        null.write_bytes(b"")
    except OSError:
        pytest.skip("only root makes devices, where they are let")
    for content in (b"x", lambda part: part.write_bytes(b"x")):
        write_atomically(null, content)
        assert stat.S_ISCHR(null.stat().st_mode)
    assert names(tmp_path) == ["null"]


def test_a_name_as_long_as_can_be_is_written_and_a_longer_one_refused(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("ü" * 127), b"x")
    assert names(tmp_path) == ["ü" * 127]
    with pytest.raises(OSError, match="name too long"):
        check_writable(tmp_path / ("x" * 256))


def test_a_file_that_cannot_be_replaced_is_rewritten_where_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(16, "Device or resource busy")  # a file that a container mounts by itself

    file = tmp_path / "a"
    file.write_text("a longer old one")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="busy"):
        write_atomically(file, "new")
    assert file.read_text() == "a longer old one"
    for content in ("new", lambda part: part.write_text("new")):
        inode = file.stat().st_ino
        write_atomically(file, content, in_place=True)
        assert (file.read_text(), file.stat().st_ino) == ("new", inode)
        file.write_text("a longer old one")
    with pytest.raises(OSError, match="busy"):
        write_atomically(tmp_path / "none", "new", in_place=True)
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to others")
def test_a_file_that_root_replaces_stays_its_owners(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.chown(tmp_path / "a", 1234, 1235)
    write_atomically(tmp_path / "a", b"new")
    assert ((tmp_path / "a").stat().st_uid, (tmp_path / "a").stat().st_gid) == (1234, 1235)


def test_what_could_not_be_written_is_known_before_and_nothing_is_touched(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "nowhere").symlink_to("no/file")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for name, reason in (
        ("folder", "it is a folder"),
        ("no/file", "its folder does not exist"),
        ("new/", "it is named like a folder"),
        ("nowhere", "its folder does not exist"),
        ("file/file", "Not a directory"),
        ("loop", "symbolic links"),
        ("socket", "it is a socket"),
        ("", "it is a folder"),
    ):
        with pytest.raises(OSError, match=reason):
            check_writable(f"{tmp_path}/{name}")
    with pytest.raises(FileNotFoundError, match="it has no name"):
        check_writable("")
    with pytest.raises(FileExistsError):
        check_writable(tmp_path / "file", overwrite=False)
    with (tmp_path / "file").open("rb") as reading, pytest.raises(OSError, match="open for reading alone"):
        check_writable(f"/dev/fd/{reading.fileno()}")
    (tmp_path / "link").symlink_to("new")
    for name in ("file", "new", "link"):
        check_writable(tmp_path / name)
    check_writable("/dev/null")
    assert names(tmp_path) == ["file", "folder", "link", "loop", "nowhere", "socket"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is protected from root")
def test_what_is_protected_from_writing_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o444)
    with pytest.raises(PermissionError, match="it is protected"):
        check_writable(tmp_path / "file")
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="its folder is protected"):
        check_writable(tmp_path / "new")
    tmp_path.chmod(0o755)


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".a.part").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(tmp_path / "a", b"x")
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_file_that_exists_is_kept_where_asked_even_if_it_came_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", lambda _: (tmp_path / "a").write_text("theirs"), overwrite=False)
    assert (tmp_path / "a").read_text() == "theirs"
    assert names(tmp_path) == ["a"]


def test_a_name_that_is_taken_is_refused_also_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for links in (True, False):
        if not links:
            monkeypatch.setattr(os, "link", refuse)
        (tmp_path / "part").write_text("new")
        (tmp_path / "a").write_text("old")
        with pytest.raises(FileExistsError):
            replace_if_absent(tmp_path / "part", tmp_path / "a")
        assert (tmp_path / "a").read_text() == "old"
        (tmp_path / "a").unlink()
        replace_if_absent(tmp_path / "part", tmp_path / "a")
        assert names(tmp_path) == ["a"]
        assert (tmp_path / "a").read_text() == "new"


def test_writers_of_one_file_take_turns_and_each_is_whole(tmp_path: Path) -> None:
    code = (
        "import sys; from imret.files import write_atomically\n"
        "for _ in range(200): write_atomically(sys.argv[1], sys.argv[2].encode() * 100_000)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "a", letter], cwd=ROOT) for letter in "xyz"
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "a").exists():
            content = (tmp_path / "a").read_bytes()
            assert len(content) == 100_000
            seen |= set(content)
            assert len(set(content)) == 1
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert seen
    assert names(tmp_path) == ["a"]


def test_another_writer_is_told_where_nobody_wants_to_wait(tmp_path: Path) -> None:
    with (tmp_path / ".a.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            write_atomically(tmp_path / "a", b"x", wait=False)
    write_atomically(tmp_path / "a", b"x", wait=False)


def _replaced(part: Path) -> None:
    (part.parent / "other").write_text("first")
    os.replace(part.parent / "other", part)


def _made_anew(part: Path) -> None:
    part.unlink()
    part.write_text("first")


def _saved(part: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"first": np.zeros(4)}, part)


@pytest.mark.parametrize("write", [_replaced, _made_anew, _saved])
def test_a_writer_keeps_its_turn_when_what_it_writes_with_makes_a_file_of_its_own(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    file = tmp_path / "a"
    second = threading.Thread(target=write_atomically, args=(file, b"second"))

    def first(part: Path) -> None:
        write(part)
        with pytest.raises(BlockingIOError):
            write_atomically(file, b"third", wait=False)
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert b"first" in part.read_bytes()

    write_atomically(file, first)
    second.join()
    assert file.read_bytes() == b"second"
    assert names(tmp_path) == ["a"]


def test_a_share_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(system.fcntl, "flock", refuse)
    write_atomically(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
