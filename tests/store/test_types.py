"""What an identity and a point id are."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from imret.errors import ModelMismatch
from imret.store.types import Identity, is_point_id

MINE = Identity("ViT-tiny", "a1" * 32, 16)


def require(other: Identity) -> None:
    MINE.require_same(other, subject="collection 'photos'", user="this search uses", advice="Rebuild it.")


def test_the_same_encoder_may_have_another_name() -> None:
    require(MINE)
    require(replace(MINE, model="models/copy"))


def test_another_encoder_is_refused_with_both_and_the_advice() -> None:
    with pytest.raises(ModelMismatch) as caught:
        require(Identity("ViT-tuned", "b2" * 32, 16))
    assert str(caught.value) == (
        "collection 'photos' was built with 'ViT-tiny' (a1a1a1a1), "
        "but this search uses 'ViT-tuned' (b2b2b2b2).\nRebuild it."
    )


@pytest.mark.parametrize("other", [replace(MINE, dim=17), replace(MINE, fingerprint="a1" * 31 + "00")])
def test_encoders_that_begin_alike_are_told_apart(other: Identity) -> None:
    with pytest.raises(ModelMismatch) as caught:
        require(other)
    assert f"({MINE.fingerprint}, 16 dimensions)" in str(caught.value)
    assert f"({other.fingerprint}, {other.dim} dimensions)" in str(caught.value)


def test_a_point_id_is_a_uuid_in_canonical_form() -> None:
    canonical = str(uuid.UUID(int=0xABC))
    assert is_point_id(canonical)
    for text in (
        "",
        canonical.upper(),
        canonical.replace("-", ""),
        f"{{{canonical}}}",
        f"urn:uuid:{canonical}",
    ):
        assert not is_point_id(text)
    for value in (None, 1, uuid.UUID(int=1), canonical.encode()):
        assert not is_point_id(value)
