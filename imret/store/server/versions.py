"""What a version of a collection is called on a server, what its metadata says, and which alias it gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdrant_client import QdrantClient, models

from imret.errors import StoreError
from imret.store.filter import DATETIME_FIELDS, INDEXED_FIELDS, INTEGER_FIELDS
from imret.store.server.connection import Connection
from imret.store.types import EF_CONSTRUCT, Identity, M

FORMAT = 1


def note_of(name: str, identity: Identity, *, renamed_to: str = "") -> dict[str, Any]:
    """Return the metadata of a version; of two names, during a rename, the one that is its alias counts."""
    return {
        "imret": {
            "format": FORMAT,
            "collection": name,
            "renamed_to": renamed_to,  # always there: Qdrant merges metadata, so an absent key would stay
            "model": identity.model,
            "fingerprint": identity.fingerprint,
            "dim": identity.dim,
        }
    }


def of_encoder(
    versions: Mapping[str, Identity], identity: Identity, live: str | None, *, staged: bool
) -> list[str]:
    """Return the versions of an encoder that a caller may mean: the live one, or those beside it."""
    same = [physical for physical, stored in versions.items() if stored.version == identity.version]
    if staged:
        return [physical for physical in same if physical != live]
    return [live] if live is not None and live in same else same


def create_alias(name: str, physical: str) -> models.CreateAliasOperation:
    """Return the change that gives a collection of Qdrant's an alias."""
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=physical, alias_name=name)
    )


def delete_alias(name: str) -> models.DeleteAliasOperation:
    """Return the change that takes an alias away."""
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))


def foreign(address: str, name: str, physical: str) -> StoreError:
    """Return the error for a name that is taken by something that imret did not make."""
    what = "a collection" if name == physical else f"an alias or version ({physical!r})"
    return StoreError(
        f"the Qdrant at {address} has {what} named {name!r} that imret did not make; it is left "
        "alone. Use another name: --collection NAME"
    )


def create_version(client: QdrantClient, physical: str, dim: int, metadata: dict[str, Any]) -> bool:
    """Make the Qdrant collection of a version."""
    return client.create_collection(
        physical,
        vectors_config=models.VectorParams(size=dim, distance=models.Distance.COSINE),
        hnsw_config=models.HnswConfigDiff(m=M, ef_construct=EF_CONSTRUCT),
        quantization_config=models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(
                type=models.ScalarType.INT8, quantile=0.99, always_ram=True
            )
        ),
        metadata=metadata,
    )


def index_payload(connection: Connection, physical: str) -> None:
    """Make the payload indexes that a version lacks: all of a new one, some of an old one."""
    info = connection.request("describe a collection", lambda: connection.client.get_collection(physical))
    for field in INDEXED_FIELDS:
        if field not in info.payload_schema:
            _create_index(connection, physical, field)


def _create_index(connection: Connection, physical: str, field: str) -> None:
    kind = models.PayloadSchemaType.KEYWORD
    if field in INTEGER_FIELDS:
        kind = models.PayloadSchemaType.INTEGER
    elif field in DATETIME_FIELDS:
        kind = models.PayloadSchemaType.DATETIME
    connection.request(
        f"index {field!r}",
        lambda: connection.client.create_payload_index(physical, field, field_schema=kind, wait=True),
    )
