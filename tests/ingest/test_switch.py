"""Two commands at work on one collection, one of which switches versions: who said done has lost nothing."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imret import Encoder, open_store
from imret.errors import ChangedMeanwhile, DataError, StoreError
from imret.sources.moved import of_source
from imret.sources.stored import forget_source, rename_source
from imret.store import Identity, Store
from ingest.pipeline import ingest
from ingest.report import Report
from ingest.sources import FolderSource
from tests import ROOT
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]


@pytest.fixture(scope="module")
def models(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [random_model, write_random_model(tmp_path_factory.mktemp("models") / "other", seed=1)]


@pytest.fixture(scope="module")
def encoders(models: list[Path]) -> list[Encoder]:
    return [Encoder(str(folder), device="cpu", precision="fp32") for folder in models]


@pytest.fixture(params=["embedded", "server"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "embedded":
        yield str(tmp_path / "db")
    else:
        with QdrantOverHTTP() as qdrant:
            yield qdrant.url


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw(tmp_path / "photos", range(6))
    return tmp_path / "photos"


def draw(folder: Path, seeds: range) -> None:
    for seed in seeds:
        draw_picture(folder / "fungi" / f"{seed}.png", seed=seed)


def run(address: str, encoder: Encoder, *folders: Path, **options: Any) -> Report:
    with open_store(address, share=True) as store:
        return ingest(store, [FolderSource(folder) for folder in folders], encoder=encoder, **options)


def once(action: Callable[[], object]) -> Callable[[str], None]:
    """Return an `on_stage` that does something when all is stored, and nothing later."""
    left = [action]

    def on_stage(stage: str) -> None:
        if stage == "index" and left:
            left.pop()()

    return on_stage


def live(address: str, encoder: Encoder) -> list[str]:
    """Return the files that the live version holds; their vectors must be those of an encoder."""
    with open_store(address) as store, closing(store.open("photos")) as opened:
        assert opened.identity.fingerprint == encoder.images_fingerprint
        points = [point for batch in opened.scan(vectors=True) for point in batch]
    files = [Path(point.payload["source"], point.payload["path"]) for point in points]
    for file, point in zip(files[:3], points, strict=False):
        if file.exists():
            np.testing.assert_allclose(point.vector, encoder.encode_images([file])[0], atol=1e-5)
    return sorted(str(file) for file in files)


def files_in(*folders: Path) -> list[str]:
    return sorted(str(file) for folder in folders for file in folder.rglob("*.png"))


def imports(address: str, file: Path, **options: Any) -> int:
    from imret.store.parquet import import_collection

    with open_store(address) as store:
        return import_collection(file, store, "photos", **options)


def exports(address: str, file: Path) -> Path:
    from imret.store.parquet import export_collection

    with open_store(address) as store:
        export_collection(store, "photos", file)
    return file


# ---- A rebuild ---------------------------------------------------------------------------------


def test_a_rebuild_catches_up_with_what_was_ingested_meanwhile(
    address: str, photos: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)

    def meanwhile() -> None:
        draw(photos, range(6, 10))
        assert run(address, encoders[0], photos).added == 4

    report = run(address, encoders[1], photos, rebuild=True, on_stage=once(meanwhile))
    assert (report.added, report.encoded, report.unchanged, report.complete) == (10, 10, 0, True)
    assert live(address, encoders[1]) == files_in(photos)


def test_a_rebuild_refuses_to_lose_a_folder_that_was_ingested_meanwhile_and_goes_on_with_it(
    address: str, photos: Path, tmp_path: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    draw(tmp_path / "more", range(20, 24))
    with pytest.raises(DataError, match=r"also holds pictures from \S+more;(.|\n)*imret ingest \S+ \S+more"):
        run(
            address, encoders[1], photos, rebuild=True,
            on_stage=once(lambda: run(address, encoders[0], tmp_path / "more")),
        )  # fmt: skip
    assert live(address, encoders[0]) == files_in(photos, tmp_path / "more")
    report = run(address, encoders[1], photos, tmp_path / "more", rebuild=True)
    assert (report.unchanged, report.encoded) == (6, 4)
    assert live(address, encoders[1]) == files_in(photos, tmp_path / "more")


def test_an_ingest_that_ends_after_the_last_look_of_a_rebuild_makes_it_look_again(
    address: str, photos: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    n_tries = 0
    with open_store(address, share=True) as store:
        promote = store.promote

        def promote_too_late(*args: Any, **options: Any) -> Any:
            nonlocal n_tries
            n_tries += 1
            if n_tries == 1:
                draw(photos, range(6, 8))
                run(address, encoders[0], photos)
            return promote(*args, **options)

        store.promote = promote_too_late  # type: ignore[method-assign]
        ingest(store, [FolderSource(photos)], encoder=encoders[1], rebuild=True)
    assert n_tries == 2
    assert live(address, encoders[1]) == files_in(photos)


def test_an_ingest_whose_version_a_rebuild_replaced_fails_with_what_to_do(
    address: str, photos: Path, tmp_path: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    draw(tmp_path / "more", range(20, 24))

    class Meanwhile(FolderSource):
        looks = 0

        def entries(self) -> Iterator[Any]:
            self.looks += 1
            if self.looks == 3:  # before the first picture is stored: the rebuild cannot know of the folder
                run(address, encoders[1], photos, rebuild=True)
            yield from super().entries()

    with (
        open_store(address, share=True) as store,
        pytest.raises(ChangedMeanwhile, match=r"switched to another version, of '\S+other', by.*again\."),
    ):
        ingest(store, [Meanwhile(tmp_path / "more")], encoder=encoders[0])
    assert live(address, encoders[1]) == files_in(photos)
    assert run(address, encoders[1], tmp_path / "more").added == 4


def test_two_rebuilds_with_different_models_at_once_end_with_one_of_them_whole(
    address: str, photos: Path, tmp_path: Path, encoders: list[Encoder]
) -> None:
    third = Encoder(str(write_random_model(tmp_path / "third", seed=2)), device="cpu", precision="fp32")
    run(address, encoders[0], photos)

    def meanwhile() -> None:
        draw(photos, range(6, 8))
        assert run(address, third, photos, rebuild=True).complete

    assert run(address, encoders[1], photos, rebuild=True, on_stage=once(meanwhile)).complete
    assert live(address, encoders[1]) == files_in(photos)


def test_two_rebuilds_with_one_model_at_once_fill_one_version(
    address: str, photos: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    again = once(lambda: run(address, encoders[1], photos, rebuild=True))
    assert run(address, encoders[1], photos, rebuild=True, on_stage=again).complete
    assert live(address, encoders[1]) == files_in(photos)


def test_a_rebuild_that_takes_a_folder_of_another_for_a_left_over_does_not_lose_it(
    address: str, photos: Path, tmp_path: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    draw(tmp_path / "more", range(20, 24))
    without = once(lambda: run(address, encoders[1], photos, rebuild=True))
    assert run(address, encoders[1], photos, tmp_path / "more", rebuild=True, on_stage=without).complete
    assert live(address, encoders[1]) == files_in(photos, tmp_path / "more")


def test_a_rebuild_removes_nothing_that_another_stores_in_the_same_version_meanwhile(
    address: str, photos: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    identity = Identity(encoders[1].model_id, encoders[1].images_fingerprint, encoders[1].dim)
    with open_store(address) as other:

        def meanwhile() -> None:  # another rebuild, of one more folder, has got so far
            with closing(other.open_version("photos", identity)) as beside:
                payload = {"source": "/more", "path": "a.png", "sha256": "0" * 64}
                beside.upsert([str(uuid.UUID(int=1))], np.ones((1, identity.dim), np.float32), [payload])

        with pytest.raises(ChangedMeanwhile, match=r"with /more, too\. Run this again when it is done\."):
            run(address, encoders[1], photos, rebuild=True, on_stage=once(meanwhile))
        with closing(other.open_version("photos", identity)) as beside:
            assert beside.count(of_source("/more")) == 1
    assert live(address, encoders[0]) == files_in(photos), "the old one is live as before"
    # What such a run left, should it have been killed, is not taken over by one that does not name it.
    assert run(address, encoders[1], photos, rebuild=True).complete
    assert live(address, encoders[1]) == files_in(photos)


def test_a_rebuild_brings_back_no_picture_that_was_pruned_meanwhile(
    address: str, photos: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)

    def meanwhile() -> None:
        (photos / "fungi" / "0.png").unlink()
        assert run(address, encoders[0], photos, prune=True).removed == 1

    run(address, encoders[1], photos, rebuild=True, on_stage=once(meanwhile))
    assert live(address, encoders[1]) == files_in(photos)


# ---- An import ---------------------------------------------------------------------------------


def test_an_import_that_replaces_is_refused_if_something_was_stored_meanwhile(
    address: str, photos: Path, tmp_path: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    file = exports(address, tmp_path / "all.parquet")
    draw(photos, range(6, 8))
    with pytest.raises(
        ChangedMeanwhile, match=r"while this import ran; it stays as it is\. Run it again to rep"
    ):
        imports(address, file, replace=True, on_stage=once(lambda: run(address, encoders[0], photos)))
    assert len(live(address, encoders[0])) == 8
    # One that found all as it was holds nothing up.
    imports(address, file, replace=True, on_stage=once(lambda: run(address, encoders[0], photos)))
    assert len(live(address, encoders[0])) == 6


def test_an_import_that_replaces_is_refused_if_an_ingest_found_what_a_killed_one_stored_meanwhile(
    address: str, photos: Path, tmp_path: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    file = exports(address, tmp_path / "all.parquet")

    def killed(stage: str) -> None:
        if stage == "index":  # when all is stored
            raise KeyboardInterrupt

    def meanwhile() -> None:
        draw(photos, range(6, 8))
        with pytest.raises(KeyboardInterrupt):
            run(address, encoders[0], photos, on_stage=killed)
        assert run(address, encoders[0], photos).unchanged == 8  # "done": so they are to stay

    with pytest.raises(ChangedMeanwhile):
        imports(address, file, replace=True, on_stage=once(meanwhile))
    assert len(live(address, encoders[0])) == 8


def test_an_ingest_whose_version_an_import_replaced_goes_on_in_the_new_one(
    address: str, photos: Path, tmp_path: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    file = exports(address, tmp_path / "all.parquet")
    draw(tmp_path / "more", range(20, 24))
    report = run(
        address, encoders[0], tmp_path / "more", on_stage=once(lambda: imports(address, file, replace=True))
    )
    assert (report.complete, report.added) == (True, 4)
    assert "another command replaced the collection meanwhile" in report.notes[-1]
    assert live(address, encoders[0]) == files_in(photos, tmp_path / "more")


def test_a_merge_into_a_version_that_was_replaced_meanwhile_fails(
    address: str, photos: Path, tmp_path: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    file = exports(address, tmp_path / "all.parquet")

    def meanwhile() -> None:
        imports(address, file, replace=True)

    if not address.startswith("http"):
        pytest.skip("an embedded store has the version locked for as long as the merge has it open")
    with pytest.raises(StoreError, match="another program changed"):
        imports(address, file, merge=True, on_stage=once(meanwhile))
    assert live(address, encoders[0]) == files_in(photos)


# ---- A first ingest ------------------------------------------------------------------------------


def test_of_a_first_ingest_and_an_import_at_once_neither_loses_anything(
    address: str, photos: Path, tmp_path: Path, encoders: list[Encoder]
) -> None:
    run(address, encoders[0], photos)
    file = exports(address, tmp_path / "all.parquet")
    with open_store(address) as store:
        store.drop("photos")
    draw(tmp_path / "more", range(20, 24))
    with pytest.raises(ChangedMeanwhile, match=r"while this import ran; it stays as it is\. Run it again\."):
        imports(address, file, on_stage=once(lambda: run(address, encoders[1], tmp_path / "more")))
    assert live(address, encoders[1]) == files_in(tmp_path / "more")


COMMAND = """
import sys
import uuid
from imret.cli.main import main
main()
"""


def test_of_two_first_ingests_with_different_models_no_one_that_said_done_lost_a_picture(
    photos: Path, tmp_path: Path, models: list[Path], encoders: list[Encoder]
) -> None:
    draw(tmp_path / "more", range(20, 26))
    folders = [photos, tmp_path / "more"]
    for attempt in range(2):
        db = tmp_path / f"db{attempt}"
        running = [
            subprocess.Popen(
                [sys.executable, "-c", COMMAND, "ingest", str(folder), "--model", str(model), "--db", str(db),
                 "--precision", "fp32"],
                cwd=ROOT, stderr=subprocess.PIPE, text=True,
            )
            for folder, model in zip(folders, models, strict=True)
        ]  # fmt: skip
        said = [process.communicate(timeout=300)[1] for process in running]
        done = [i for i, process in enumerate(running) if process.returncode == 0]
        assert done, said
        with open_store(db) as store:
            fingerprint = store.live("photos").fingerprint  # type: ignore[union-attr]
            with closing(store.open("photos")) as opened:
                stored = {point.payload["source"] for batch in opened.scan() for point in batch}
        assert len(done) == 1, said  # they cannot both be in one collection
        assert fingerprint == encoders[done[0]].images_fingerprint
        assert stored == {str(folders[done[0]])}
        (loser,) = {0, 1} - set(done)
        assert "Error: " in said[loser]
        assert "Traceback" not in said[loser]


# ---- Sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [rename_source, forget_source])
def test_a_source_that_is_changed_in_a_version_that_is_replaced_meanwhile_is_no_success(
    address: str, photos: Path, encoders: list[Encoder], change: Callable[..., int]
) -> None:
    run(address, encoders[0], photos)

    def meanwhile(n: int) -> None:
        if not done:
            done.append(True)
            with open_store(address) as other:
                switch_to_empty(other)

    done: list[bool] = []
    arguments = (photos.parent / "elsewhere",) if change is rename_source else ()
    options = {"check": False} if change is rename_source else {}
    with (
        open_store(address, share=True) as store,
        pytest.raises(StoreError, match=r"has changed the collection|replaced or dropped"),
    ):
        change(store, photos, *arguments, on_points=meanwhile, **options)


def switch_to_empty(store: Store) -> None:
    identity = store.live("photos")
    assert identity is not None
    with closing(store.create_staging("photos", identity)) as beside:
        pass
    store.promote("photos", identity, version=beside.version)
