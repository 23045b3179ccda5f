"""The encoder that a collection belongs to."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from imret.defaults import DEFAULT_MODEL
from imret.errors import ModelMismatch
from imret.store import Collection, Identity, Store

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder
    from imret.models.lazy_encoder import LazyEncoder


def collection_encoder(
    store: Store,
    collection: str,
    *,
    model: str | None = None,
    arch: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    notify: Callable[[str], None] | None = None,
    existing: bool = False,
) -> LazyEncoder:
    """Return an encoder for a collection: the one named, else the collection's own, else the default.

    A text that was asked before needs neither torch nor the model; `LazyEncoder.encoder` loads torch and
    checks the device.

    Args:
        store: An open store.
        collection: Name.
        model: Model name; None for the one the collection keeps.
        arch: Architecture, where the model is a bare checkpoint file.
        device: As for `imret.Encoder`.
        precision: As for `imret.Encoder`.
        notify: Called with a line for the user before anything large is downloaded.
        existing: Whether the collection has to exist: a name that does not is then refused before the
            default model is downloaded for it.

    Raises:
        DataError: If the collection has to exist and does not.
        ModelError: If the model cannot be found.
    """
    from imret.models.lazy_encoder import LazyEncoder

    live = store.live(collection)
    if existing and live is None:
        store.open(collection).close()  # says which there are
    if model is None:
        model = DEFAULT_MODEL if live is None else live.model
    return LazyEncoder(model, arch=arch, device=device, precision=precision, notify=notify)


def check_same_encoder(
    collection: Collection, encoder: QueryEncoder, *, store: Store | Collection | None = None
) -> None:
    """Refuse an encoder whose image tower is not the one that made the collection.

    Args:
        collection: An open one.
        encoder: That is about to search it.
        store: Its store, which the commands that an error advises then name, too.

    Raises:
        ModelMismatch: If the fingerprints differ, though the dimensions may agree.
    """
    mine = collection.identity
    if encoder.embeds_as(mine.fingerprint):
        return
    theirs = Identity(encoder.model_id, encoder.images_fingerprint, mine.dim)
    where = f" --collection {collection.name}"
    if store is not None and not isinstance(store, Collection):
        from imret.sources.stored import naming_options  # only here: a search needs nothing else of it

        where = naming_options(store, collection.name)
    rebuild = f"rebuild: imret ingest SOURCE{where} --model {shlex.quote(theirs.model)} --rebuild"
    if mine.model == theirs.model:
        raise ModelMismatch(
            f"the model {mine.model!r} has changed since collection {collection.name!r} was built: "
            f"its fingerprint was {mine.fingerprint[:8]} and is {theirs.fingerprint[:8]} now.\n"
            f"Put the old weights back, or {rebuild}"
        )
    mine.require_same(
        theirs,
        subject=f"collection {collection.name!r}",
        user="this search uses",
        advice=f"Search with --model {mine.model} (or none), or {rebuild}",
    )
