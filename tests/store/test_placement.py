"""How a collection is laid out: what may be asked, and what is said where that is not so."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import click
import numpy as np
import pytest

from imret.cli.creation import ALL, creation_options, take_creation
from imret.errors import DataError, StoreError
from imret.store import INDEXED_FIELDS, Creation, Identity, open_store
from imret.store.placement import (
    FIXED,
    IN_MEMORY,
    LINKED,
    MEMORY,
    QUANTIZE,
    candidates,
    check_changeable,
    check_embedded,
    check_same,
    inherited,
    option,
)

MODEL = Identity("ViT-tiny", "a1" * 32, 8)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"shards": 0}, "shards is at least 1, not 0"),
        ({"segment_mb": -5}, "segment_mb is at least 1, not -5"),
        ({"quantize": "bits2"}, "quantize is one of int8, bits4, bits1, binary, not 'bits2'"),
        ({"originals": "pinned"}, "originals is one of cold, cached, not 'pinned'"),
        ({"replicas": 2, "write_consistency": 3}, "write_consistency (3) is at most replicas (2)"),
    ],
)
def test_what_cannot_be_is_refused_with_the_value(asked: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Creation(**asked)  # type: ignore[arg-type]


def test_what_one_leaves_open_is_as_the_other_has_it() -> None:
    asked = Creation(shards=12, quantize="bits4").over(Creation(shards=1, replicas=2))
    assert asked == Creation(shards=12, replicas=2, quantize="bits4")
    assert str(asked) == "12 shards, 2 replicas, bits4"
    assert str(Creation(shards=1, segment_mb=5000, originals="cold")) == (
        "1 shard, segments of 5,000 MB, originals cold"
    )


def test_what_replaces_a_version_is_like_it_where_nothing_else_is_asked() -> None:
    replaced = Creation(shards=12, replicas=1, write_consistency=1, quantize="bits4", originals="cold")
    assert inherited(replaced) == Creation(shards=12, quantize="bits4", originals="cold")
    two = Creation(replicas=2, write_consistency=2)
    assert Creation(replicas=1).over(inherited(two)) == Creation(replicas=1, write_consistency=1)


def test_an_embedded_version_is_made_like_the_one_that_it_replaces(tmp_path: Path) -> None:
    with open_store(tmp_path / "db", creation=Creation(quantize="bits4", originals="cached")) as store:
        store.open_version("p", MODEL).close()
        store.promote("p", MODEL)
    with open_store(tmp_path / "db") as store, closing(store.create_staging("p", MODEL)) as made:
        assert made.creation() == Creation(quantize="bits4", originals="cached", quantized="cached")
    other = Identity("ViT-other", "b2" * 32, 8)
    int8 = Creation(quantize="int8")
    with open_store(tmp_path / "db", creation=int8) as store, closing(store.open_version("p", other)) as made:
        assert made.creation() == int8.over(Creation(originals="cached", quantized="cached"))


def test_the_fewer_bits_the_more_candidates() -> None:
    assert [candidates(Creation(quantize=how)) for how in ("int8", "bits4", "bits1", "binary")] == [
        4,
        4,
        16,
        16,
    ]
    assert candidates(Creation()) == 4


def test_a_collection_that_exists_otherwise_is_refused_with_what_changes_it() -> None:
    existing = Creation(shards=3, replicas=1, quantize="int8")
    check_same(Creation(shards=3), existing, "photos", "http://here")
    with pytest.raises(DataError, match="exists with int8, not bits4") as caught:
        check_same(Creation(quantize="bits4", shards=3), existing, "photos", "http://here")
    assert "imret collections optimize photos --to-current --quantize bits4 --db http://here" in str(
        caught.value
    )
    with pytest.raises(
        DataError, match="exists with 3 shards, 1 replica, not 12 shards, 2 replicas"
    ) as caught:
        check_same(Creation(shards=12, replicas=2), existing, "photos", "http://here")
    assert "imret collections import FILE --replace --shards 12 --replicas 2" in str(caught.value)


def test_an_embedded_store_refuses_what_only_a_server_has(tmp_path: Path) -> None:
    check_embedded(Creation(quantize="bits4", originals="cached"), "db")
    with pytest.raises(StoreError, match="--shards and --replicas cannot apply to the embedded store"):
        open_store(tmp_path / "db", creation=Creation(shards=3, replicas=2))
    assert not (tmp_path / "db").exists()


def test_shards_and_replicas_cannot_be_changed() -> None:
    check_changeable(Creation(quantize="bits4"))
    with pytest.raises(DataError, match="--shards cannot be changed once a collection is made"):
        check_changeable(Creation(shards=3))


def test_the_options_of_the_command_line_are_those_of_python() -> None:
    @click.command()
    @creation_options()
    def command(**options: object) -> None: ...

    choices = {
        parameter.opts[0]: tuple(parameter.type.choices)
        for parameter in command.params
        if isinstance(parameter.type, click.Choice)
    }
    assert choices == {"--quantize": QUANTIZE, "--originals": MEMORY[:2], "--quantized": MEMORY}
    assert tuple(option(name) for name in Creation.__dataclass_fields__) == ALL
    options = {"shards": 3, "quantize": None, "db": "x"}
    assert take_creation(options) == Creation(shards=3)
    assert options == {"db": "x"}
    with pytest.raises(click.UsageError, match="at most replicas"):
        take_creation({"replicas": 1, "write_consistency": 2})


def test_fields_in_memory_and_with_links_are_ones_that_are_indexed() -> None:
    assert {*IN_MEMORY, *LINKED} <= set(INDEXED_FIELDS)
    assert set(FIXED) <= set(Creation.__dataclass_fields__)


@pytest.mark.parametrize("how", QUANTIZE)
def test_an_embedded_collection_is_compressed_as_asked(tmp_path: Path, how: str) -> None:
    asked = Creation(quantize=how, quantized="pinned")  # type: ignore[arg-type]
    with (
        open_store(tmp_path / "db", creation=asked) as store,
        closing(store.open_version("p", MODEL)) as made,
    ):
        store.promote("p", MODEL)
        assert made.creation() == Creation(quantize=how, originals="cold", quantized="pinned")  # type: ignore[arg-type]
    other = Creation(quantize="int8" if how != "int8" else "bits4")
    with (
        open_store(tmp_path / "db", creation=other) as store,
        pytest.raises(DataError, match=f"exists with {how}, not {other.quantize}"),
    ):
        store.open_version("p", MODEL)
    with open_store(tmp_path / "db") as store, closing(store.open("p")) as opened:  # asks for nothing
        assert opened.count() == 0
        assert opened.search(np.ones(8, np.float32), limit=1) == []
