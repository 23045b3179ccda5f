"""Which version of a collection a run fills: found before it, made live when it is complete, given up.

Hides when a collection is bound to a model, and that a rebuild loses no folder.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imret.datasets.scan import Ignored
from imret.errors import DataError, StoreError, some_of
from imret.escape import escape_undecodable, quoted
from imret.retrieval.collection_encoder import refuse_changed
from imret.sources.moved import of_source
from imret.sources.presence import folder_state
from imret.sources.stored import naming_options, remove_points
from imret.store import Collection, Identity, Store
from ingest.settle import Settlement, advice_for_gone, carry_out
from ingest.sources import FolderSource

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder


@dataclass
class Target:
    """The version that a run fills; closed when the run ends.

    Attributes:
        store: Where it is.
        version: The version, open.
        is_live: Whether searches are answered from it already.
        is_first: Whether there is nothing to protect: no version is live, or one that holds nothing. Then
            this one is live from its first pictures on, and can be searched while it fills.
    """

    store: Store
    version: Collection
    is_live: bool
    is_first: bool = False

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(StoreError):  # of a store that is lost; what stopped the run is what is told
            self.version.close()

    def go_live(self) -> None:
        """Make a first version live, now that pictures are in it: a model that fails binds no collection.

        Raises:
            ModelMismatch: If another run has filled the collection with another model meanwhile.
        """
        if self.is_live or not self.is_first:
            return
        name, identity = self.version.name, self.version.identity
        live = self.store.live(name)
        if live is not None and live.fingerprint != identity.fingerprint and not _is_empty(self.store, name):
            live.require_same(
                identity,
                subject=f"collection {name!r}",
                user="this ingest, which began before there was one, uses",
                advice="Run it again with that model, or with --collection NAME.",
            )
        self.store.promote(name, identity)
        self.is_live = True

    def take_over(self, settlement: Settlement) -> dict[str, int]:
        """Carry out what was settled, in the live version, and in this one if that is another.

        Returns:
            For each source that is none any more how many pictures it had.
        """
        if not settlement.taken_over:
            return {}
        with closing(self.store.open(self.version.name)) as live:
            is_same = live.version == self.version.version
            return carry_out(settlement, [live] if is_same else [live, self.version])

    def complete(self, sources: Sequence[FolderSource]) -> None:
        """Make what was stored last, build the index, and switch to the version if it is not live yet.

        Raises:
            StoreError: If another run has switched the collection to a version of its own meanwhile.
        """
        self.version.flush()
        self.version.optimize()
        self.go_live()
        name, identity = self.version.name, self.version.identity
        if not self.is_live:
            # An earlier attempt, cut short, may have stored folders that are no sources any more.
            named = {escape_undecodable(source.root) for source in sources}
            for other in self.version.facet("source").keys() - named:
                remove_points(self.version, other)
            self.store.promote(name, identity)
            return
        live = self.store.live(name)
        if live is None or live.fingerprint != identity.fingerprint:
            now = "dropped" if live is None else f"switched to {live.model!r}"
            raise StoreError(
                f"collection {name!r} was {now} by another program while this ingest filled it, so that what "
                "it stored cannot be found. Run it again."
            )


def check_not_empty(source: FolderSource, store: Store, name: str, *, prune: bool) -> None:
    """Refuse a folder that holds no picture, before anything is made or removed for it."""
    if any(not isinstance(entry, Ignored) for entry in source.entries()):
        return
    folder, n_stored = escape_undecodable(source.root), 0
    if store.live(name) is not None:
        with closing(store.open(name)) as live:
            n_stored = live.count(of_source(folder))
    if n_stored == 0:
        raise DataError(
            f"no pictures in {folder!r}. Expected files such as .jpg or .png, in one sub-folder per category."
        )
    if prune:
        advice = advice_for_gone(folder, naming_options(store, name))
        raise DataError(
            f"{folder!r} holds no picture any more, but the collection holds {n_stored} from it. "
            f"Is its drive mounted? Nothing was removed.\n{advice}"
        )


def find_target(
    store: Store,
    name: str,
    encoder: QueryEncoder,
    sources: Sequence[FolderSource],
    *,
    taken_over: Set[str],
    rebuild: bool,
) -> Target:
    """Return the version of a collection that an encoder fills, made if it is new.

    Args:
        store: Where the collection lives.
        name: Of the collection.
        encoder: Makes the vectors; nothing of it is loaded.
        sources: The folders of the run.
        taken_over: Sources that are none any more when it ends.
        rebuild: With an encoder other than the collection's, fill a version beside the live one.

    Raises:
        ModelMismatch: If the collection was made by another encoder and `rebuild` is not set.
        DataError: If a rebuild would lose pictures of folders that were not named.
    """
    live = store.live(name)
    identity = _identity(encoder, live)
    if live is None:
        return Target(store, store.open_version(name, identity), is_live=False, is_first=True)
    if live.fingerprint == identity.fingerprint:
        return Target(store, store.open_version(name, identity), is_live=True)
    if _is_empty(store, name):  # its model binds nothing
        return Target(store, store.open_version(name, identity), is_live=False, is_first=True)
    named = " ".join(quoted(source.root) for source in sources)
    where = naming_options(store, name)
    model = f"--model {identity.model}{where}"
    if not rebuild:
        again = f"embed every picture again with the new model: imret ingest {named} {model} --rebuild"
        refuse_changed(name, live, encoder, rebuild=again)
        live.require_same(
            identity,
            subject=f"collection {name!r}",
            user="this ingest uses",
            advice=f"Ingest with --model {live.model}, or {again}",
        )
    with closing(store.open(name)) as old:
        stored = set(old.facet("source"))
    left_out = sorted(stored - {escape_undecodable(source.root) for source in sources} - taken_over)
    if left_out:
        raise _would_be_lost(name, named, left_out, model, where)
    return Target(store, store.open_version(name, identity), is_live=False)


def _is_empty(store: Store, name: str) -> bool:
    with closing(store.open(name)) as live:
        return live.count() == 0


def _identity(encoder: QueryEncoder, live: Identity | None) -> Identity:
    """Return what a version filled by an encoder is bound to; one that it made already stays as it is."""
    kept = live is not None and encoder.embeds_as(live.fingerprint)
    fingerprint = live.fingerprint if live is not None and kept else encoder.images_fingerprint
    return Identity(encoder.model_id, fingerprint, encoder.dim)


def _would_be_lost(name: str, named: str, left_out: Sequence[str], model: str, where: str) -> DataError:
    """Return the error for a rebuild that does not name every folder; those that are gone cannot be named."""
    gone = [folder for folder in left_out if folder_state(folder) in ("gone", "empty")]
    there = "".join(f" {quoted(folder)}" for folder in left_out if folder not in gone)
    lines = [
        f"collection {name!r} also holds pictures from {some_of(map(quoted, left_out), between=' ')}; "
        "a rebuild without them would lose them."
    ]
    for folder in gone:
        lines.append(
            f"{quoted(folder)} is not there now. If it has moved: imret sources rename {quoted(folder)} NEW"
            f"{where}; if it is gone for good: imret sources forget {quoted(folder)}{where}"
        )
    lines.append(
        f"Name every folder: imret ingest {named}{there} {model} --rebuild, "
        f"or fill another collection with --collection NAME"
    )
    return DataError("\n".join(lines))
