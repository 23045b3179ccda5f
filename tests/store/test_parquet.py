"""Collections as Parquet files: what survives the way, what is refused, and what a kill leaves."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from qdrant_client import QdrantClient, models

from imret.errors import DataError, ModelMismatch, StoreError
from imret.store import Collection, Identity, Point, Store, exported_documents, exported_file
from imret.store import parquet as transfer
from imret.store.embedded.store import EdgeStore
from imret.store.parquet import export_collection, import_collection, read_header
from imret.store.server.store import ServerStore
from tests import ROOT
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

DIM = 16
MODEL = Identity("ViT-tiny", "a1" * 32, DIM)
OTHER_MODEL = Identity("ViT-tiny-tuned", "b2" * 32, DIM)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where that can be: making a collection waits for the disk a dozen times."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="imret-test-", dir=where) as name:
        yield Path(name)


@pytest.fixture
def embedded(folder: Path) -> Iterator[Store]:
    with EdgeStore(folder / "db", lock_timeout_s=0.0) as store:
        yield store


@pytest.fixture(params=["server in memory", pytest.param("real server", marks=pytest.mark.server)])
def server(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "server in memory":
        with ServerStore("http://memory", client=QdrantClient(":memory:"), in_flight=1) as memory:
            yield memory
    else:
        url = os.environ.get("IMRET_TEST_QDRANT_URL")
        if not url:
            pytest.skip("set IMRET_TEST_QDRANT_URL to run against a real server")
        with ServerStore(url) as real:
            yield real


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    unique = f"imret-test-{uuid.uuid4().hex}"
    yield unique
    if "server" in request.fixturenames:
        request.getfixturevalue("server").drop(unique)


def payload_of(i: int) -> dict[str, Any]:
    """Return a payload whose values are of another type under the same key in each point."""
    mixed: list[Any] = [i, float(i), str(i), 2**63 - 1 - i, -(2**63) + i, i / 7, "名前 \0\n\"' e\u0301"]
    payload = {"path": f"{i}.jpg", "category": f"c{i % 3}", "mixed": mixed[i % len(mixed)]}
    return payload if i % 5 else {}


def fill(
    store: Store, name: str, numbers: range, identity: Identity = MODEL, *, staged: bool = False
) -> None:
    vectors = np.random.default_rng(numbers.start).standard_normal((len(numbers), identity.dim))
    open_target = store.create_staging if staged else store.open_version
    with closing(open_target(name, identity)) as opened:
        opened.upsert(
            [str(uuid.UUID(int=i + 1)) for i in numbers],
            vectors.astype(np.float32),
            [payload_of(i) for i in numbers],
        )
    store.promote(name, identity, staged=staged)


def everything(store: Store, name: str) -> list[Point]:
    with closing(store.open(name)) as opened:
        return [point for batch in opened.scan(vectors=True) for point in batch]


def typed(points: list[Point]) -> list[tuple[str, dict[str, tuple[type, Any]]]]:
    return [(p.id, {key: (type(value), value) for key, value in p.payload.items()}) for p in points]


def vectors_of(points: list[Point]) -> np.ndarray:
    return np.stack([p.vector for p in points])  # type: ignore[misc]


def test_a_collection_travels_to_a_server_and_back_and_stays_the_same(
    embedded: Store, server: Store, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "ROW_GROUP_BYTES", 20_000)  # several groups, and batches cut by them
    fill(embedded, name, range(1_000))
    before = everything(embedded, name)
    assert export_collection(embedded, name, folder / "there.parquet") == 1_000
    header = read_header(folder / "there.parquet")
    assert (header.collection, header.identity, header.points) == (name, MODEL, 1_000)
    table = parquet.read_table(folder / "there.parquet")
    assert table.column("id").to_pylist() == [p.id for p in before]
    in_file = np.array(table.column("vector").to_pylist(), np.float32)
    np.testing.assert_array_equal(in_file, vectors_of(before))  # bit for bit

    assert import_collection(folder / "there.parquet", server, name) == 1_000
    assert server.live(name) == MODEL
    on_server = everything(server, name)
    assert typed(on_server) == typed(before)
    np.testing.assert_allclose(vectors_of(on_server), in_file, rtol=0, atol=2e-7)
    with closing(embedded.open(name)) as here, closing(server.open(name)) as there:
        for query in np.random.default_rng(9).standard_normal((20, DIM)).astype(np.float32):
            ours, theirs = here.search(query, limit=10), there.search(query, limit=10)
            assert [hit.id for hit in ours] == [hit.id for hit in theirs]
            np.testing.assert_allclose(
                [hit.score for hit in ours], [hit.score for hit in theirs], rtol=0, atol=1e-6
            )

    export_collection(server, name, folder / "back.parquet")
    import_collection(folder / "back.parquet", embedded, "again")
    after = everything(embedded, "again")
    assert typed(after) == typed(before)
    np.testing.assert_allclose(vectors_of(after), vectors_of(before), rtol=0, atol=2e-7)


def test_an_empty_collection_travels_too(embedded: Store, folder: Path) -> None:
    fill(embedded, "photos", range(0))
    assert export_collection(embedded, "photos", folder / "a.parquet") == 0
    assert import_collection(folder / "a.parquet", embedded, "again") == 0
    assert embedded.collections() == ["again", "photos"]


def test_a_model_whose_name_is_no_unicode_travels(embedded: Store, folder: Path) -> None:
    odd = Identity("/models/caf\udce9", "c3" * 32, DIM)
    fill(embedded, "photos", range(3), odd)
    export_collection(embedded, "photos", folder / "a.parquet")
    import_collection(folder / "a.parquet", embedded, "again")
    assert embedded.live("again") == odd


def test_a_long_import_indexes_where_the_index_lags_and_says_so(
    embedded: Store, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(embedded, name, range(50))
    export_collection(embedded, name, folder / "a.parquet")
    lags = iter([True])
    monkeypatch.setattr(Collection, "needs_optimize", lambda collection: next(lags, False))
    stages: list[str] = []
    import_collection(folder / "a.parquet", embedded, name, replace=True, on_stage=stages.append)
    assert stages == ["verify", "store", "index", "store", "index"]
    assert len(everything(embedded, name)) == 50


@pytest.mark.parametrize("engine", ["embedded", "server"])
@pytest.mark.parametrize("live_model", [MODEL, OTHER_MODEL])
def test_a_replaced_collection_answers_until_the_new_one_is_complete(
    engine: str, live_model: Identity, embedded: Store, folder: Path, name: str
) -> None:
    memory = ServerStore("http://memory", client=QdrantClient(":memory:"), in_flight=1)
    with memory:
        store: Store = embedded if engine == "embedded" else memory
        fill(store, name, range(50))
        export_collection(store, name, folder / "a.parquet")
        store.drop(name)
        fill(store, name, range(100, 107), live_model)
        stages: list[str] = []

        def look(stage: str) -> None:
            stages.append(stage)
            assert store.live(name) == live_model
            assert len(everything(store, name)) == 7

        import_collection(folder / "a.parquet", store, name, replace=True, on_stage=look)
        assert stages == ["verify", "store", "index"]
        assert store.live(name) == MODEL
        assert store.staged_versions(name) == []
        assert typed(everything(store, name)) == typed([Point(*p) for p in _points(range(50))])


def _points(numbers: range) -> Iterator[tuple[str, dict[str, Any]]]:
    for i in numbers:
        yield str(uuid.UUID(int=i + 1)), payload_of(i)


def test_a_collection_that_exists_is_not_replaced_unasked(embedded: Store, folder: Path) -> None:
    fill(embedded, "photos", range(10))
    export_collection(embedded, "photos", folder / "a.parquet")
    fill(embedded, "photos", range(10, 13), staged=True)
    with pytest.raises(DataError, match=r"'photos' exists already.*--replace.*--merge.*--collection"):
        import_collection(folder / "a.parquet", embedded, "photos")
    assert len(everything(embedded, "photos")) == 3
    with pytest.raises(ValueError, match="either"):
        import_collection(folder / "a.parquet", embedded, "photos", replace=True, merge=True)


def test_a_merge_adds_and_replaces_by_id(embedded: Store, folder: Path) -> None:
    fill(embedded, "photos", range(10))
    export_collection(embedded, "photos", folder / "a.parquet")
    moved = Identity("/new/place", MODEL.fingerprint, DIM)
    fill(embedded, "photos", range(5, 15), moved, staged=True)
    assert import_collection(folder / "a.parquet", embedded, "photos", merge=True) == 10
    assert typed(everything(embedded, "photos")) == typed([Point(*p) for p in _points(range(15))])
    assert embedded.live("photos") == moved  # the name that works on this machine
    assert import_collection(folder / "a.parquet", embedded, "new", merge=True) == 10
    assert embedded.live("new") == MODEL


def test_vectors_of_another_encoder_are_not_merged(embedded: Store, folder: Path) -> None:
    fill(embedded, "photos", range(10))
    export_collection(embedded, "photos", folder / "a.parquet")
    fill(embedded, "other", range(3), OTHER_MODEL)
    with pytest.raises(ModelMismatch, match=r"'other' was built with 'ViT-tiny-tuned' \(b2b2b2b2\)"):
        import_collection(folder / "a.parquet", embedded, "other", merge=True)
    assert len(everything(embedded, "other")) == 3


# ---- Files that are refused ----------------------------------------------------------------------


class Forged:
    """A file as imret would write it, with something wrong."""

    def __init__(self, n: int = 8) -> None:
        self.note: dict[str, Any] = {
            "format": 1,
            "imret": "0.1.0",
            "collection": "photos",
            "model": MODEL.model,
            "fingerprint": MODEL.fingerprint,
            "dim": DIM,
            "points": n,
        }
        self.ids: list[Any] = [str(uuid.UUID(int=i + 1)) for i in range(n)]
        self.vectors: Any = np.random.default_rng(0).standard_normal((n, DIM)).astype(np.float32)
        self.payloads: list[Any] = [json.dumps({"path": f"{i}.jpg"}) for i in range(n)]
        self.raw_note: bytes | None = None
        self.parts: dict[bytes, bytes] = {}
        self.use_dictionary = False

    def write(self, file: Path) -> None:
        dim = self.vectors.shape[1]
        kind = pa.float32() if self.vectors.dtype == np.float32 else pa.float64()
        cells = pa.FixedSizeListArray.from_arrays(
            pa.array(self.vectors.reshape(-1)),
            type=pa.list_(pa.field("element", kind, nullable=False), dim),
        )
        nullable = None in self.ids + self.payloads
        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=nullable),
                pa.field("vector", cells.type, nullable=False),
                pa.field("payload", pa.string(), nullable=nullable),
            ],
            metadata={
                b"imret": json.dumps(self.note).encode() if self.raw_note is None else self.raw_note,
                **self.parts,
            },
        )
        table = pa.table([pa.array(self.ids), cells, pa.array(self.payloads)], schema=schema)
        parquet.write_table(table, file, use_dictionary=self.use_dictionary)


def with_names(forged: Forged, content: bytes = b"{}", **about: object) -> None:
    described = exported_documents.describe({"names": content})
    described["names"] |= about
    forged.note["documents"] = described
    forged.parts = exported_documents.parts_of({"names": content})


def with_other_part(forged: Forged, part: bytes) -> None:
    with_names(forged)
    forged.parts = {b"imret.names.0": part}


FORGERIES: dict[str, tuple[Callable[[Forged], Any], str]] = {
    "NaN in a vector": (lambda f: f.vectors.__setitem__((3, 2), np.nan), "rows 1 to 8: .*NaN"),
    "infinity in a vector": (lambda f: f.vectors.__setitem__((3, 2), np.inf), "NaN or infinity"),
    "vectors of doubles": (lambda f: setattr(f, "vectors", f.vectors.astype(float)), "its columns are"),
    "another dimension": (lambda f: setattr(f, "vectors", f.vectors[:, :-1]), "not those of 16 dim"),
    "an id twice": (lambda f: f.ids.__setitem__(4, f.ids[3]), "ids of one call must differ"),
    "ids out of order": (lambda f: f.ids.reverse(), "row 2 the id .* is out of order"),
    "an id that is no UUID": (lambda f: f.ids.__setitem__(0, "../../etc"), "a point id is a UUID"),
    "an id missing": (lambda f: f.ids.__setitem__(4, None), "its columns are|a value is missing"),
    "a payload that is too deep": (lambda f: f.payloads.__setitem__(1, "[" * 200_000), "nested too deep"),
    "a payload inside a payload": (lambda f: f.payloads.__setitem__(1, '{"a": {"b": 1}}'), "type dict"),
    "a payload of NaN": (lambda f: f.payloads.__setitem__(1, '{"a": NaN}'), "holds NaN"),
    "a payload beyond floats": (lambda f: f.payloads.__setitem__(1, '{"a": 1e999}'), "not finite"),
    "a payload beyond 64 bits": (lambda f: f.payloads.__setitem__(1, f'{{"a": {2**63}}}'), "fit 64 bits"),
    "a payload of 5,000 digits": (lambda f: f.payloads.__setitem__(1, f'{{"a": {"9" * 5000}}}'), "digit"),
    "a payload of true": (lambda f: f.payloads.__setitem__(1, '{"a": true}'), "type bool"),
    "a payload with a key twice": (lambda f: f.payloads.__setitem__(1, '{"a": 1, "a": 2}'), "key twice"),
    "a payload that is a list": (lambda f: f.payloads.__setitem__(1, "[]"), "a payload is an object"),
    "a payload with a lone surrogate": (
        lambda f: f.payloads.__setitem__(1, '{"a": "\\udce9"}'),
        "lone surrogates",
    ),
    "a payload that is no JSON": (lambda f: f.payloads.__setitem__(1, "{"), "rows 1 to 8"),
    "fewer points than it says": (lambda f: f.note.update(points=9), "says that it holds 9 points"),
    "a later format": (lambda f: f.note.update(format=2), "has format 2.*newer"),
    "no fingerprint": (lambda f: f.note.pop("fingerprint"), "fingerprint"),
    "a fingerprint that is a path": (lambda f: f.note.update(fingerprint="../.."), "fingerprint"),
    "a dimension that is true": (lambda f: f.note.update(dim=True), "no numbers"),
    "a dimension of billions": (lambda f: f.note.update(dim=2**40), "far too large"),
    "a model that is a list": (lambda f: f.note.update(model=[]), "no text"),
    "documents that are a list": (lambda f: f.note.update(documents=[]), "documents are no object"),
    "a document of another kind": (lambda f: f.note.update(documents={"x": {}}), "what 'x' is; upgrade"),
    "a document that is not described": (lambda f: f.note.update(documents={"names": 1}), "not described"),
    "a document of true bytes": (lambda f: with_names(f, bytes=True), "not described"),
    "a document of gigabytes": (lambda f: with_names(f, bytes=2**40), "no more than 268 MB are kept"),
    "a document of fewer than no bytes": (lambda f: with_names(f, bytes=-1), "no more than"),
    "a document of many parts": (lambda f: with_names(f, parts=10**12), "not described"),
    "a document without its part": (lambda f: (with_names(f), f.parts.clear()), "names are not whole"),
    "a document that is no base64": (lambda f: with_other_part(f, b"?"), "names are not whole"),
    "another document": (lambda f: with_other_part(f, b"e319"), "names are not what was exported"),
    "a document of another digest": (lambda f: with_names(f, sha256="0" * 64), "not what was exported"),
    "a note that is no JSON": (lambda f: setattr(f, "raw_note", b"\xff"), "cannot be read"),
    "a note that is too deep": (lambda f: setattr(f, "raw_note", b"[" * 200_000), "cannot be read"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_file_is_refused_before_the_store_is_touched(what: str, tmp_path: Path) -> None:
    forge, message = FORGERIES[what]
    forged = Forged()
    forge(forged)
    file = tmp_path / "forged.parquet"
    forged.write(file)
    with EdgeStore(tmp_path / "db") as store:
        with pytest.raises(DataError, match=message) as caught:
            import_collection(file, store, "photos")
        assert "forged.parquet" in str(caught.value)
        assert os.listdir(tmp_path / "db") == ["imret-store.json"]


def test_documents_travel_with_a_collection(
    embedded: Store, server: Store, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported_documents, "PART_BYTES", 1_000)
    fill(embedded, name, range(3))
    concepts = np.random.default_rng(0).bytes(10_001)
    embedded.change_document(name, "concepts", lambda _: concepts)
    embedded.change_document(name, "names", lambda _: b"")
    export_collection(embedded, name, folder / "there.parquet")
    assert read_header(folder / "there.parquet").documents == ("names", "concepts")
    import_collection(folder / "there.parquet", server, name)
    assert (server.document(name, "concepts"), server.document(name, "names")) == (concepts, b"")
    server.remove_document(name, "names")
    export_collection(server, name, folder / "back.parquet")
    import_collection(folder / "back.parquet", embedded, "again")
    assert (embedded.document("again", "concepts"), embedded.document("again", "names")) == (concepts, None)


def test_an_import_in_place_of_a_collection_brings_its_own_documents_and_a_merge_what_is_lacking(
    embedded: Store, folder: Path
) -> None:
    fill(embedded, "photos", range(3))
    embedded.change_document("photos", "names", lambda _: b"exported")
    embedded.change_document("photos", "concepts", lambda _: b"exported")
    export_collection(embedded, "photos", folder / "a.parquet")
    embedded.change_document("photos", "names", lambda _: b"newer")
    embedded.remove_document("photos", "concepts")
    import_collection(folder / "a.parquet", embedded, "photos", merge=True)
    assert embedded.document("photos", "names") == b"newer"
    assert embedded.document("photos", "concepts") == b"exported"
    import_collection(folder / "a.parquet", embedded, "photos", replace=True)
    assert embedded.document("photos", "names") == b"exported"
    fill(embedded, "other", range(3))
    export_collection(embedded, "other", folder / "none.parquet")
    import_collection(folder / "none.parquet", embedded, "photos", merge=True)
    assert embedded.document("photos", "names") == b"exported"
    import_collection(folder / "none.parquet", embedded, "photos", replace=True)
    assert embedded.document("photos", "names") is None
    assert embedded.document("photos", "concepts") is None


def test_a_file_of_an_imret_that_knew_no_documents_leaves_them_as_they_are(
    embedded: Store, tmp_path: Path
) -> None:
    Forged().write(tmp_path / "old.parquet")
    assert read_header(tmp_path / "old.parquet").documents is None
    import_collection(tmp_path / "old.parquet", embedded, "photos")
    embedded.change_document("photos", "names", lambda _: b"taught")
    for how in ({"replace": True}, {"merge": True}):
        import_collection(tmp_path / "old.parquet", embedded, "photos", **how)
        assert embedded.document("photos", "names") == b"taught"


def test_the_forger_of_documents_writes_what_is_taken_when_nothing_is_wrong(
    embedded: Store, tmp_path: Path
) -> None:
    forged = Forged()
    with_names(forged, b"good")
    forged.write(tmp_path / "a.parquet")
    import_collection(tmp_path / "a.parquet", embedded, "photos")
    assert embedded.document("photos", "names") == b"good"


def test_the_forger_writes_files_that_are_taken_when_nothing_is_wrong(
    embedded: Store, tmp_path: Path
) -> None:
    Forged().write(tmp_path / "a.parquet")
    assert import_collection(tmp_path / "a.parquet", embedded, "photos") == 8


def test_an_id_that_repeats_in_a_later_batch_is_refused(
    embedded: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BATCH", 4)
    forged = Forged()
    forged.ids[4] = forged.ids[3]
    forged.write(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"in row 5 the id {forged.ids[3]} repeats"):
        import_collection(tmp_path / "a.parquet", embedded, "photos")


def test_a_row_group_that_wants_gigabytes_is_refused(
    embedded: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = Forged()
    forged.payloads[0] = json.dumps({"path": "x" * 5_000_000})
    forged.write(tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 500_000
    monkeypatch.setattr(transfer, "ROW_GROUP_MAX_BYTES", 1_000_000)
    with pytest.raises(DataError, match="GB of memory"):
        import_collection(tmp_path / "a.parquet", embedded, "photos")


def test_a_row_group_in_which_a_few_bytes_stand_for_gigabytes_is_refused(
    embedded: Store, tmp_path: Path
) -> None:
    forged = Forged(200)
    forged.payloads = [json.dumps({"path": random.Random(0).randbytes(50_000).hex()})] * 200  # stored once
    forged.use_dictionary = True
    forged.write(tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    with pytest.raises(DataError, match=r"a column is encoded as .*DICTIONARY"):
        import_collection(tmp_path / "a.parquet", embedded, "photos")


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_no_collection(seed: int, embedded: Store, tmp_path: Path) -> None:
    noise = random.Random(seed).randbytes(5_000)
    for content in (b"", noise, b"PAR1" + noise + b"\x40\x00\x00\x00PAR1", b"PAR1" + noise + b"PAR1"):
        (tmp_path / "noise.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"noise.parquet.* is no whole Parquet file"):
            import_collection(tmp_path / "noise.parquet", embedded, "photos")


def test_a_parquet_file_of_something_else_is_no_collection(embedded: Store, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": ["a"], "price": [1.5]}), tmp_path / "prices.parquet")
    with pytest.raises(DataError, match=r"no collection that imret exported.*collections export"):
        import_collection(tmp_path / "prices.parquet", embedded, "photos")


def test_a_file_cut_short_anywhere_is_refused(embedded: Store, folder: Path) -> None:
    fill(embedded, "photos", range(200))
    export_collection(embedded, "photos", folder / "whole.parquet")
    whole = (folder / "whole.parquet").read_bytes()
    for length in [0, 3, 4, 12, *range(100, len(whole), len(whole) // 25), len(whole) - 1]:
        (folder / "cut.parquet").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut.parquet.* (?s:.*)Copy it again"):
            import_collection(folder / "cut.parquet", embedded, "cut")
    assert embedded.staged_versions("cut") == []


def test_a_changed_byte_is_refused_or_changes_nothing(embedded: Store, folder: Path) -> None:
    fill(embedded, "photos", range(200))
    export_collection(embedded, "photos", folder / "whole.parquet")
    expected = everything(embedded, "photos")
    whole = (folder / "whole.parquet").read_bytes()
    rng = random.Random(0)
    n_refused = 0
    for _ in range(150):
        at = rng.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        (folder / "damaged.parquet").write_bytes(damaged)
        try:
            with transfer._reading(folder / "damaged.parquet") as reader:
                batches = list(reader.batches())
        except DataError:
            n_refused += 1
        else:
            assert [one for ids, _, _ in batches for one in ids] == [p.id for p in expected], at
            assert [one for *_, some in batches for one in some] == [p.payload for p in expected], at
            np.testing.assert_array_equal(np.concatenate([v for _, v, _ in batches]), vectors_of(expected))
    assert n_refused > 120


def test_what_is_no_file_is_refused(embedded: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # whose opening would wait for ever
    for file, message in (
        ("nonesuch", "No such file"),
        (".", "is no file"),
        ("pipe", "is no file"),
        ("a\0b", "null"),
    ):
        with pytest.raises(DataError, match=f"cannot read .*{message}"):
            import_collection(os.path.join(tmp_path, file), embedded, "photos")


# ---- Files that are written ----------------------------------------------------------------------


def test_an_export_never_overwrites_unasked_and_leaves_nothing_when_it_fails(
    embedded: Store, folder: Path
) -> None:
    fill(embedded, "photos", range(10))
    file = folder / "mine.parquet"
    file.write_text("precious")
    with pytest.raises(DataError, match=r"mine.parquet' exists already.*--overwrite"):
        export_collection(embedded, "photos", file)

    class StopError(Exception):
        pass

    def stop(n: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        export_collection(embedded, "photos", file, overwrite=True, on_points=stop)
    with pytest.raises(DataError, match="no collection 'nonesuch'"):
        export_collection(embedded, "nonesuch", file, overwrite=True)
    assert file.read_text() == "precious"
    assert sorted(os.listdir(folder)) == ["db", "mine.parquet"]
    assert export_collection(embedded, "photos", file, overwrite=True) == 10
    assert read_header(file).points == 10
    assert sorted(os.listdir(folder)) == ["db", "mine.parquet"]


def test_a_file_that_appears_during_the_export_is_not_overwritten(embedded: Store, folder: Path) -> None:
    fill(embedded, "photos", range(10))
    file = folder / "mine.parquet"
    with pytest.raises(DataError, match="was made by somebody else meanwhile"):
        export_collection(embedded, "photos", file, on_points=lambda n: file.write_text("theirs"))  # type: ignore[arg-type,return-value]
    assert file.read_text() == "theirs"
    assert sorted(os.listdir(folder)) == ["db", "mine.parquet"]


def test_an_export_goes_only_where_a_file_can_be(embedded: Store, folder: Path) -> None:
    fill(embedded, "photos", range(10))
    (folder / "link").symlink_to(folder / "real.parquet")
    for file, message in (
        (folder, "it is a folder"),
        (folder / "nonesuch" / "a.parquet", "its folder does not exist"),
        (folder / ("x" * 300), "name too long"),
    ):
        with pytest.raises(DataError, match=f"cannot write .*(?i:{message})"):
            export_collection(embedded, "photos", file, overwrite=True)
    with (folder / "open").open("wb") as opened:
        assert export_collection(embedded, "photos", f"/dev/fd/{opened.fileno()}") == 10
    assert read_header(folder / "open").points == 10
    assert export_collection(embedded, "photos", folder / "link") == 10
    assert (folder / "link").is_symlink()
    assert read_header(folder / "real.parquet").points == 10


def test_what_a_killed_export_left_is_used_again_and_a_running_one_is_left_alone(
    embedded: Store, folder: Path
) -> None:
    fill(embedded, "photos", range(10))
    (folder / ".a.parquet.part").write_bytes(b"x" * 100_000)

    def meanwhile(n: int) -> None:
        with pytest.raises(DataError, match="another export is writing"):
            export_collection(embedded, "photos", folder / "a.parquet")

    export_collection(embedded, "photos", folder / "a.parquet", on_points=meanwhile)
    assert read_header(folder / "a.parquet").points == 10
    assert sorted(os.listdir(folder)) == ["a.parquet", "db"]


FULL_DISK = """
import resource, sys
from imret.store.embedded.store import EdgeStore
from imret.store.parquet import export_collection
with EdgeStore(sys.argv[1]) as store:
    store.open("photos").close()  # the worker that this starts has no limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    export_collection(store, "photos", sys.argv[2])
"""


def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing(folder: Path) -> None:
    # A limit on the size of files stands in for a full disk: the write fails half way in the same place.
    with EdgeStore(folder / "db") as store:
        fill(store, "photos", range(1_000))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, folder / "db", folder / "a.parquet"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "imret.errors.DataError: cannot write" in done.stderr
    assert "File too large. Free some space" in done.stderr
    assert "Exception ignored" not in done.stderr
    assert os.listdir(folder) == ["db"]


def test_what_cannot_fit_is_refused_before_it_is_begun(
    embedded: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(embedded, "photos", range(10))
    monkeypatch.setattr(exported_file, "_SPARE_BYTES", 2**60)  # more than any disk has
    with pytest.raises(DataError, match=r"No space left: about 0\.0 GB are needed, .* Free some space"):
        export_collection(embedded, "photos", folder / "a.parquet")
    assert os.listdir(folder) == ["db"]


# ---- Kills, and memory ---------------------------------------------------------------------------

# Imports once, then forks a process for each import; see tests/ingest/test_kill.py.
DRIVER = """
import json, os, signal, sys, time
import numpy
import imret.store.parquet, imret.store.embedded.store

def run(db, file, kill_after_s=None):
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            with imret.store.embedded.store.EdgeStore(db, lock_timeout_s=20) as store:
                imret.store.parquet.import_collection(file, store, "photos", replace=True)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return time.monotonic() - started, status

for line in sys.stdin:
    print(json.dumps(run(**json.loads(line))), flush=True)
"""


def test_a_kill_9_during_an_import_leaves_the_old_collection_or_the_new_one(folder: Path) -> None:
    with EdgeStore(folder / "made") as store:
        fill(store, "photos", range(2_000))
        expected = everything(store, "photos")
        export_collection(store, "photos", folder / "a.parquet")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )

    def run(**options: object) -> tuple[float, int]:
        assert driver.stdin is not None
        assert driver.stdout is not None
        driver.stdin.write(
            json.dumps({"db": str(folder / "db"), "file": str(folder / "a.parquet"), **options})
        )
        driver.stdin.write("\n")
        driver.stdin.flush()
        seconds, status = json.loads(driver.stdout.readline())
        return seconds, status

    try:
        undisturbed_s, status = run()
        assert status == 0
        rng = random.Random(0)
        n_killed = 0
        for _ in range(4):
            with EdgeStore(folder / "db", lock_timeout_s=20) as store:
                store.drop("photos")
                fill(store, "photos", range(5_000, 5_020))
            moment = rng.uniform(0.1, undisturbed_s)
            _, status = run(kill_after_s=moment)
            n_killed += status == 9
            with EdgeStore(folder / "db", lock_timeout_s=20) as store:
                assert len(everything(store, "photos")) in (20, 2_000), f"after a kill at {moment:.3f} s"
            _, status = run()
            assert status == 0, f"the import after a kill at {moment:.3f} s failed"
            with EdgeStore(folder / "db", lock_timeout_s=20) as store:
                found = everything(store, "photos")
                assert store.staged_versions("photos") == []
            assert typed(found) == typed(expected)
            np.testing.assert_allclose(vectors_of(found), vectors_of(expected), rtol=0, atol=2e-7)
        assert n_killed >= 2, "the kills came too late to mean anything"
    finally:
        driver.kill()
        driver.communicate()


@pytest.mark.parametrize("live", [None, MODEL, OTHER_MODEL])
def test_an_import_to_a_server_that_is_cut_short_is_made_again(
    live: Identity | None, server: Store, embedded: Store, folder: Path, name: str
) -> None:
    fill(embedded, "photos", range(3_000))
    export_collection(embedded, "photos", folder / "a.parquet")
    if live is not None:
        fill(server, name, range(5_000, 5_020), live)
    with closing(server.create_staging(name, MODEL)) as left:  # of another attempt, with more in it
        left.upsert([str(uuid.UUID(int=2**100))], np.ones((1, DIM), np.float32), [{"category": "left"}])

    for stop_after in (3_500, 5_999):  # 3,000 are verified first
        done = [0]

        def stop(n: int, done: list[int] = done, stop_after: int = stop_after) -> None:
            done[0] += n
            if done[0] > stop_after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            import_collection(folder / "a.parquet", server, name, replace=True, on_points=stop)
        assert server.live(name) == live
        if live is not None:
            assert len(everything(server, name)) == 20
    import_collection(folder / "a.parquet", server, name, replace=True)
    assert typed(everything(server, name)) == typed(everything(embedded, "photos"))
    assert server.staged_versions(name) == []


def test_points_that_another_program_stores_meanwhile_are_noticed(
    server: Any, folder: Path, name: str
) -> None:
    fill(server, name, range(10))
    export_collection(server, name, folder / "a.parquet")
    server.drop(name)
    opened = []

    def intrude(stage: str) -> None:
        opened.append(stage)

    def also(n: int) -> None:
        if "store" in opened:
            point = models.PointStruct(id=str(uuid.UUID(int=2**100)), vector=[1.0] * DIM, payload={})
            for physical in server._versions(name):  # none of imret's own would fill this one
                server._client.upsert(physical, [point], wait=True)

    with pytest.raises(StoreError, match="holds 11 of the 10 points"):
        import_collection(folder / "a.parquet", server, name, on_points=also, on_stage=intrude)
    assert server.live(name) is None


MEMORY = """
import json, sys, uuid
import numpy as np
from imret.store import parquet as transfer
from imret.store import Identity
from imret.store.embedded.store import EdgeStore

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

def peak_mb(action):
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = status("VmRSS")
    action()
    return (status("VmHWM") - before) / 1024

transfer.ROW_GROUP_BYTES = 1 << 20
folder, n, dim = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = Identity("m", "a1" * 32, dim)
rng = np.random.default_rng(0)
with EdgeStore(folder + "/db", index_from_kb=10**9) as store:  # no index is built, which takes time
    for name, n_points in (("few", 2_000), ("many", n)):
        opened = store.open_version(name, model)
        for start in range(0, n_points, 1_000):
            ids = [str(uuid.UUID(int=i + 1)) for i in range(start, start + 1_000)]
            opened.upsert(ids, rng.standard_normal((1_000, dim), np.float32), [{"path": one} for one in ids])
        opened.close()
        store.promote(name, model)
    peaks = {}
    for name in ("few", "many"):  # the first also loads what is loaded once
        file = f"{folder}/{name}.parquet"
        peaks[f"export {name}"] = peak_mb(lambda: transfer.export_collection(store, name, file))
        peaks[f"import {name}"] = peak_mb(lambda: transfer.import_collection(file, store, name + "-again"))
print(json.dumps(peaks))
"""


def test_memory_stays_at_one_row_group(folder: Path) -> None:
    n, dim = 20_000, 256
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder), str(n), str(dim)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert (folder / "many.parquet").stat().st_size > 20_000_000
    peaks = json.loads(done.stdout)
    assert peaks["export many"] < 12, peaks
    assert peaks["import many"] < 12, peaks
