"""The ledger of units, whichever engine keeps the points: kept, read in batches, gone with its version."""

from __future__ import annotations

import threading
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imret.sources.stored import forget_source, rename_source
from imret.store import Store
from imret.store.embedded.ledger import FILE
from imret.store.embedded.store import EdgeStore
from imret.store.ledger import MOST_ATTEMPTS, UnitLine, counted_reasons, line_of
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS
from tests.store.test_store import IN_MEMORY, MODEL, OTHER_MODEL, name, other_name, store  # noqa: F401  # fixtures

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

LINE = UnitLine(
    source="s3://bucket/photos",
    unit="00012.tar",
    digest="d1",
    points=40,
    skips=({"path": "00012.tar/7.jpg", "reason": "ends early"}, {"path": "ü", "reason": "no picture"}),
    skipped={"ends early": 1, "no picture": 31},
    seconds=1.5,
    imret="0.1.0",
    attempted="d1",
    attempts=0,
)


@pytest.fixture
def version(store: Store, name: str) -> str:  # noqa: F811
    """A live version of a collection of one picture."""
    with closing(store.open_version(name, MODEL)) as opened:
        payload = {"path": "a.jpg", "source": "/photos", "sha256": "00"}
        opened.upsert([str(uuid.uuid4())], np.ones((1, MODEL.dim), np.float32), [payload])
        store.promote(name, MODEL)
        return opened.version


def test_lines_are_what_was_put_there_by_source_and_unit(store: Store, name: str, version: str) -> None:  # noqa: F811
    ledger = store.ledger(name, version)
    assert ledger.get(LINE.source, ["00012.tar"]) == {}
    assert list(ledger.scan(LINE.source)) == []
    ledger.forget(LINE.source)
    other = replace(LINE, source="/photos", digest="d2")
    ledger.put([LINE, other])
    assert ledger.get(LINE.source, ["00012.tar", "00013.tar"]) == {"00012.tar": LINE}
    assert ledger.get("/photos", ["00012.tar"]) == {"00012.tar": other}
    ledger.put([replace(LINE, digest="d3", skips=(), skipped={})])
    assert ledger.get(LINE.source, ["00012.tar"])["00012.tar"].digest == "d3"
    ledger.forget(LINE.source, ["00012.tar", "none"])
    assert ledger.get(LINE.source, ["00012.tar"]) == {}
    assert list(ledger.scan("/photos")) == [[other]]


def test_more_lines_than_a_batch_are_read_once_each(store: Store, name: str, version: str) -> None:  # noqa: F811
    ledger = store.ledger(name, version)
    lines = [replace(LINE, unit=f"{i:05}.tar", skips=(), points=i) for i in range(1_300)]
    ledger.put(lines)
    ledger.put([replace(LINE, source="/other")])
    read = [line for batch in ledger.scan(LINE.source) for line in batch]
    assert sorted(read, key=lambda line: line.unit) == lines
    assert len(ledger.get(LINE.source, [line.unit for line in lines])) == 1_300
    ledger.forget(LINE.source)
    assert list(ledger.scan(LINE.source)) == []
    assert len(list(ledger.scan("/other"))) == 1


def test_it_is_no_collection_and_no_rest_of_one(store: Store, name: str, version: str) -> None:  # noqa: F811
    store.ledger(name, version).put([LINE])
    assert [one for one in store.collections() if name in one] == [name]
    assert [one for one in store.incomplete() if name in one] == []
    assert store.staged_versions(name) == []


def test_it_goes_with_its_collection_to_another_name(
    store: Store,  # noqa: F811
    name: str,  # noqa: F811
    other_name: str,  # noqa: F811
    version: str,
) -> None:
    store.ledger(name, version).put([LINE])
    store.rename(name, other_name)
    live = store.version(other_name)
    assert live is not None
    assert store.ledger(other_name, live).get(LINE.source, [LINE.unit]) == {LINE.unit: LINE}


def test_a_version_that_takes_the_place_has_its_own(store: Store, name: str, version: str) -> None:  # noqa: F811
    store.ledger(name, version).put([LINE])
    newer = replace(LINE, digest="newer")
    with closing(store.open_version(name, OTHER_MODEL)) as opened:
        ledger = store.ledger(name, opened.version)
        assert ledger.get(LINE.source, [LINE.unit]) == {}
        ledger.put([newer])
    store.promote(name, OTHER_MODEL)
    live = store.version(name)
    assert live is not None
    assert store.ledger(name, live).get(LINE.source, [LINE.unit]) == {LINE.unit: newer}
    assert store.ledger(name, version).get(LINE.source, [LINE.unit]) == {}


def test_it_is_gone_with_its_collection_and_one_of_the_same_name_begins_anew(
    store: Store,  # noqa: F811
    name: str,  # noqa: F811
    version: str,
) -> None:
    store.ledger(name, version).put([LINE])
    store.drop(name)
    with closing(store.open_version(name, MODEL)) as opened:
        assert store.ledger(name, opened.version).get(LINE.source, [LINE.unit]) == {}
    with closing(store.create_staging(name, MODEL)) as staged:
        store.ledger(name, staged.version).put([LINE])
    with closing(store.create_staging(name, MODEL)) as staged:
        assert store.ledger(name, staged.version).get(LINE.source, [LINE.unit]) == {}


def test_what_is_forgotten_or_has_another_place_is_not_known_as_done(
    store: Store,  # noqa: F811
    name: str,  # noqa: F811
    version: str,
) -> None:
    ledger = store.ledger(name, version)
    ledger.put([replace(LINE, source=source) for source in ("/photos", "/elsewhere", "/other")])
    rename_source(store, "/photos", "/elsewhere", collection=name, check=False)
    assert list(ledger.scan("/photos")) == []
    forget_source(store, "/elsewhere", collection=name)
    assert list(ledger.scan("/elsewhere")) == []
    assert len(list(ledger.scan("/other"))) == 1


def test_a_version_that_another_process_has_made_is_joined(store: Store, name: str) -> None:  # noqa: F811
    if store.engine == "embedded" or store.address == IN_MEMORY:
        pytest.skip("needs a store that several programs use")
    with closing(store.create_staging(name, MODEL)) as staged, type(store)(store.address) as other:  # type: ignore[call-arg]
        joined = other.join(name, MODEL, staged.version)
        joined.upsert([str(uuid.uuid4())], np.ones((1, MODEL.dim), np.float32), [{"path": "a.jpg"}])
        joined.close()
        assert staged.count() == 1


def test_writers_at_the_same_time_lose_no_line(store: Store, name: str, version: str) -> None:  # noqa: F811
    if store.address == IN_MEMORY:
        pytest.skip("the in-memory engine has no locks of its own")

    def write(who: int) -> None:
        for i in range(5):
            store.ledger(name, version).put([replace(LINE, unit=f"{who}.{i}")])

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(batch) for batch in store.ledger(name, version).scan(LINE.source)) == 20


def test_an_embedded_ledger_that_is_damaged_is_begun_anew(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db") as embedded, closing(embedded.open_version("photos", MODEL)) as opened:
        ledger = embedded.ledger("photos", opened.version)
        ledger.put([LINE])
        file = tmp_path / "db" / "photos" / opened.version / FILE
        file.write_bytes(b"no database at all" * 100)
        assert ledger.get(LINE.source, [LINE.unit]) == {}
        ledger.put([LINE])
        assert ledger.get(LINE.source, [LINE.unit]) == {LINE.unit: LINE}


def test_the_state_of_a_unit_follows_from_its_digests_and_attempts() -> None:
    assert UnitLine("s", "u").state("d1") == "never begun"
    assert LINE.state("d1") == "done"
    assert LINE.state("d2") == "changed"
    begun = replace(LINE, attempted="d2", attempts=1)
    assert begun.state("d2") == "begun"
    assert replace(begun, attempts=MOST_ATTEMPTS).state("d2") == "failed"
    assert replace(begun, error="truncated").state("d2") == "failed"
    assert (begun.attempts_at("d2"), begun.attempts_at("d3")) == (1, 0)


def test_what_another_program_put_there_is_no_line() -> None:
    assert line_of(LINE.as_dict()) == LINE
    for broken in (None, {}, {**LINE.as_dict(), "points": "many"}, {**LINE.as_dict(), "skips": 3}):
        assert line_of(broken) is None


def test_of_many_reasons_the_rest_is_one() -> None:
    counts = counted_reasons({f"reason {i}": i for i in range(1, 101)})
    assert len(counts) == 51
    assert (counts["reason 100"], counts["other reasons"]) == (100, sum(range(1, 51)))
