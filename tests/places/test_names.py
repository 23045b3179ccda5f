"""Names of places: URLs in their canonical form, and patterns as a shell expands them."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imret.errors import DataError
from imret.places.names import canonical, expanded, is_url, join, split_last, without_secrets


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket//photos///2024/", "s3://bucket/photos/2024"),
        ("s3a://bucket/photos", "s3://bucket/photos"),
        ("gcs://bucket/photos", "gs://bucket/photos"),
        ("az://container/photos", "az://container/photos"),
        ("s3://KEY:SECRET@bucket/photos?region=eu&endpoint_override=x#part", "s3://bucket/photos"),
    ],
)
def test_a_url_is_stored_without_query_keys_and_idle_slashes(url: str, stored: str) -> None:
    assert is_url(url)
    assert canonical(url) == stored
    assert canonical(stored) == stored


@pytest.mark.parametrize("url", ["https://example.org/a", "ftp://KEY:SECRET@host/a?k=SECRET", "hdfs://x/y"])
def test_a_url_of_another_kind_is_refused_with_what_is_read_and_without_its_keys(url: str) -> None:
    with pytest.raises(DataError, match="s3://, gs://, az://") as refused:
        canonical(url)
    assert "SECRET" not in str(refused.value)


def test_a_url_without_a_bucket_is_refused() -> None:
    with pytest.raises(DataError, match="names no bucket"):
        canonical("s3:///photos")


@pytest.mark.parametrize("path", ["photos", "/photos/a:b", "./s3/x", "C:/photos", "a//b", ""])
def test_a_path_is_no_url(path: str) -> None:
    assert not is_url(path)


def test_urls_are_taken_apart_and_put_together() -> None:
    assert split_last("s3://bucket/a/b.tar") == ("s3://bucket/a", "b.tar")
    assert split_last("s3://bucket") == ("s3://bucket", "")
    assert join("s3://bucket/a", "b/c?.jpg") == "s3://bucket/a/b/c?.jpg"
    assert without_secrets("https://u:p@host/a.jpg?sig=1#x") == "https://host/a.jpg"


@pytest.mark.parametrize(
    "pattern",
    [
        "data/{00000..00012}.tar",
        "{8..11}",
        "{08..11}",
        "{3..1}.tar",
        "{-1..1}",
        "x{a,b,}y{0..1}",
        "plain",
        "{single}",
        "a{}b",
        "{0..9}{a,b}",
    ],
)
def test_a_pattern_stands_for_what_a_shell_makes_of_it(pattern: str) -> None:
    shell = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    )
    assert expanded(pattern) == shell.stdout.removesuffix("\n").split("\n")


@given(st.text(alphabet="ab{},.0129/", max_size=12))
def test_every_pattern_expands_or_says_that_it_is_too_many(pattern: str) -> None:
    try:
        assert expanded(pattern)
    except DataError as error:
        assert "stands for more than" in str(error)  # noqa: PT017


@pytest.mark.parametrize("pattern", ["{0..9999999}", "{0..999}{0..9999}"])
def test_a_pattern_of_too_many_names_is_refused(pattern: str) -> None:
    with pytest.raises(DataError, match="stands for more than 1,000,000 names"):
        expanded(pattern)
