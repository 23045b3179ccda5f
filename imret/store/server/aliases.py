"""Changes of the aliases of a Qdrant server, of which it makes several in one step."""

from __future__ import annotations

from qdrant_client import models


def create_alias(name: str, physical: str) -> models.CreateAliasOperation:
    """Return the change that gives a collection of Qdrant's an alias."""
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=physical, alias_name=name)
    )


def delete_alias(name: str) -> models.DeleteAliasOperation:
    """Return the change that takes an alias away."""
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
