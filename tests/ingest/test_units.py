"""Sources by units in one process: what is done is not opened, and the collection is what it is without."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from imret import Encoder
from imret.cli.main import cli
from imret.errors import StoreUnavailable
from imret.store import Store
from imret.store.embedded.store import EdgeStore
from imret.store.ledger import MOST_ATTEMPTS, UnitLine
from ingest.pipeline import Run, ingest
from ingest.report import Report
from ingest.shards import ShardSource
from ingest.sources import FolderSource, Unit
from ingest.unit_work import UnitResult, UnitTask, give_back
from ingest.units import ByUnits, states_of
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture
from tests.fakes.tar_shards import make_unreadable, write_shard, write_shards


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with EdgeStore(tmp_path / "db") as opened:
        yield opened


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", 3, each=6)


def take(store: Store, shards: Path, encoder: Encoder, **options: Any) -> Report:
    only = options.pop("only", None)
    return ingest(store, [ShardSource(str(shards), only=only)], encoder=encoder, **options)


def stored(store: Store) -> dict[str, dict[str, Any]]:
    with closing(store.open("photos")) as opened:
        return {point.payload["path"]: point.payload for points in opened.scan() for point in points}


def line_of(store: Store, shards: Path, unit: str) -> UnitLine:
    version = store.version("photos")
    assert version is not None
    return store.ledger("photos", version).get(str(shards), [unit])[unit]


def put(store: Store, line: UnitLine) -> None:
    version = store.version("photos")
    assert version is not None
    store.ledger("photos", version).put([line])


def test_what_is_done_is_not_opened_again(store: Store, shards: Path, encoder: Encoder) -> None:
    first = take(store, shards, encoder)
    assert (first.added, first.units) == (18, {"ingested": 3})
    assert line_of(store, shards, "00001.tar").points == 6
    for file in shards.iterdir():
        make_unreadable(file)
    second = take(store, shards, encoder)
    assert (second.unchanged, second.encoded, second.units) == (18, 0, {"done before": 3})
    assert (second.skipped, second.failed_units) == ([], [])


def test_a_changed_shard_alone_is_opened_and_what_it_no_longer_holds_goes_with_prune(
    store: Store, shards: Path, encoder: Encoder
) -> None:
    take(store, shards, encoder)
    write_shard(shards / "00001.tar", [6, 7, 8, 9, 100])
    report = take(store, shards, encoder)
    assert report.units == {"ingested": 1, "done before": 2}
    assert (report.added, report.encoded, report.removed, report.missing) == (1, 1, 0, 2)
    assert line_of(store, shards, "00001.tar").missing == 2
    report = take(store, shards, encoder)
    assert (report.units, report.missing) == ({"done before": 3}, 2)
    report = take(store, shards, encoder, prune=True)
    assert (report.units, report.removed, report.missing) == ({"ingested": 1, "done before": 2}, 2, 0)
    assert {path for path in stored(store) if path.startswith("00001.tar/")} == {
        f"00001.tar/{seed:06}.png" for seed in (6, 7, 8, 9, 100)
    }
    assert take(store, shards, encoder).units == {"done before": 3}


def test_a_shard_that_ends_too_early_loses_no_picture_that_is_stored(
    store: Store, shards: Path, encoder: Encoder
) -> None:
    take(store, shards, encoder)
    file = shards / "00001.tar"
    file.write_bytes(file.read_bytes()[:2_000])
    report = take(store, shards, encoder)
    assert len(stored(store)) == 18
    assert (report.removed, sum(one.images for one in report.out_of_reach) > 0) == (0, True)
    assert report.n_skipped + len(report.failed_units) == 1


def test_without_the_ledger_the_result_is_the_same(store: Store, shards: Path, encoder: Encoder) -> None:
    take(store, shards, encoder)
    before = stored(store)
    version = store.version("photos")
    assert version is not None
    store.ledger("photos", version).forget(str(shards))
    report = take(store, shards, encoder)
    assert (report.unchanged, report.encoded, report.units) == (18, 0, {"ingested": 3})
    assert stored(store) == before


def test_a_ledger_that_promises_more_than_is_stored_is_not_believed(
    store: Store, shards: Path, encoder: Encoder
) -> None:
    take(store, shards, encoder)
    with closing(store.open("photos")) as opened:
        opened.delete([next(opened.scan())[0].id])
    report = take(store, shards, encoder)
    assert (report.added, report.unchanged, report.units) == (1, 17, {"ingested": 3})
    assert any("fewer pictures" in note for note in report.notes)
    assert take(store, shards, encoder).units == {"done before": 3}


def test_all_units_are_looked_into_where_that_is_asked(store: Store, shards: Path, encoder: Encoder) -> None:
    take(store, shards, encoder)
    report = take(store, shards, encoder, by_units=ByUnits(store, check_units=True))
    assert (report.unchanged, report.units) == (18, {"ingested": 3})


def test_a_shard_that_is_gone_is_missing_until_prune_removes_it(
    store: Store, shards: Path, encoder: Encoder
) -> None:
    take(store, shards, encoder)
    (shards / "00002.tar").unlink()
    report = take(store, shards, encoder)
    assert (report.missing, report.removed, len(stored(store))) == (6, 0, 18)
    report = take(store, shards, encoder, prune=True)
    assert (report.missing, report.removed, len(stored(store))) == (0, 6, 12)


def test_prune_leaves_the_shards_alone_that_were_not_named(
    store: Store, shards: Path, encoder: Encoder
) -> None:
    take(store, shards, encoder)
    report = take(store, shards, encoder, prune=True, only={"00000.tar"})
    assert (report.removed, report.missing, len(stored(store))) == (0, 0, 18)


def test_a_unit_that_has_ended_its_process_three_times_is_left_out_and_said(
    store: Store, shards: Path, encoder: Encoder
) -> None:
    take(store, shards, encoder)
    write_shard(shards / "00001.tar", range(200, 206))
    digest = next(unit.digest for unit in ShardSource(str(shards)).units() if unit.name == "00001.tar")
    put(
        store,
        replace(line_of(store, shards, "00001.tar"), attempted=digest, attempts=MOST_ATTEMPTS),
    )
    report = take(store, shards, encoder)
    assert report.units == {"done before": 2, "failed": 1}
    assert report.failed_units[0]["unit"] == f"{shards}/00001.tar"
    assert "failed 3 times" in report.failed_units[0]["reason"]
    report = take(store, shards, encoder, by_units=ByUnits(store, check_units=True))
    assert (report.added, report.failed_units) == (6, [])
    assert line_of(store, shards, "00001.tar").attempts == 0


def test_an_attempt_is_given_back_once(store: Store, shards: Path, encoder: Encoder) -> None:
    take(store, shards, encoder)
    source = ShardSource(str(shards))
    unit = next(source.units())
    put(store, replace(line_of(store, shards, unit.name), attempted=unit.digest, attempts=1))
    version = store.version("photos")
    assert version is not None
    for _ in range(2):
        give_back(store.ledger("photos", version), UnitTask(source, unit))
        assert line_of(store, shards, unit.name).attempts == 0


def test_a_run_that_is_stopped_counts_no_attempt(
    store: Store, shards: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(store, shards, encoder)
    write_shard(shards / "00001.tar", range(200, 206))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "store_all", stop)
        with pytest.raises(KeyboardInterrupt):
            take(store, shards, encoder)
    line = line_of(store, shards, "00001.tar")
    assert (line.attempts, line.attempted != line.digest) == (0, True)
    assert take(store, shards, encoder).added == 6


def test_what_could_not_be_taken_is_told_by_the_next_run_as_well(
    store: Store, shards: Path, encoder: Encoder
) -> None:
    bad = {f"bad{i:02}.png": b"no picture" for i in range(25)}
    write_shard(shards / "00001.tar", range(6), extra=bad)
    for _ in range(2):
        report = take(store, shards, encoder)
        assert (report.n_skipped, len(report.skipped)) == (25, 20)
        assert report.as_dict()["skipped"] == 25
    assert line_of(store, shards, "00001.tar").n_skipped == 25


def test_slices_of_a_folder_give_what_the_folder_gives(
    store: Store, tmp_path: Path, encoder: Encoder
) -> None:
    for seed in range(12):
        draw_picture(tmp_path / "photos" / ("a", "b")[seed % 2] / f"{seed}.png", seed=seed)
    folder = FolderSource(tmp_path / "photos")
    ingest(store, [folder], encoder=encoder, collection="plain")

    class Here(ByUnits):
        def takes(self, source: object) -> bool:
            return True

    report = ingest(store, [folder], encoder=encoder, by_units=Here(store))
    assert (report.added, report.units) == (12, {"ingested": 1})
    with closing(store.open("plain")) as plain, closing(store.open("photos")) as sliced:
        ids = [point.id for points in plain.scan() for point in points]
        assert plain.get(ids) == sliced.get(ids)
        assert sliced.count() == 12
    (tmp_path / "photos" / "a" / "0.png").unlink()
    report = ingest(store, [folder], encoder=encoder, by_units=Here(store))
    assert (report.missing, report.unchanged) == (1, 11)
    report = ingest(store, [folder], encoder=encoder, by_units=Here(store), prune=True)
    assert (report.removed, report.units) == (1, {"done before": 1})


class Away:
    """Hands to whom the store does not answer."""

    def __init__(self, run: Run, good: int) -> None:
        self.run, self.good, self.n = run, good, 0

    def results(self, tasks: Iterator[UnitTask]) -> Generator[UnitResult, None, None]:
        for task in tasks:
            self.n += 1
            line, report = UnitLine(task.root, task.name), self.run.counters.report.blank()
            fails = self.n > self.good
            yield UnitResult(task, line, report, "store" if fails else "", "no answer" if fails else "")


def test_a_store_that_fails_ten_units_in_a_row_ends_the_run_with_what_it_said(
    store: Store, tmp_path: Path, encoder: Encoder
) -> None:
    shards = write_shards(tmp_path / "many", 12, each=1)
    made: list[Away] = []

    def hands(run: Run) -> Away:
        made.append(Away(run, good=4))
        return made[-1]

    with pytest.raises(StoreUnavailable, match=r"10 units in a row .* no answer"):
        take(store, shards, encoder, by_units=ByUnits(store, hands=hands))
    assert made[0].n == 14  # a unit that failed comes again when the others are through


def test_a_unit_of_which_the_store_says_no_again_and_again_is_given_up(
    store: Store, tmp_path: Path, encoder: Encoder
) -> None:
    shards = write_shards(tmp_path / "few", 2, each=1)
    report = take(store, shards, encoder, by_units=ByUnits(store, hands=lambda run: Away(run, good=1)))
    assert report.units == {"ingested": 1, "failed": 1}
    assert report.failed_units[0]["reason"] == "no answer"


def test_the_state_of_each_unit_is_shown(
    store: Store, shards: Path, encoder: Encoder, tmp_path: Path
) -> None:
    take(store, shards, encoder)
    write_shard(shards / "00001.tar", range(200, 206))
    write_shard(shards / "00003.tar", range(300, 301))
    write_shard(shards / "00004.tar", range(400, 401))
    digests = {unit.name: unit.digest for unit in ShardSource(str(shards)).units()}
    put(
        store,
        UnitLine(str(shards), "00004.tar", attempted=digests["00004.tar"], error="ends too early"),
    )
    version = store.version("photos")
    assert version is not None
    found = states_of(store.ledger("photos", version), ShardSource(str(shards)))
    states = {unit.name: "never begun" if line is None else line.state(unit.digest) for unit, line in found}
    expected = {
        "00000.tar": "done",
        "00001.tar": "changed",
        "00002.tar": "done",
        "00003.tar": "never begun",
        "00004.tar": "failed",
    }
    assert states == expected
    store.close()
    command = ["units", str(shards), "--db", str(tmp_path / "db")]
    shown = CliRunner().invoke(cli, command)
    assert shown.exit_code == 0, shown.output
    assert [line.split("  ")[0] for line in shown.stdout.splitlines()] == list(expected.values())
    assert "(ends too early)" in shown.stdout
    assert "5 units: 2 done, 1 changed, 1 failed, 1 never begun" in shown.stderr
    shown = CliRunner().invoke(cli, [*command, "--state", "failed", "--format", "json"])
    (unit,) = map(json.loads, shown.stdout.splitlines())
    assert (unit["unit"], unit["state"], unit["error"]) == ("00004.tar", "failed", "ends too early")


def test_strict_ends_with_3_where_a_unit_failed(
    store: Store, shards: Path, encoder: Encoder, tmp_path: Path, random_model: Path
) -> None:
    take(store, shards, encoder)
    write_shard(shards / "00003.tar", range(300, 301))
    digest = {unit.name: unit.digest for unit in ShardSource(str(shards)).units()}["00003.tar"]
    put(store, UnitLine(str(shards), "00003.tar", attempted=digest, attempts=MOST_ATTEMPTS))
    store.close()
    command = ["ingest", str(shards), "--db", str(tmp_path / "db"), "--model", str(random_model)]
    assert CliRunner().invoke(cli, command).exit_code == 0
    told = CliRunner().invoke(cli, [*command, "--strict"])
    assert told.exit_code == 3
    assert f"failed {shards}/00003.tar: failed 3 times" in told.stderr
    assert "units: 3 done before, 1 failed" in told.stderr


def test_pictures_that_could_not_be_read_leave_the_unit_to_the_next_run(
    store: Store, tmp_path: Path, encoder: Encoder
) -> None:
    for seed in range(4):
        draw_picture(tmp_path / "photos" / f"{seed}.png", seed=seed)
    folder = FolderSource(tmp_path / "photos")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    (unit,) = folder.units()
    (tmp_path / "photos" / "0.png").rename(tmp_path / "0.png")  # after it was listed

    class Listed(FolderSource):
        def units(self) -> Iterator[Unit]:
            return iter([unit])

    class Here(ByUnits):
        def takes(self, source: object) -> bool:
            return True

    listed = Listed(tmp_path / "photos")
    report = ingest(store, [listed], encoder=encoder, by_units=Here(store))
    assert (report.added, report.n_skipped, report.units) == (3, 2, {"failed": 1})
    assert report.failed_units[0]["reason"] == "1 picture could not be read"
    (tmp_path / "0.png").rename(tmp_path / "photos" / "0.png")
    report = ingest(store, [listed], encoder=encoder, by_units=Here(store))
    assert (report.added, report.n_skipped, report.units) == (1, 1, {"ingested": 1})
    assert ingest(store, [listed], encoder=encoder, by_units=Here(store)).units == {"done before": 1}


def test_a_rebuild_begins_a_ledger_of_its_own(
    store: Store, shards: Path, encoder: Encoder, tmp_path: Path
) -> None:
    take(store, shards, encoder)
    other = Encoder(str(write_random_model(tmp_path / "other", seed=1)), device="cpu", precision="fp32")
    report = take(store, shards, other, rebuild=True)
    assert (report.added, report.units) == (18, {"ingested": 3})
    assert take(store, shards, other).units == {"done before": 3}
