"""The encoder that a collection belongs to."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from imret.defaults import DEFAULT_MODEL
from imret.errors import ModelMismatch
from imret.store import Collection, Identity, Store

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder
    from imret.models.fingerprint import ModelFiles
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
    ask: Callable[[str], bool] | None = None,
    existing: bool = False,
    rebuild: bool = False,
) -> LazyEncoder:
    """Return an encoder for a collection: the one named, else the collection's own, else the default.

    A model that is named is noted as one that this user has chosen; one that only the collection names has
    to be such a one.

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
        ask: Asks the user whether to use a model that only the collection names; None: it is an error.
        existing: Whether the collection has to exist: a name that does not is then refused before the
            default model is downloaded for it.
        rebuild: Whether every picture is embedded again: the model need not be read as it was before.

    Raises:
        DataError: If the collection has to exist and does not.
        ModelUnknown: If only the collection names the model, and this user has not chosen it.
        ModelError: If the model cannot be found.
    """
    from imret.models.download import advice_for
    from imret.models.known_models import note_model
    from imret.models.lazy_encoder import LazyEncoder
    from imret.models.resolve import resolve_model
    from imret.retrieval.own_model import find_own_model

    live = store.live(collection)
    if existing and live is None:
        store.open(collection).close()  # says which there are
    if model is None and live is not None:
        advice = f"run the same command with --model {shlex.quote(live.model)}"
        files = find_own_model(
            collection, live, advice=advice, arch=arch, ask=ask, notify=notify, rebuild=rebuild
        )
    else:
        # What fills a collection may be another; what it was filled with may not.
        is_choice = live is None or rebuild
        files = resolve_model(
            DEFAULT_MODEL if model is None else model,
            arch=arch,
            notify=notify,
            advice=advice_for(device=device, precision=precision) if is_choice else None,
        )
        note_model(files, notify=notify)
    if live is not None and not rebuild:
        files = read_as_made(files, collection, live, notify=notify)
    return LazyEncoder(files, device=device, precision=precision)


def read_as_made(
    files: ModelFiles,
    collection: str,
    identity: Identity,
    *,
    notify: Callable[[str], None] | None = None,
) -> ModelFiles:
    """Return a collection's own model as it was read when the collection was made; any other as it is.

    Args:
        files: As the model is read now.
        collection: Name, for the notice.
        identity: Of the collection.
        notify: Called with a sentence where it was read otherwise.

    Raises:
        ModelError: If the weights cannot be read.
    """
    if files.model_id != identity.model:
        return files
    made = files.as_made(identity.fingerprint)
    if made is not files and notify is not None:
        notify(
            f"collection {collection!r} was embedded with {_differences(files, made)}: "
            "it is searched and filled so. To embed its pictures as the model wants them, "
            + _rebuild(f" --collection {collection}", files.model_id)
        )
    return made


def _rebuild(where: str, model: str) -> str:
    return f"rebuild: imret ingest SOURCE{where} --model {shlex.quote(model)} --rebuild"


def _differences(files: ModelFiles, made: ModelFiles) -> str:
    """Say how a model was read, where what is published of its architecture is otherwise."""
    now, then = (
        {**asdict(read.preprocess), "quick_gelu": bool(read.model_cfg.get("quick_gelu", False))}
        for read in (files, made)
    )
    ways = [f"{key} {then[key]} instead of {now[key]}" for key in now if then[key] != now[key]]
    return f"open_clip's defaults ({'; '.join(ways)})"


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
    rebuild = _rebuild(where, theirs.model)
    refuse_changed(collection.name, mine, encoder, rebuild=rebuild)
    mine.require_same(
        theirs,
        subject=f"collection {collection.name!r}",
        user="this search uses",
        advice=f"Search with --model {mine.model} (or none), or {rebuild}",
    )


def refuse_changed(collection: str, identity: Identity, encoder: QueryEncoder, *, rebuild: str) -> None:
    """Refuse a collection's own model that embeds otherwise than when the collection was made, and say why.

    Args:
        collection: Name.
        identity: Of the collection.
        encoder: Does not embed as the collection was.
        rebuild: The command that embeds everything again, as the end of a sentence.

    Raises:
        ModelMismatch: If the encoder is of that model.
    """
    if identity.model != encoder.model_id:
        return
    made = encoder.files.as_made(identity.fingerprint)
    if made is not encoder.files:
        raise ModelMismatch(
            f"collection {collection!r} was embedded with {_differences(encoder.files, made)}; "
            f"the weights of {identity.model!r} are the same.\n"
            f"Use the encoder that imret.retrieval.collection_encoder finds, or {rebuild}"
        )
    raise ModelMismatch(
        f"the model {identity.model!r} has changed since collection {collection!r} was built: "
        f"its fingerprint was {identity.fingerprint[:8]} and is {encoder.images_fingerprint[:8]} now.\n"
        f"Put the old weights back, or {rebuild}"
    )
