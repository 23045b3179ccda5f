"""What clients of `imret serve` are told of an error: the sentence, without where things lie."""

from __future__ import annotations

import pytest

from imret.errors import DataError, ImageError, ImretError, ModelError, StoreError, StoreUnavailable
from imret.web.errors import told


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("cannot read '/srv/models/x.pt'", "cannot read 'x.pt'"),
        ("cannot read /srv/models/x.pt.", "cannot read x.pt."),
        ("the model 'ViT-L-14:/srv/models/x.pt' has changed", "the model 'ViT-L-14:x.pt' has changed"),
        ("the model ViT-L-14:/srv/models/x.pt has changed", "the model ViT-L-14:x.pt has changed"),
        ("built with 'local-dir:/srv/m'", "built with 'local-dir:m'"),
        ("built with 'local-dir:/srv/my models/fungi'", "built with 'local-dir:fungi'"),
        ("error:/qdrant/storage/collections/v1/wal", "error:wal"),
        ("no file file:///srv/m/x.pt", "no file file://x.pt"),
        ("'a/b.jpg' and ./c/d.jpg are as they were", "'a/b.jpg' and ./c/d.jpg are as they were"),
    ],
)
@pytest.mark.parametrize("kind", [ImageError, ModelError, StoreError, DataError])
def test_of_a_path_the_last_part_is_told(kind: type[ImretError], text: str, public: str) -> None:
    assert told(kind(text)) == public


@pytest.mark.parametrize(
    "server",
    [
        "http://10.0.0.3:6335/collections",
        "https://qdrant.internal",
        "10.0.0.3",
        "10.0.0.3:6335",
        "qdrant:6333",
        "localhost:80",
        "qdrant-2.headless:6335",
        "node.example.org:443",
        "::1",
        "fe80::1%eth0",
        "2001:db8::5",
        "[2001:db8::5]:6333",
        "http://[2001:db8::5]:6333/",
        "::ffff:10.0.0.3",
        "tcp://10.0.0.3:6335",
    ],
)
@pytest.mark.parametrize("wrapped", ["no answer from {}.", "'{}' is away", "tried ({}), then {}: refused"])
def test_no_kind_of_error_tells_where_a_server_is(server: str, wrapped: str) -> None:
    text = wrapped.format(server, server)
    for kind in (ImageError, ModelError, StoreError, StoreUnavailable, DataError):
        answer = wrapped.format(*2 * ["the store" if issubclass(kind, StoreError) else "a server"])
        assert told(kind(text)) == answer


@pytest.mark.parametrize(
    "text",
    [
        "'2024-13-01T10:20:30' is no date",
        "it was taken at 10:20:30, 1:2 of its size",
        "'width:1024' is no condition; write width>=1024",
        "core::panicking::panic",
        "the model 'ViT-B-32/laion2b_s34b_b79k' (3f9c1a2e): 512 numbers, not 1,024",
        "the captions: line 12:3 has 4 cells",
    ],
)
def test_what_only_looks_like_an_address_is_told(text: str) -> None:
    assert told(DataError(text)) == text


def test_a_message_that_is_meant_for_clients_is_told_as_it_is() -> None:
    error = ImageError("its host 'nas' is at 10.0.0.3", public="cannot fetch http://nas/a.jpg")
    assert told(error) == "cannot fetch http://nas/a.jpg"
