"""A place for the little that the engine writes only to open a shard, where the shard's disk has none left.

Qdrant Edge writes its configuration anew whenever it opens a shard. Not one block may be free for that: then
the shard is opened through a folder elsewhere, that of this user in memory if there is one, which has the
configuration, and links to all else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from imret import system
from imret.store.embedded.locks import is_running

CONFIG = "edge_config.json"
PREFIX = "imret-open-"


def is_full(error: BaseException) -> bool:
    """Whether an error of the engine's, which has no number, is that of a full disk."""
    return "No space left" in str(error) or "quota exceeded" in str(error).lower()


def stand_in(shard: Path) -> tempfile.TemporaryDirectory[str] | None:
    """Return a folder that the engine can open instead of a shard's; None if there is no room anywhere.

    Args:
        shard: The folder, which must stay.
    """
    for place in (os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm", tempfile.gettempdir()):
        if not os.path.isabs(place) or not os.path.isdir(place):
            continue
        remove_left(Path(place))
        try:
            folder = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=place)
        except OSError:
            continue
        try:
            for item in shard.iterdir():
                if item.name == CONFIG:
                    shutil.copyfile(item, Path(folder.name, CONFIG))
                elif not item.name.startswith("."):
                    Path(folder.name, item.name).symlink_to(item)
            return folder
        except OSError:
            folder.cleanup()
    return None


def remove_left(place: Path) -> None:
    """Remove what processes that were killed have left of it, which is often: a full disk kills."""
    for folder in place.glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        with suppress(OSError):
            if pid.isdecimal() and system.is_mine(folder.lstat()) and not is_running(int(pid)):
                shutil.rmtree(folder)
