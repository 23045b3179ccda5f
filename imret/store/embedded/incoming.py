"""A folder inside a store for files that are to become a version of a collection, on the store's own disk.

It is removed in the end. What a killed program left is removed by the next that makes one: nobody holds the
lock in it any more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imret import system
from imret.errors import StoreError
from imret.store.types import new_mark

_PREFIX = ".incoming-"  # no name of a collection begins so
_LOCK = "lock"


@contextmanager
def folder_in(store: Path) -> Iterator[Path]:
    """Make such a folder.

    Raises:
        StoreError: If none can be made.
    """
    _remove_left(store)
    place = store / f"{_PREFIX}{new_mark()}"
    try:
        place.mkdir(mode=0o700)
        descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | system.CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"cannot write to the store {str(store)!r}: {error.strerror or error}.") from error
    try:
        with suppress(OSError):  # a share without locks
            system.lock(descriptor)
        yield place
    finally:
        os.close(descriptor)
        shutil.rmtree(place, ignore_errors=True)


def _remove_left(store: Path) -> None:
    for place in store.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(place / _LOCK, os.O_RDWR | system.CLOEXEC)
        except FileNotFoundError:  # being made this moment, or being removed: empty at most
            with suppress(OSError):
                place.rmdir()
            continue
        except OSError:
            continue
        try:
            system.lock(descriptor)
        except OSError:  # in use, or a share without locks
            continue
        finally:
            os.close(descriptor)
        shutil.rmtree(place, ignore_errors=True)
