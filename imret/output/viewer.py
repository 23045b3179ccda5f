"""Pictures shown by a program of the person's choice, else by what the system opens such files with.

Hides what the systems call that, which of them take several files at once, and how a failed start is noticed.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from imret.errors import DataError
from imret.settings import read_settings

VARIABLE = "IMRET_VIEWER"

_GRACE_S = 2.0  # a starter that is still there after that has become the viewer
_STDERR = 2  # what a viewer prints is no result


def show(
    pictures: Sequence[str],
    page: Callable[[], Path],
    *,
    environ: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
) -> Path | None:
    """Show pictures, or a page with all of them.

    IMRET_VIEWER, a command such as `feh --scale-down`, gets all pictures in one call and is waited for: it
    may be a program of the terminal. Otherwise the system's own programs are started and left alone: on
    macOS its viewer, with all pictures; elsewhere, where `xdg-open` takes one file at a time, the viewer for
    a single picture and a browser with the page for several.

    Args:
        pictures: Absolute paths of files that exist, at least one.
        page: Makes the page; called only where it is shown.
        environ: Such as os.environ.
        platform: As sys.platform.

    Returns:
        The page, where that was shown.

    Raises:
        DataError: If there is no display or viewer, or it fails; the message says what to do.
    """
    if viewer := read_settings(environ).viewer:
        _run(viewer, pictures)
        return None
    if platform == "darwin":
        _start(["open", *pictures])
        return None
    single = len(pictures) == 1
    if platform == "win32":
        shown = None if single else page()
        os.startfile(pictures[0] if shown is None else shown)  # type: ignore[attr-defined, unused-ignore]
        return shown
    if not (environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")):
        raise DataError(
            "there is no display to show pictures on: neither DISPLAY nor WAYLAND_DISPLAY is set.\n"
            "Write a page to look at elsewhere (--html FILE), see thumbnails here (--preview), or name a "
            f"program of the terminal in {VARIABLE}, such as chafa."
        )
    opener = shutil.which("xdg-open", path=environ.get("PATH"))
    shown = page() if opener is None or not single else None
    if opener is not None:
        _start([opener, pictures[0] if shown is None else os.fspath(shown)])
    elif shown is not None and not webbrowser.open(shown.as_uri()):
        raise DataError(
            "there is neither xdg-open nor a browser to show pictures with.\n"
            f"Name a viewer in {VARIABLE}, such as feh, or write a page to look at elsewhere: --html FILE"
        )
    return shown


def _run(viewer: str, pictures: Sequence[str]) -> None:
    """Run the viewer that the environment names and wait for it."""
    try:
        command = shlex.split(viewer)
    except ValueError as error:
        raise DataError(f"{VARIABLE} is {viewer!r}, which is no command: {error}.") from error
    try:
        done = subprocess.run([*command, *pictures], stdout=_STDERR, check=False)
    except OSError as error:
        advice = (
            "Ask for fewer pictures with --limit."
            if error.errno == errno.E2BIG
            else "Name another one, or unset it for the system's own."
        )
        raise DataError(
            f"cannot start the viewer {command[0]!r}, which {VARIABLE} names: {error.strerror}.\n{advice}"
        ) from error
    if done.returncode != 0:
        raise DataError(f"the viewer {command[0]!r}, which {VARIABLE} names, {_ended(done.returncode)}.")


def _start(command: Sequence[str]) -> None:
    """Start a program of the system, notice if it fails at once, and leave it."""
    advice = f"Name a viewer in {VARIABLE}, such as feh, or write a page to look at elsewhere: --html FILE"
    quiet = subprocess.DEVNULL  # desktops' programs chatter
    try:
        # A session of its own: Ctrl-C in the terminal, or its end, is not meant for the viewer.
        started = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    except OSError as error:
        raise DataError(f"cannot start {command[0]!r}: {error.strerror}.\n{advice}") from error
    try:
        code = started.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        threading.Thread(target=started.wait, daemon=True).start()  # it is collected when it ends
        return
    if code != 0:
        raise DataError(
            f"{os.path.basename(command[0])} cannot show the pictures: it {_ended(code)}.\n{advice}"
        )


def _ended(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
