"""Pictures of Parquet files by the keys of their rows: a row group is read once, with its neighbours.

Hides which files are open, where their keys are, and row groups kept in memory.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from imret.errors import DataError, ImageError
from imret.places.parquet_rows import DamagedParquet, keys_of, open_parquet, picture_column, picture_in, rows
from imret.sources.named_roots import GONE_SINCE, NotThere

_DAMAGED = "its Parquet file is damaged"
_KEPT_FILES = 16
_GROUP_BYTES = 64 << 20  # larger row groups are read a few rows at a time, and not kept
_KEPT_BYTES = 256 << 20


class ParquetRows:
    """Pictures of Parquet files. Thread-safe; one thread at a time reads of a file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[Hashable, _File] = OrderedDict()  # used longest ago first

    def read(self, name: Hashable, opener: Callable[[], Any], key: str, *, is_own: bool = False) -> bytes:
        """Return the bytes of a row's picture.

        Args:
            name: Of the file as it is now: another for each content.
            opener: Opens it, where it is not open yet; it is then kept.
            key: Of the row, as its path goes on behind the file's.
            is_own: Whether what it opens is for this alone, and closed when it is kept no longer.

        Raises:
            NotThere: If there is no such row, or it has no picture.
            ImageError: If the file is damaged.
            OSError: If it cannot be read.
        """
        with self._lock:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = _File(opener, is_own)
            self._files.move_to_end(name)
            while len(self._files) > _KEPT_FILES:
                self._files.popitem(last=False)
        try:
            with file.lock:
                data = file.read(key)
        except BaseException:
            self.forget(name)  # it may be another file by now
            raise
        with self._lock:
            self._make_room(file)
        return data

    def forget(self, name: Hashable) -> None:
        """Open a file anew the next time."""
        with self._lock:
            self._files.pop(name, None)

    def _make_room(self, used: _File) -> None:
        n_bytes = sum(file.n_bytes for file in self._files.values())
        for file in list(self._files.values()):
            if n_bytes <= _KEPT_BYTES:
                return
            if file is not used:
                n_bytes -= file.n_bytes
                file.let_go()


class _File:
    """A Parquet file, opened when it is first read."""

    def __init__(self, opener: Callable[[], Any], is_own: bool) -> None:
        self.lock = threading.Lock()
        self.n_bytes = 0
        self._opener, self._is_own = opener, is_own
        self._opened: Any = None
        self._column = ""
        self._places: dict[str, tuple[int, int]] = {}  # row group, and row in it, by key
        self._groups: OrderedDict[int, Any] = OrderedDict()

    def read(self, key: str) -> bytes:
        try:
            if self._opened is None:
                self._open()
            if key not in self._places:
                raise NotThere(GONE_SINCE)
            group, row = self._places[key]
            data = self._row(group, row)
        except DamagedParquet as error:
            raise _told(error.__cause__ or error) from error
        except OSError as error:
            raise _told(error) from error
        except ValueError as error:  # of pyarrow
            raise ImageError(_DAMAGED) from error
        except DataError as error:
            raise ImageError(str(error)) from error
        if not data:
            raise NotThere(GONE_SINCE)
        return data

    def let_go(self) -> None:
        """Keep no row group."""
        self._groups, self.n_bytes = OrderedDict(), 0

    def _open(self) -> None:
        source = self._opener()
        if self._is_own:
            weakref.finalize(self, source.close)
        opened = open_parquet(source)
        column = picture_column(opened)
        if column is None:
            raise NotThere(GONE_SINCE)
        is_named = True
        for group in range(opened.num_row_groups):
            for row, key in enumerate(keys_of(opened, column, group)):
                if key is None:
                    is_named = False
                else:
                    self._places.setdefault(_tidy(key), (group, row))
        if not is_named:
            self._look_at_pictures(opened, column)
        self._opened, self._column = opened, column

    def _look_at_pictures(self, opened: Any, column: str) -> None:
        """Find rows whose pictures are their keys, which takes a look at all of them, once."""
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
        group, row = 0, 0
        for one in rows(opened, column):
            while row >= sizes[group]:
                group, row = group + 1, 0
            self._places.setdefault(_tidy(one.key), (group, row))
            row += 1

    def _row(self, group: int, row: int) -> bytes | None:
        held = self._groups.get(group)
        if held is None:
            if self._opened.metadata.row_group(group).total_byte_size > _GROUP_BYTES:
                return self._row_alone(group, row)
            held = self._opened.read_row_group(group, columns=[self._column]).column(0)
            self._groups[group] = held
            self.n_bytes += held.nbytes
            while self.n_bytes > _KEPT_BYTES // 2:
                self.n_bytes -= self._groups.popitem(last=False)[1].nbytes
        return picture_in(held[row].as_py())

    def _row_alone(self, group: int, row: int) -> bytes | None:
        start = 0
        batches = self._opened.iter_batches(batch_size=16, row_groups=[group], columns=[self._column])
        for batch in batches:
            if row < start + batch.num_rows:
                return picture_in(batch.column(0)[row - start].as_py())
            start += batch.num_rows
        return None


def _told(error: BaseException) -> Exception:
    """Return what to raise for an error of pyarrow, in which damage is an OSError, too."""
    is_of_the_file = any(
        mark in str(error).lower() for mark in ("parquet", "thrift", "deserializ", "corrupt")
    )
    return error if isinstance(error, OSError) and not is_of_the_file else ImageError(_DAMAGED)


def _tidy(key: str) -> str:
    """Return a key as a path has it."""
    return "/".join(part for part in key.split("/") if part not in ("", "."))
