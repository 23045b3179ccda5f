"""The encoder that a collection belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from imret.errors import ModelMismatch
from imret.settings import DEFAULT_MODEL
from imret.store import Collection, Identity, Store

if TYPE_CHECKING:
    from imret.models.encoder import Encoder
    from imret.models.lazy_encoder import CachedEncoder


def encoder_for(
    store: Store,
    collection: str,
    *,
    model: str | None = None,
    arch: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    notify: Callable[[str], None] | None = None,
    existing: bool = False,
) -> Encoder:
    """Return an encoder for a collection: the one named, else the collection's own, else the default.

    Args:
        store: An open store.
        collection: Name.
        model: Model name; None for the one the collection keeps.
        arch: Architecture, where the model is a bare checkpoint file.
        device: As for `Encoder`.
        precision: As for `Encoder`.
        notify: Called with a line for the user before anything large is downloaded.
        existing: Whether the collection has to exist: a name that does not is then refused before the
            default model is downloaded for it.

    Raises:
        DataError: If the collection has to exist and does not.
        ModelError: If the model cannot be found.
    """
    from imret.models.encoder import Encoder

    model = _model_for(store, collection, model, existing)
    return Encoder(model, arch=arch, device=device, precision=precision, notify=notify)


def query_encoder_for(
    store: Store,
    collection: str,
    *,
    model: str | None = None,
    arch: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    notify: Callable[[str], None] | None = None,
    existing: bool = False,
) -> CachedEncoder:
    """Return what `encoder_for` does, for asking: a text asked before needs neither torch nor the model.

    Arguments and errors are those of `encoder_for`.
    """
    from imret.models.lazy_encoder import CachedEncoder

    model = _model_for(store, collection, model, existing)
    return CachedEncoder(model, arch=arch, device=device, precision=precision, notify=notify)


def _model_for(store: Store, collection: str, model: str | None, existing: bool) -> str:
    if existing and store.live(collection) is None:
        store.open(collection).close()  # says which there are
    if model is not None:
        return model
    live = store.live(collection)
    return DEFAULT_MODEL if live is None else live.model


def check_same_encoder(collection: Collection, encoder: Encoder | CachedEncoder) -> None:
    """Refuse an encoder whose image tower is not the one that made the collection.

    Raises:
        ModelMismatch: If the fingerprints differ, though the dimensions may agree.
    """
    mine = collection.identity
    if mine.fingerprint == encoder.images_fingerprint:
        return
    theirs = Identity(encoder.model_id, encoder.images_fingerprint, mine.dim)
    rebuild = f"rebuild: imret ingest SOURCE --collection {collection.name} --model {theirs.model} --rebuild"
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
