"""Which version of a collection a run fills: found before it, made live when it is complete, given up.

Hides when a collection is bound to a model, that a rebuild loses no picture, and that another program may do
the same at the same time: see `imret.store.protocol.Store`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imret.datasets.exclusion import EXCLUDED, originals_in
from imret.datasets.kinds import but_left_out
from imret.datasets.scan import Ignored, Skipped
from imret.errors import ChangedMeanwhile, DataError, StoreError, counted, some_of
from imret.escape import escape_undecodable, quoted
from imret.retrieval.collection_encoder import refuse_changed
from imret.sources.presence import folder_state
from imret.sources.stored import count_source, naming_options
from imret.store import Collection, Identity, Store
from imret.store.collection import changed_meanwhile
from imret.store.types import LiveState
from ingest.last_look import Gap, find_gap, told
from ingest.reconcile import Reconciler
from ingest.report import Counters, Report
from ingest.settle import Settlement, advice_for_gone, carry_out
from ingest.sources import Record, Source

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder


_LOOKS = 10  # at a collection that other programs go on changing


@dataclass
class Target:
    """The version that a run fills; closed when the run ends.

    Attributes:
        store: Where it is.
        version: The version, open.
        begun: What was live before the first write.
        is_live: Whether searches are answered from it already.
        is_first: Whether there is nothing to protect: no version is live, or one that holds nothing. Then
            this one is live from its first pictures on, and can be searched while it fills.
        excluded: What is to be remembered of sources once this version is live: patterns by source.
    """

    store: Store
    version: Collection
    begun: LiveState
    is_live: bool
    is_first: bool = False
    excluded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(StoreError):  # of a store that is lost; what stopped the run is what is told
            self.version.close()

    def remember(self) -> None:
        """Note what is excluded from the sources, if this version is live."""
        known = self.store.excluded(self.version.name) if self.is_live and self.excluded else {}
        changed = {
            source: patterns
            for source, patterns in self.excluded.items()
            if known.get(source, ()) != patterns
        }
        if self.is_live and changed:
            self.store.exclude(self.version.name, changed)

    def go_live(self) -> None:
        """Make a first version live, now that pictures are in it: a model that fails binds no collection.

        Raises:
            ModelMismatch: If another run has filled the collection with another model meanwhile.
            ChangedMeanwhile: If it has with this one, in a version of its own.
        """
        if self.is_live or not self.is_first:
            return
        name, identity = self.version.name, self.version.identity
        for _ in range(_LOOKS):
            now = self.store.state(name)
            live = None if now.version is None else self.store.live(name)
            if now.version == self.version.version:  # by another first ingest with the same model
                self.begun, self.is_live = now, True
                self.remember()
                return
            if live is not None and not _is_empty(self.store, name):
                live.require_same(
                    identity,
                    subject=f"collection {name!r}",
                    user="this ingest, which began before there was one, uses",
                    advice="Run it again with that model, or with --collection NAME.",
                )
                raise self.replaced()
            try:
                self.begun = self.store.promote(name, identity, version=self.version.version, expected=now)
            except ChangedMeanwhile:
                continue
            self.is_live = True
            self.remember()
            return
        raise self.replaced()

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

    def complete(
        self,
        reconcilers: Sequence[Reconciler],
        *,
        prune: bool = False,
        catch_up: Callable[[], Sequence[Reconciler]] | None = None,
    ) -> None:
        """Make what was stored last, build the index, and switch to the version if it is not live yet.

        Args:
            reconcilers: One for each folder of the run.
            prune: Whether what the live version holds of pictures that are gone may go.
            catch_up: Embeds what came to the folders since, and returns the reconcilers of that.

        Raises:
            DataError: If pictures of the live version would be lost; then it stays live.
            ChangedMeanwhile: If another program has switched the collection to a version of its own.
        """
        self.version.flush()
        self.version.optimize()
        self.go_live()
        if not self.is_live:
            self._take_the_place(reconcilers, prune=prune, catch_up=catch_up)
            return
        try:
            self.store.finish(self.version.name, self.begun)
        except ChangedMeanwhile as error:
            raise self.replaced() from error

    def _take_the_place(
        self,
        reconcilers: Sequence[Reconciler],
        *,
        prune: bool,
        catch_up: Callable[[], Sequence[Reconciler]] | None,
    ) -> None:
        """Switch from the live version to this one when nothing of that would be lost."""
        name, identity = self.version.name, self.version.identity
        named = {escape_undecodable(reconciler.source.root) for reconciler in reconcilers}
        tried: set[str] = set()
        for _ in range(_LOOKS):
            now = self.store.state(name)
            is_live = now.version == self.version.version  # another run with the same model was faster
            if not is_live and (others := _others(self.version, named)):
                # They came meanwhile: see `find_target`. To remove them could be to remove them from what is
                # live, for that other run may be about to switch.
                raise ChangedMeanwhile(
                    f"another command fills the same new version of collection {name!r} with "
                    f"{some_of(others)}, too. Run this again when it is done."
                )
            gap = Gap() if is_live else self._gap(now, reconcilers, prune=prune, tried=tried)
            if gap.behind or not all(reconciler.is_stored() for reconciler in reconcilers):
                tried |= gap.behind
                if catch_up is not None:
                    reconcilers = catch_up()
                    self.version.flush()
                    self.version.optimize()
                continue
            if is_live:
                self.begun, self.is_live = now, True
                self.remember()
                self.complete(reconcilers)
                return
            try:
                self.begun = self.store.promote(name, identity, version=self.version.version, expected=now)
            except ChangedMeanwhile:
                continue
            self.is_live = True
            self.remember()
            return
        raise ChangedMeanwhile(
            f"other programs go on changing the collection {name!r}, and this ingest, which is to replace "
            "what is live of it, does not keep up. What it embedded is kept. Run it again when they are done."
        )

    def _gap(self, now: LiveState, reconcilers: Sequence[Reconciler], *, prune: bool, tried: Set[str]) -> Gap:
        """Return what the new version lacks of the live one and can be caught up with.

        Raises:
            DataError: If there is more that it lacks.
        """
        if now.version is None:
            return Gap()
        with closing(self.store.open(self.version.name)) as old:
            roots = [reconciler.source.root for reconciler in reconcilers]
            if reconcilers:
                refuse_left_out(self.store, old, self.version.identity, roots)
            gap = find_gap(old, self.version, reconcilers, prune=prune, tried=tried)
            if not gap.behind and gap.losses:
                raise _would_lose(self.store, old, self.version.identity, roots, gap)
        return gap

    def is_replaced(self) -> bool:
        """Whether another version has replaced this one, which was live; False where the store is lost."""
        with suppress(StoreError):
            return self.is_live and not self.store.state(self.version.name).has_version_of(self.begun)
        return False

    def replaced(self) -> ChangedMeanwhile:
        """Return the error for a run whose version is not live any more, or was not the first to be."""
        name = self.version.name
        live = self.store.live(name)
        now = "deleted or renamed" if live is None else f"switched to another version, of {live.model!r},"
        return ChangedMeanwhile(
            f"collection {name!r} was {now} by another program while this ingest filled it, so that what "
            "it stored cannot be found. Run it again."
        )


def with_pictures(
    sources: Sequence[Source], store: Store, name: str, *, prune: bool, rebuild: bool
) -> tuple[list[Source], list[str]]:
    """Set folders aside that hold no picture, before anything is made or removed for them.

    Returns:
        The other folders; and what is to be said of those without, each with what else is in it.

    Raises:
        DataError: If no folder holds any, or one of a rebuild holds none of those that are stored any more.
    """
    filled, said = [], []
    for source in sources:
        counters = Counters(Report(name, store.address, store.engine, "", "", []))
        if not source.is_folder:
            if next(source.units(), None) is not None:
                filled.append(source)
                continue
        elif any(not isinstance(entry, Ignored) for entry in _counted(source, counters)):
            filled.append(source)
            continue
        folder, n_stored = escape_undecodable(source.root), 0
        if store.live(name) is not None:
            with closing(store.open(name)) as live:
                n_stored = count_source(live, source.root)
        if n_stored == 0:
            said.append(_no_pictures(folder, counters.report, naming_options(store, name)))
        elif prune:
            said.append(_none_left(folder, n_stored, counters.report, naming_options(store, name)))
            if rebuild:
                raise DataError(said[-1])
        else:
            filled.append(source)
    if not filled:
        raise DataError("\n".join(said))
    return filled, said


def _none_left(folder: str, n_stored: int, found: Report, where: str) -> str:
    """Say why what is stored of a folder without pictures stays under --prune."""
    if EXCLUDED in found.ignored:
        return (
            f"all pictures of {folder!r} are left out by --exclude, and the collection holds {n_stored} from "
            f"it. Nothing was removed.\nTo take the folder out: imret sources forget {quoted(folder)}{where}"
        )
    return (
        f"{folder!r} holds no picture any more, but the collection holds {n_stored} from it. "
        f"Is its drive mounted? Nothing was removed.\n{advice_for_gone(folder, where)}"
    )


def _counted(source: Source, counters: Counters) -> Iterator[Record | Skipped | Ignored]:
    for entry in source.entries():
        if isinstance(entry, Ignored):
            counters.ignore(source.root, entry)
        yield entry


def _no_pictures(folder: str, found: Report, where: str) -> str:
    what = but_left_out(found.ignored)
    libraries = filter(None, map(originals_in, found.photo_libraries))
    if originals := next(libraries, None):
        return (
            f"no pictures in {folder!r}{what}. For the originals of the library: imret ingest "
            f"{quoted(originals)}{where}"
        )
    if found.misnamed:
        return (
            f"no pictures in {folder!r}{what}. {quoted(found.misnamed[0])} holds a picture by its content: "
            "give such files a suffix that says so, such as .jpg."
        )
    return (
        f"no pictures in {folder!r}{what}. Expected files such as .jpg or .png, in one sub-folder per "
        "category."
    )


def find_target(
    store: Store,
    name: str,
    encoder: QueryEncoder,
    sources: Sequence[Source],
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
    roots = {escape_undecodable(source.root) for source in sources}
    for _ in range(_LOOKS):
        begun = store.state(name)
        live = store.live(name)
        identity = _identity(encoder, live)
        is_live = live is not None and live.fingerprint == identity.fingerprint
        is_first = live is None or (not is_live and _is_empty(store, name))  # its model binds nothing
        if live is not None and not is_live and not is_first:
            _check_rebuild(store, name, live, identity, encoder, sources, taken_over, rebuild=rebuild)
        version = store.open_version(name, identity)
        if not is_live and not is_first and _others(version, roots | taken_over):
            # Left by a rebuild of other folders that was cut short, or in the making by one that runs.
            version.close()
            version = store.create_staging(name, identity)
        if store.state(name).has_version_of(begun) and (not is_live or version.version == begun.version):
            return Target(store, version, begun, is_live=is_live, is_first=is_first)
        version.close()
    raise changed_meanwhile(name, store.address)


def _check_rebuild(
    store: Store,
    name: str,
    live: Identity,
    identity: Identity,
    encoder: QueryEncoder,
    sources: Sequence[Source],
    taken_over: Set[str],
    *,
    rebuild: bool,
) -> None:
    """Refuse an encoder other than the collection's, unless all is to be embedded again with it."""
    roots = [source.root for source in sources]
    if not rebuild:
        again = (
            f"embed every picture again with the new model: {_rebuild_command(store, name, identity, roots)}"
        )
        refuse_changed(name, live, encoder, rebuild=again)
        live.require_same(
            identity,
            subject=f"collection {name!r}",
            user="this ingest uses",
            advice=f"Ingest with --model {live.model}, or {again}",
        )
    with closing(store.open(name)) as old:
        refuse_left_out(store, old, identity, roots, taken_over=taken_over)


def refuse_left_out(
    store: Store,
    old: Collection,
    identity: Identity,
    roots: Sequence[str],
    *,
    taken_over: Set[str] = frozenset(),
) -> None:
    """Refuse a rebuild that does not name every folder that the live version holds pictures of."""
    left_out = sorted(set(old.facet("source")) - set(map(escape_undecodable, roots)) - taken_over)
    if left_out:
        raise _would_be_lost(store, old.name, identity, roots, left_out)


def _rebuild_command(store: Store, name: str, identity: Identity, roots: Sequence[str]) -> str:
    named = " ".join(map(quoted, roots))
    return f"imret ingest {named} --model {identity.model}{naming_options(store, name)} --rebuild"


def _others(version: Collection, named: Set[str]) -> list[str]:
    """Return the folders that a version holds pictures of, without those that are named."""
    return sorted(version.facet("source").keys() - named)


def _is_empty(store: Store, name: str) -> bool:
    with closing(store.open(name)) as live:
        return live.count() == 0


def _identity(encoder: QueryEncoder, live: Identity | None) -> Identity:
    """Return what a version filled by an encoder is bound to; one that it made already stays as it is."""
    kept = live is not None and encoder.embeds_as(live.fingerprint)
    fingerprint = live.fingerprint if live is not None and kept else encoder.images_fingerprint
    return Identity(encoder.model_id, fingerprint, encoder.dim)


def _would_be_lost(
    store: Store, name: str, identity: Identity, roots: Sequence[str], left_out: Sequence[str]
) -> DataError:
    """Return the error for a rebuild that does not name every folder; those that are gone cannot be named."""
    where = naming_options(store, name)
    gone = [folder for folder in left_out if folder_state(folder) in ("gone", "empty")]
    there = [folder for folder in left_out if folder not in gone]
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
        f"Name every folder: {_rebuild_command(store, name, identity, [*roots, *there])}, "
        f"or fill another collection with --collection NAME"
    )
    return DataError("\n".join(lines))


def _would_lose(
    store: Store, old: Collection, identity: Identity, roots: Sequence[str], gap: Gap
) -> DataError:
    """Return the error for a rebuild that has not embedded every picture of the live version."""
    n_images = sum(loss.images for loss in gap.losses)
    again = _rebuild_command(store, old.name, identity, roots)
    goes = any(loss.goes_with_prune for loss in gap.losses)
    return DataError(
        "\n".join(
            [
                f"collection {old.name!r} holds {counted(n_images)} that "
                f"could not be embedded again and would be lost. It stays as it is, with "
                f"{old.identity.model!r}:",
                *told(gap.losses),
                "What was embedded is kept. If they can be had back, for example from a drive that is not "
                f"mounted, see to that and go on: {again}",
                *([f"If they are meant to go: {again} --prune"] if goes else []),
                *_advice_beyond_prune(gap, naming_options(store, old.name)),
            ]
        )
    )


def _advice_beyond_prune(gap: Gap, where: str) -> list[str]:
    """Return what can be done about what `--prune` does not let go."""
    sources = dict.fromkeys(loss.source for loss in gap.losses if not loss.goes_with_prune)
    if not sources:
        return []
    forget = " && ".join(f"imret sources forget {quoted(source)}{where}" for source in sources)
    return [
        "--prune lets nothing go that is only out of reach. If that is gone for good, remove the empty "
        f"folder or the link; or take out all that is stored of its folder: {forget}"
    ]
