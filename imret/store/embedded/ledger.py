"""The ledger of a version in an embedded store: an SQLite file beside its points, made by the first line.

It goes where the version's folder goes. What cannot be read as one is begun anew: no picture depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imret.errors import StoreError
from imret.escape import escape_undecodable
from imret.store.ledger import UnitLine, line_id, line_of

if TYPE_CHECKING:
    import sqlite3

FILE = "units.sqlite"
_BATCH = 1_000
_WAIT_S = 30.0  # for another program that writes
_MAKE = "CREATE TABLE IF NOT EXISTS units (id TEXT PRIMARY KEY, source TEXT NOT NULL, line TEXT NOT NULL)"
_INDEX = "CREATE INDEX IF NOT EXISTS by_source ON units (source, id)"


class SqliteLedger:
    """See `imret.store.ledger.Ledger`.

    Args:
        version: Folder of the version.
    """

    def __init__(self, version: Path) -> None:
        self._file = version / FILE

    def get(self, source: str, units: Sequence[str]) -> dict[str, UnitLine]:
        found: dict[str, UnitLine] = {}
        for start in range(0, len(units), _BATCH):
            ids = [line_id(source, unit) for unit in units[start : start + _BATCH]]
            marks = ",".join("?" * len(ids))
            found |= {line.unit: line for line in self._read(f"id IN ({marks})", ids)}
        return found

    def scan(self, source: str) -> Iterator[list[UnitLine]]:
        after = ""
        while lines := self._read(
            f"source = ? AND id > ? ORDER BY id LIMIT {_BATCH}", [escape_undecodable(source), after]
        ):
            yield lines
            after = lines[-1].id

    def put(self, lines: Sequence[UnitLine]) -> None:
        rows = [(line.id, line.source, json.dumps(line.as_dict())) for line in lines]
        self._write("INSERT OR REPLACE INTO units VALUES (?, ?, ?)", rows)

    def forget(self, source: str, units: Sequence[str] | None = None) -> None:
        if not self._file.exists():
            return
        if units is None:
            self._write("DELETE FROM units WHERE source = ?", [(escape_undecodable(source),)])
        else:
            self._write("DELETE FROM units WHERE id = ?", [(line_id(source, unit),) for unit in units])

    def _read(self, where: str, values: Sequence[Any]) -> list[UnitLine]:
        import sqlite3

        if not self._file.exists():
            return []
        try:
            # Read only: of a store that cannot be written to there is something to read, too.
            with closing(self._connect("ro")) as opened:
                rows = opened.execute(f"SELECT line FROM units WHERE {where}", values).fetchall()
        except sqlite3.Error:
            return []
        lines = []
        for (text,) in rows:
            with suppress(ValueError):
                lines.append(line_of(json.loads(text)))
        return [line for line in lines if line is not None]

    def _write(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        import sqlite3

        for is_last in (False, True):
            try:
                with closing(self._connect("rwc")) as opened, opened:
                    opened.execute(_MAKE)
                    opened.execute(_INDEX)
                    opened.executemany(statement, rows)
                return
            except sqlite3.OperationalError as error:  # busy, full, or the version has been removed
                raise StoreError(f"cannot write {str(self._file)!r}: {error}") from error
            except sqlite3.DatabaseError as error:
                if is_last:
                    raise StoreError(f"cannot write {str(self._file)!r}: {error}") from error
                with suppress(OSError):
                    self._file.unlink()

    def _connect(self, mode: str) -> sqlite3.Connection:
        import sqlite3

        return sqlite3.connect(f"{self._file.as_uri()}?mode={mode}", uri=True, timeout=_WAIT_S)
