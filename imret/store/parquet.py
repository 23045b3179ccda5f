"""A collection as one Parquet file, and back: between embedded and server, and between versions of imret.

Columns: id (a UUID as text, ascending), vector (float32), payload (a JSON object, which keeps 1 apart from
1.0 and from "1" under one key). The key "imret" of the file's metadata names format, collection, encoder and
number of points, and what is kept with the collection (names, concepts), which other keys hold in parts of
base64. Hides batches and damage; memory stays at one row group. Exact are ids, payloads, and the
vectors in the file, bit for bit what the engine returned. An engine normalises what it stores, so that in an
imported collection the last bits of a vector may be others.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imret.errors import ChangedMeanwhile, DataError, StoreError, some_of, summary
from imret.escape import escape_undecodable
from imret.settings import __version__
from imret.store import Collection, Identity, Point, Store, exported_documents
from imret.store.collection import check_ids, check_name, check_payloads, check_vectors
from imret.store.documents import EXPORTED, DocumentKind
from imret.store.exported_file import check_space, write_whole
from imret.store.replacement import Replacement
from imret.store.strict_json import parse_object

try:
    import pyarrow
    import pyarrow.parquet
except ModuleNotFoundError as error:
    raise DataError(
        "a collection is exported to Parquet and imported from it, which needs: pip install 'imret[parquet]'"
    ) from error

pa: Any = pyarrow  # it has no types
parquet: Any = pyarrow.parquet

FORMAT = 1
ROW_GROUP_BYTES = 16 << 20  # what is collected before it is written, and what a reader holds at a time
ROW_GROUP_MAX_BYTES = 1 << 30  # a file that asks for more memory than this at a time is not ours
BATCH = 1_024  # points of one upsert
_KEY = b"imret"
_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}  # the last two are of what is null or nested, in any file

_NOT_COMPARABLE = (
    "Their vectors cannot be compared. Import it under another name (--collection NAME), or in place of this "
    "one (--replace)."
)

# (ids, vectors (n, dim) float32, payloads)
Batch: TypeAlias = tuple[list[str], NDArray[np.float32], list[dict[str, Any]]]


@dataclass(frozen=True)
class ExportedCollection:
    """What a file says of itself.

    Attributes:
        collection: Name that it was exported under.
        identity: The encoder that made its vectors.
        points: How many it holds.
        imret: Version of imret that wrote it.
        documents: Which were kept with the collection; None if the imret that wrote it knew of none.
    """

    collection: str
    identity: Identity
    points: int
    imret: str
    documents: tuple[DocumentKind, ...] | None = None


def export_collection(
    store: Store,
    name: str,
    file: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    on_points: Callable[[int], None] | None = None,
) -> int:
    """Write the live version of a collection to a Parquet file; whole, or not at all.

    Args:
        store: An open store.
        name: The collection.
        file: What to write. It appears when it is complete; until then ".NAME.part~" grows beside it.
        overwrite: Replace a file that exists.
        on_points: Called with a number of points that were written.

    Returns:
        How many points there are in the file. One that is added to the collection meanwhile may not be.

    Raises:
        DataError: If there is no such collection, or the file exists, cannot be written, or does not fit.
        StoreError: If the store fails, or a document of the collection is damaged.
    """
    n_points = 0

    def write(part: Path) -> None:
        nonlocal n_points
        with open(part, "wb") as out:
            n_points = _write_points(collection, documents, out, on_points or (lambda n: None))

    with closing(store.open(name)) as collection:
        documents = {kind: store.document(name, kind) for kind in EXPORTED}
        write_whole(file, write, overwrite=overwrite)
    return n_points


def read_header(file: str | os.PathLike[str]) -> ExportedCollection:
    """Return what an exported file says of itself, without reading its points.

    Raises:
        DataError: If it is not there, no file of this format, or not whole.
    """
    with _reading(file) as reader:
        return reader.header


def import_collection(
    file: str | os.PathLike[str],
    store: Store,
    name: str,
    *,
    replace: bool = False,
    merge: bool = False,
    on_points: Callable[[int], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> int:
    """Make a collection of an exported file.

    The whole file is verified before the store is touched. Its points go into a new version beside the live
    one, if any, which becomes live when it is complete; killed before that and called again, it ends in the
    same state. With `merge` they go into the live version itself. Last comes what was kept with the
    collection; of that `merge` leaves what is there, and a file of an imret that knew of none leaves all.
    Killed at just that moment, it is there without it: `replace` or `merge` the file again.

    Args:
        file: From `export_collection`.
        store: An open store.
        name: The collection to make.
        replace: Replace one that exists, whatever its encoder.
        merge: Add to one that exists, of the same encoder; a point of the same id is replaced.
        on_points: Called with a number of points that were verified, then of those that were stored.
        on_stage: Called with "verify", "store" and "index" as these begin; the last two take turns.

    Returns:
        How many points were stored.

    Raises:
        DataError: If the file is not whole or not of this format, or the collection exists and neither
            `replace` nor `merge` is set.
        ModelMismatch: If it exists with another encoder, and `merge` is set.
        ChangedMeanwhile: If another program changed the collection meanwhile or, with `merge`, replaced it.
        StoreError: If the store fails. Run it again: what is half made is not live, and is made again.
    """
    if replace and merge:
        raise ValueError("either replace a collection or merge into it")
    check_name(name)
    say_stage, say_points = on_stage or (lambda stage: None), on_points or (lambda n: None)
    with _reading(file) as reader:
        identity, points = reader.header.identity, reader.header.points
        begun = store.state(name)
        if (live := store.live(name)) is not None:
            if merge:
                live.require_same(
                    identity, subject=f"collection {name!r}", user=reader.shown, advice=_NOT_COMPARABLE
                )
                identity = live  # and its name for the model, which works on this machine
            elif not replace:
                raise _exists(store, name)
        replacement = Replacement(store, name, begun) if begun.version is None or not merge else None
        documents = reader.documents()
        say_stage("verify")
        for ids, _, _ in reader.batches():
            say_points(len(ids))
        say_stage("store")
        try:
            fill = store.create_staging if replacement else store.open_version
            with closing(fill(name, identity)) as target:
                for ids, vectors, payloads in reader.batches():
                    target.upsert(ids, vectors, payloads)
                    say_points(len(ids))
                    if target.needs_optimize():
                        say_stage("index")
                        target.optimize()
                        say_stage("store")
                if replacement and (stored := target.count()) != points:
                    raise StoreError(
                        f"{store.address} holds {stored:,} of the {points:,} points of {reader.shown} after "
                        "all were stored. Does something else write to it? Run the import again."
                    )
                target.flush()
                say_stage("index")
                target.optimize()
                if replacement:
                    replacement.carry_out(target)
                else:
                    store.finish(name, begun)
        except ChangedMeanwhile as error:
            what = "it stays as it is" if replacement else "what was added to it may be lost"
            also = " to replace what that stored, too, or add to it with --merge" if replace else ""
            raise ChangedMeanwhile(
                f"another program changed the collection {name!r} while this import ran; {what}. "
                f"Run it again{also}."
            ) from error
    exported_documents.keep(store, name, documents, replace=not merge)
    return points


def _exists(store: Store, name: str) -> DataError:
    return DataError(
        f"collection {name!r} exists already, in {store.address}. Replace it with the file's content "
        "(--replace), add to it (--merge), or import under another name (--collection NAME)."
    )


# ---- Writing -----------------------------------------------------------------------------------


def _schema(dim: int) -> Any:
    numbers = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("vector", numbers, nullable=False),
            pa.field("payload", pa.string(), nullable=False),
        ]
    )


def _row_groups(
    batches: Iterable[list[Point]], name: str
) -> Iterator[tuple[list[str], NDArray[np.float32], list[str]]]:
    """Yield ids, vectors and payloads as JSON, about ROW_GROUP_BYTES of them at a time."""
    ids: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    payloads: list[str] = []
    size, last = 0, ""
    for points in batches:
        for point in points:
            if point.vector is None or point.id <= last:
                raise StoreError(f"the store returned point {point.id} of collection {name!r} out of order")
            last = point.id
            ids.append(point.id)
            vectors.append(point.vector)
            payloads.append(json.dumps(point.payload, ensure_ascii=False, allow_nan=False, sort_keys=True))
            size += point.vector.nbytes + len(payloads[-1])
        if size >= ROW_GROUP_BYTES:
            yield ids, np.stack(vectors), payloads
            ids, vectors, payloads, size = [], [], [], 0
    if ids:
        yield ids, np.stack(vectors), payloads


def _write_points(
    collection: Collection,
    documents: Mapping[DocumentKind, bytes | None],
    out: IO[bytes],
    on_points: Callable[[int], None],
) -> int:
    """Write every point of a collection, and the note that makes the file one of ours; return how many.

    Raises:
        OSError: If the disk has too little space.
    """
    name, identity = collection.name, collection.identity
    kept = {kind: content for kind, content in documents.items() if content is not None}
    check_space(out.name, 4 * identity.dim * collection.count() + 2 * sum(map(len, kept.values())))
    schema = _schema(identity.dim)
    n_points = 0
    # The digits of an embedding do not compress.
    writer = parquet.ParquetWriter(
        out,
        schema,
        compression={"id": "zstd", "vector.list.element": "none", "payload": "zstd"},
        use_dictionary=False,
        write_statistics=["id"],
        write_page_checksum=True,
    )
    try:
        for ids, vectors, payloads in _row_groups(collection.scan(vectors=True), name):
            cells = pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)), type=schema.field("vector").type
            )
            writer.write_table(pa.table([pa.array(ids), cells, pa.array(payloads)], schema=schema))
            n_points += len(ids)
            on_points(len(ids))
        about = {"format": FORMAT, "imret": __version__, "collection": name, "points": n_points}
        note = json.dumps(about | asdict(identity) | {"documents": exported_documents.describe(kept)})
        writer.add_key_value_metadata({_KEY: note.encode(), **exported_documents.parts_of(kept)})
        writer.close()
    except BaseException:
        writer.is_open = False  # or it would try, and fail, to write its end when it is collected
        raise
    return n_points


# ---- Reading -----------------------------------------------------------------------------------


@contextmanager
def _reading(file: str | os.PathLike[str]) -> Iterator[_Reader]:
    """Open an exported file.

    Raises:
        DataError: If it is not there, no file of this format, or not whole.
    """
    shown = repr(escape_undecodable(os.fspath(file)))
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opening a named pipe waits for ever
            raise DataError(f"cannot read {shown}: it is no file.")
        source = open(file, "rb")  # noqa: SIM115  # closed below
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}.") from error
    with source:
        yield _Reader(source, shown)


class _Reader:
    """An exported file whose header was checked; `batches` checks the rest.

    Args:
        source: The open file.
        shown: Its name, for errors.

    Raises:
        DataError: If it is no file of this format, or not whole.
    """

    def __init__(self, source: IO[bytes], shown: str) -> None:
        self.shown = shown
        with self._damage():
            # Nothing ahead of its turn: memory is for one row group.
            self._file = parquet.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
            self._metadata = self._file.metadata
            schema = self._file.schema_arrow
        note = self._note()
        if note.get("format") != FORMAT:
            raise DataError(
                f"{shown} has format {note.get('format')!r}, and this imret {__version__} reads format "
                f"{FORMAT}. Import it with the imret that wrote it ({note.get('imret')!r}), or a newer one."
            )
        try:
            dim, points = note["dim"], note["points"]
            if not (type(dim) is type(points) is int and 0 <= dim < 2**31 and 0 <= points < 2**63):
                raise ValueError("dim and points are no numbers, or far too large")
            identity = Identity(_text(note["model"]), _text(note["fingerprint"]), dim)
            self._described = exported_documents.parse(note.get("documents"))
            kinds = None if self._described is None else tuple(self._described)
            self.header = ExportedCollection(
                _text(note["collection"]), identity, points, _text(note["imret"]), kinds
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._not_ours(f"its note of collection and model is not whole ({error})") from error
        if not schema.equals(_schema(dim), check_metadata=False):
            columns = some_of([f"{field.name}: {field.type}" for field in schema], 10)
            raise self._not_ours(f"its columns are {columns}, not those of {dim} dimensions")
        if self._metadata.num_rows != points:
            raise self._not_ours(
                f"it says that it holds {points:,} points, and holds {self._metadata.num_rows:,}"
            )

    def _note(self) -> dict[str, Any]:
        stored = (self._metadata.metadata or {}).get(_KEY)
        if stored is None:
            raise DataError(
                f"{self.shown} is a Parquet file, but no collection that imret exported. "
                "Make one: imret collections export NAME FILE"
            )
        try:
            note = json.loads(stored)
        except (ValueError, RecursionError):
            note = None
        if not isinstance(note, dict):
            raise self._not_ours("its note of collection and model cannot be read")
        return note

    def documents(self) -> dict[DocumentKind, bytes | None]:
        """Return what the file says of each kind of document, whole and as it was; {} if it says nothing.

        Raises:
            DataError: If one is not.
        """
        if self._described is None:
            return {}
        try:
            return exported_documents.join(self._described, self._metadata.metadata or {})
        except ValueError as error:
            raise self._not_ours(str(error)) from error

    def batches(self) -> Iterator[Batch]:
        """Yield every point, checked, in batches.

        Raises:
            DataError: If a row is not what a store takes, ids repeat or are out of order, or the file is
                damaged.
        """
        dim, row, last = self.header.identity.dim, 0, ""
        for group in range(self._metadata.num_row_groups):
            self._check_memory(group, dim)
            with self._damage():
                tables = self._file.read_row_group(group, use_threads=False).to_batches(max_chunksize=BATCH)
            for table in tables:
                batch = self._checked(table, dim, row)
                for i, id_ in enumerate(batch[0]):
                    if id_ <= last:
                        wrong = "repeats" if id_ == last else "is out of order"
                        raise self._not_ours(f"in row {row + i + 1:,} the id {id_} {wrong}")
                    last = id_
                row += len(batch[0])
                yield batch
        if row != self.header.points:
            raise self._not_ours(f"it says that it holds {self.header.points:,} points, and holds {row:,}")

    def _check_memory(self, group: int, dim: int) -> None:
        """Refuse a row group that asks for more memory than any of ours.

        Also encodings by which a few bytes stand for gigabytes of text; an export is in none of them.
        """
        with self._damage():
            about = self._metadata.row_group(group)
            size = max(about.total_byte_size, 4 * dim * about.num_rows)
            used = {encoding for i in range(about.num_columns) for encoding in about.column(i).encodings}
        if size > ROW_GROUP_MAX_BYTES:
            raise self._not_ours(f"it wants {size / 1e9:.1f} GB of memory at a time")
        if not used <= _ENCODINGS:
            raise self._not_ours(f"a column is encoded as {', '.join(sorted(used - _ENCODINGS))}")

    def _checked(self, table: Any, dim: int, row: int) -> Batch:
        n = table.num_rows
        where = f"rows {row + 1:,} to {row + n:,}"
        try:
            columns = [table.column(name) for name in ("id", "vector", "payload")]
            numbers = columns[1].flatten()
            if any(column.null_count for column in (*columns, numbers)):
                raise ValueError("a value is missing")
            ids = check_ids(columns[0].to_pylist())
            # An engine must not see NaN, and a kept view would keep the whole row group alive.
            vectors = check_vectors(numbers.to_numpy(zero_copy_only=True).reshape(-1, dim), (n, dim))
            payloads = check_payloads([parse_object(text) for text in columns[2].to_pylist()], n)
        except RecursionError as error:
            raise self._not_ours(f"in {where} a payload is nested too deep") from error
        except (ValueError, TypeError, pa.ArrowException, MemoryError) as error:
            raise self._not_ours(f"in {where}: {summary(error)}") from error
        return ids, vectors, payloads

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """Turn what pyarrow raises on a damaged file into an error that says what to do."""
        try:
            yield
        except (OSError, ValueError, TypeError, pa.ArrowException, MemoryError, OverflowError) as error:
            raise DataError(
                f"{self.shown} is no whole Parquet file: {summary(error)}.\n"
                "Was it cut short or changed on its way here? Copy it again, or export again."
            ) from error

    def _not_ours(self, reason: str) -> DataError:
        return DataError(f"{self.shown} is not as imret exports it: {reason}. Export the collection again.")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
