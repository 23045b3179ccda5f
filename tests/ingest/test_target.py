"""Which version of a collection a run fills, where two programs fill one at once."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imret import Encoder, open_store
from imret.errors import ModelMismatch, StoreError
from imret.store import Store
from ingest.target import Target, find_target
from tests.fakes.models import write_random_model

ID = "00000000-0000-0000-0000-000000000001"


@pytest.fixture(scope="module")
def encoders(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Encoder]:
    other = write_random_model(tmp_path_factory.mktemp("models") / "other", seed=1)
    return [Encoder(str(folder), device="cpu", precision="fp32") for folder in (random_model, other)]


def begin(store: Store, encoder: Encoder, *, rebuild: bool = False) -> Target:
    return find_target(store, "photos", encoder, [], taken_over=set(), rebuild=rebuild)


def fill(target: Target) -> None:
    target.version.upsert([ID], np.ones((1, target.version.identity.dim), np.float32), [{"path": "a.jpg"}])


def go_on(target: Target) -> None:
    """What the rest of a run does; a version that went away may show at any of it."""
    fill(target)
    target.go_live()
    target.complete([])


def test_a_first_ingest_binds_the_collection_with_its_first_picture(
    tmp_path: Path, encoders: list[Encoder]
) -> None:
    with open_store(tmp_path / "db") as store, begin(store, encoders[0]) as target:
        assert store.live("photos") is None
        fill(target)
        target.go_live()
        assert store.live("photos") == target.version.identity


def test_of_two_first_ingests_with_different_models_the_later_is_told(
    tmp_path: Path, encoders: list[Encoder]
) -> None:
    with open_store(tmp_path / "db") as store:
        with begin(store, encoders[0]) as first, begin(store, encoders[1]) as second:
            fill(first)
            first.go_live()
            with pytest.raises((ModelMismatch, StoreError)):
                go_on(second)
            first.complete([])
        assert store.live("photos") == first.version.identity
        with closing(store.open("photos")) as kept:
            assert kept.count() == 1


def test_a_first_ingest_that_fails_leaves_what_another_of_its_model_has_stored(
    tmp_path: Path, encoders: list[Encoder]
) -> None:
    with open_store(tmp_path / "db") as store:
        with begin(store, encoders[0]) as other:
            with pytest.raises(KeyboardInterrupt), begin(store, encoders[0]):
                raise KeyboardInterrupt
            fill(other)
            other.go_live()
            other.complete([])
        assert store.live("photos") == other.version.identity


def test_a_run_whose_version_was_replaced_meanwhile_does_not_end_well(
    tmp_path: Path, encoders: list[Encoder]
) -> None:
    with open_store(tmp_path / "db") as store:
        with begin(store, encoders[0]) as target:
            fill(target)
            target.complete([])
        with begin(store, encoders[0]) as late:
            with begin(store, encoders[1], rebuild=True) as rebuilt:
                fill(rebuilt)
                rebuilt.complete([])
            with pytest.raises(StoreError):
                go_on(late)
        assert store.live("photos") == rebuilt.version.identity


def test_a_first_ingest_that_is_late_by_a_moment_does_not_take_the_place_of_a_complete_one(
    tmp_path: Path, encoders: list[Encoder]
) -> None:
    with open_store(tmp_path / "db") as store:
        with begin(store, encoders[0]) as first, begin(store, encoders[1]) as second:
            fill(first)
            fill(second)
            promote = store.promote

            def promote_too_late(*args: Any, **options: Any) -> Any:
                store.promote = promote  # type: ignore[method-assign]
                first.go_live()
                first.complete([])  # and says done
                return promote(*args, **options)

            store.promote = promote_too_late  # type: ignore[method-assign]
            with pytest.raises(ModelMismatch, match="this ingest, which began before there was one, uses"):
                second.go_live()
        assert store.live("photos") == first.version.identity
