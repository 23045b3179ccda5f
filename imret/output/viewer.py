"""Pictures shown by a program of the person's choice, else by what the system opens such files with.

Not `click.launch`: it lets the program write to stdout, where the results are, and tells no failed start.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from imret.errors import DataError
from imret.settings import read_settings

_GRACE_S = 2.0  # a starter that is still there after that has become the viewer
_STDERR = 2  # what a viewer prints is no result
_ADVICE = "Name a viewer in IMRET_VIEWER, such as feh, or write a page to look at elsewhere: --html FILE"


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
    if not (environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")):
        raise DataError(
            "there is no display to show pictures on: neither DISPLAY nor WAYLAND_DISPLAY is set.\n"
            "Write a page to look at elsewhere (--html FILE), see thumbnails here (--preview), or name a "
            "program of the terminal in IMRET_VIEWER, such as chafa."
        )
    shown = page() if len(pictures) > 1 else None
    _start(["xdg-open", pictures[0] if shown is None else os.fspath(shown)])
    return shown


def _run(viewer: str, pictures: Sequence[str]) -> None:
    """Run the viewer that the environment names and wait for it."""
    try:
        command = shlex.split(viewer)
    except ValueError as error:
        raise DataError(f"IMRET_VIEWER is {viewer!r}, which is no command: {error}.") from error
    named = f"the viewer {command[0]!r}, which IMRET_VIEWER names"
    try:
        code = subprocess.run([*command, *pictures], stdout=_STDERR, check=False).returncode
    except OSError as error:
        raise DataError(
            f"cannot start {named}: {error.strerror}.\n"
            "Name another one, unset it for the system's own, or ask for fewer pictures with --limit."
        ) from error
    if code:
        raise DataError(f"{named}, {_ended(code)}.")


def _start(command: Sequence[str]) -> None:
    """Start a program of the system, notice if it fails at once, and leave it."""
    quiet = subprocess.DEVNULL  # desktops' programs chatter
    try:
        # A session of its own: Ctrl-C in the terminal, or its end, is not meant for the viewer.
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        code = process.wait(_GRACE_S)
    except OSError as error:
        raise DataError(f"cannot start {command[0]!r}: {error.strerror}.\n{_ADVICE}") from error
    except subprocess.TimeoutExpired:
        threading.Thread(target=process.wait, daemon=True).start()  # it is collected when it ends
        return
    if code:
        raise DataError(f"{command[0]} cannot show the pictures: it {_ended(code)}.\n{_ADVICE}")


def _ended(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
