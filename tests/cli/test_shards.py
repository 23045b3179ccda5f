"""Commands over pictures in shards and buckets: what they print of a picture, they take for that picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imret.cli.main import cli
from imret.retrieval.results import SearchWarning
from tests.fakes.object_store import Bucket, served_bucket
from tests.fakes.pictures import draw_picture
from tests.fakes.shards import write_tar


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    members = {
        f"{category}/{i}.png": draw_picture(tmp_path / "drawn" / f"{i}.png", seed=i).read_bytes()
        for i, category in enumerate(("aves", "aves", "fungi", "fungi"))
    }
    return write_tar(tmp_path / "shards" / "0.tar", {**members, "aves/broken.png": b"no picture"})


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, shard: Path) -> Iterator[Bucket]:
    with served_bucket(monkeypatch) as bucket:
        bucket.put("shards/0.tar", shard.read_bytes())
        bucket.put("shards/own.png", (shard.parents[1] / "drawn" / "0.png").read_bytes())
        yield bucket


def test_what_is_found_in_a_shard_is_shown_copied_and_asked_with(
    tmp_path: Path, shard: Path, bucket: Bucket, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, far = ("--db", tmp_path / "db"), f"s3://{bucket.name}/shards"
    for source in (shard.parent, f"{far}/0.tar"):
        done = run("ingest", source, *db, "--model", random_model, "--device", "cpu")
        assert done.exit_code == 0, done.output
    found = run("search", "owl", *db, "--format", "paths", "--limit", 20)
    paths = found.stdout.splitlines()
    names = [f"aves/{i}.png" for i in (0, 1)] + [f"fungi/{i}.png" for i in (2, 3)]
    assert sorted(paths) == sorted(f"{root}/0.tar/{name}" for root in (shard.parent, far) for name in names)
    for path in paths:
        alike = run("similar", path, *db, "--format", "json", "--include-self", "--limit", 1)
        assert alike.exit_code == 0, alike.output
        assert json.loads(alike.stdout)["score"] == pytest.approx(1, abs=1e-4)
    # Each is twice, and both are looked at only where the bucket is named.
    with pytest.warns(SearchWarning, match="were not looked at for duplicates"):
        run("search", "owl", *db, "--unique", "--format", "paths", "--limit", 20)
    monkeypatch.setenv("IMRET_ROOTS", far)
    out, page = tmp_path / "out", tmp_path / "hits.html"
    asked = run(
        "search", "owl", *db, "--unique", "--format", "json", "--limit", 20, "--copy-to", out, "--html", page
    )
    assert asked.exit_code == 0, asked.output
    hits = [json.loads(line) for line in asked.stdout.splitlines()]
    assert sum(hit["folded"] + 1 for hit in hits) == len(paths)
    assert len(list(out.iterdir())) == len(hits) <= 4
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == len(hits)


def test_a_path_that_leads_into_a_shard_and_is_not_stored_says_so(
    tmp_path: Path, shard: Path, random_model: Path
) -> None:
    db = ("--db", tmp_path / "db")
    run("ingest", shard.parent, *db, "--model", random_model, "--device", "cpu")
    for missing in (shard / "aves" / "7.png", "s3://pictures/shards/0.tar/aves/0.png"):
        asked = run("similar", missing, *db)
        assert asked.exit_code == 1
        assert f"has no picture at {str(missing)!r}" in str(asked.exception)


def test_classify_takes_shards_and_urls(
    shard: Path, bucket: Bucket, random_model: Path, tmp_path: Path
) -> None:
    far = f"s3://{bucket.name}/shards"
    names = ["aves/0.png", "aves/1.png", "fungi/2.png", "fungi/3.png"]
    of_shard = [f"/0.tar/{name}" for name in names]
    for argument, expected in (
        (shard, [f"{shard.parent}{one}" for one in of_shard]),
        (f"{far}/0.tar", [far + one for one in of_shard]),
        (f"{far}/own.png", [f"{far}/own.png"]),
        (far, [*(far + one for one in of_shard), f"{far}/own.png"]),
    ):
        done = run(
            *("classify", argument, "--labels", "owl,mushroom", "--format", "json"),
            *("--model", random_model, "--device", "cpu"),
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["path"] for line in lines] == expected, done.output
        is_broken = len(expected) > 1
        assert done.exit_code == is_broken
        assert ("aves/broken.png: " in done.stderr) == is_broken
    for missing, says in (
        (f"{far}/7.png", "nothing is at"),
        ("https://example.org/a.png", "of no store that imret reads"),
        (f"s3://{bucket.name}/nothing", "no pictures below it"),
    ):
        done = run("classify", missing, "--labels", "owl,mushroom", "--model", random_model)
        assert done.exit_code == 1
        assert says in done.stderr
