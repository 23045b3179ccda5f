"""What a version of a collection is called on a server, what its metadata says, and which alias it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qdrant_client import models

from imret.errors import StoreError, StoreUnavailable
from imret.store.server.connection import Connection
from imret.store.types import Identity

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


def move_alias(
    connection: Connection, read: Callable[[], Mapping[str, str]], old: str, new: str, physical: str
) -> None:
    """Give a version another alias in one step.

    Args:
        connection: To the server.
        read: Returns all aliases, each with its version.
        old: The alias that it has.
        new: The one that it gets.
        physical: The version.
    """
    steps: list[models.AliasOperations] = [delete_alias(old), create_alias(new, physical)]
    try:
        connection.request("rename it", lambda: connection.client.update_collection_aliases(steps))
    except StoreUnavailable:
        raise
    except StoreError:
        aliases = read()
        if aliases.get(new) != physical or old in aliases:
            raise
        # an earlier try got through though its answer did not


def not_made_by_imret(name: str, physical: str, address: str) -> StoreError:
    """Return the error for a name that something has which imret did not make."""
    what = "a collection" if name == physical else f"an alias or version ({physical!r})"
    return StoreError(
        f"the Qdrant at {address} has {what} named {name!r} that imret did not make; it is left "
        "alone. Use another name: --collection NAME"
    )


def keeps_no_metadata(server_version: str, address: str) -> StoreError:
    """Return the error for a server that is too old to say whose a collection is."""
    return StoreError(
        f"the Qdrant {server_version} at {address} keeps no collection metadata. Qdrant 1.16 or newer is "
        "needed: docker compose up qdrant"
    )
