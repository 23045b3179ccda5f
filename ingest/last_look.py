"""What a rebuild would lose: compared picture by picture before its version takes the place of the live one.

A picture that the live version holds and the new one does not was stored meanwhile, or cannot be embedded
again: its file is gone, out of reach or damaged. Hides which of these it is, and what `--prune` lets go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain

from imret.escape import escape_undecodable, quoted
from imret.files import sha256_if_readable
from imret.sources.presence import OutOfReach
from imret.sources.stored import count_source, scan_source
from imret.store import Collection, Point
from imret.store.payload import file_of, source_of
from ingest.reconcile import ALMOST_NONE, Reconciler

_BATCH = 256

_GONE = "whose files are gone"
_LEFT_OUT = "that are left out now, by their names"
_DAMAGED = "whose files are there and cannot be embedded any more"
_UNREADABLE = "whose files are there and cannot be read"
_ALMOST_NONE_LEFT = "of a folder that holds almost none of its pictures any more"


@dataclass
class Loss:
    """Pictures of one source that the new version would not have, for one reason.

    Attributes:
        source: As the collection names it.
        reason: What is the matter with them, to be read after "50 pictures".
        images: How many.
        example: File of one of them.
    """

    source: str
    reason: str
    images: int
    example: str

    @property
    def goes_with_prune(self) -> bool:
        """Whether `--prune` lets them go."""
        return self.reason in (_GONE, _LEFT_OUT, _DAMAGED)


@dataclass
class Gap:
    """What lies between two versions.

    Attributes:
        behind: Ids of pictures that are at their places, and that nobody has tried to embed yet.
        losses: What nobody has agreed to lose.
    """

    behind: set[str] = field(default_factory=set)
    losses: list[Loss] = field(default_factory=list)

    def lose(self, points: Sequence[Point], reason: str) -> None:
        for point in points:
            source = str(point.payload.get("source", ""))
            for loss in self.losses:
                if (loss.source, loss.reason) == (source, reason):
                    loss.images += 1
                    break
            else:
                self.losses.append(Loss(source, reason, 1, escape_undecodable(file_of(point.payload))))


def find_gap(
    old: Collection, new: Collection, reconcilers: Sequence[Reconciler], *, prune: bool, tried: Set[str]
) -> Gap:
    """Compare the live version with the one that shall take its place.

    What an earlier attempt at the new one embedded, and what has since been removed from the live one with
    its file gone, is removed here, too.

    Args:
        old: The live version.
        new: The other, complete but for what is found here.
        reconcilers: One for each folder of the run, in the new version.
        prune: Let go what is gone for good, and what can be read but not embedded.
        tried: Ids of pictures that an attempt to embed them did not bring in.
    """
    gap = Gap()
    looks = {
        reconciler.source.root: _Look(old, new, reconciler, gap, prune, tried) for reconciler in reconcilers
    }
    for one, other in _differences(old, new):
        point = one or other
        assert point is not None
        look = looks.get(source_of(point.payload)) if "source" in point.payload else None
        if look is not None:
            look.add(point, is_old=one is not None)
        elif one is not None and "source" in point.payload:
            gap.lose([point], "of a folder that was not named")
    for look in looks.values():
        look.end()
    return gap


class _Look:
    """Sorts what one version of a source has and the other lacks, in batches."""

    def __init__(
        self, old: Collection, new: Collection, reconciler: Reconciler, gap: Gap, prune: bool, tried: Set[str]
    ) -> None:
        self._new = new
        self._reconciler = reconciler
        self._gap = gap
        self._tried = tried
        self._lacking: list[Point] = []
        self._spare: list[Point] = []
        self._root = reconciler.source.root
        self._prune = prune
        self._few_are_left = prune and (
            count_source(new, self._root) <= ALMOST_NONE * count_source(old, self._root)
        )

    def add(self, point: Point, *, is_old: bool) -> None:
        """Take a point of the old version that the new one lacks, or the other way round."""
        (self._lacking if is_old else self._spare).append(point)
        if len(self._lacking) >= _BATCH or len(self._spare) >= _BATCH:
            self.end()

    def end(self) -> None:
        """Sort what was taken."""
        if self._lacking:
            self._sort(self._lacking)
        if self._spare:
            found = self._reconciler.presence(self._spare)
            gone = [point.id for point, it in zip(self._spare, found, strict=True) if it == "gone"]
            if gone:
                self._new.delete(gone)
        self._lacking, self._spare = [], []

    def _sort(self, points: list[Point]) -> None:
        gone: list[Point] = []
        left_out: list[Point] = []
        for point, found in zip(points, self._reconciler.presence(points), strict=True):
            if isinstance(found, OutOfReach):
                folder = os.path.join(self._reconciler.source.root, *found.folder.split("/")).rstrip("/")
                self._gap.lose([point], f"out of reach: {quoted(folder or '/')} {found.reason}")
            elif found == "gone":
                gone.append(point)
            elif found == "left out":
                left_out.append(point)
            elif point.id not in self._tried:
                self._gap.behind.add(point.id)
            elif sha256_if_readable(file_of(point.payload)) is None:
                self._gap.lose([point], _UNREADABLE)
            else:
                self._let_go([point], _DAMAGED)
        if gone:
            # What has moved within its folder is in the new version at its new place.
            held = self._contents_held(gone)
            self._let_go([point for point in gone if point.payload["sha256"] not in held], _GONE)
        if left_out and not self._prune:
            self._gap.lose(left_out, _LEFT_OUT)

    def _let_go(self, points: list[Point], reason: str) -> None:
        if not self._prune:
            self._gap.lose(points, reason)
        elif self._few_are_left:
            self._gap.lose(points, _ALMOST_NONE_LEFT)

    def _contents_held(self, points: list[Point]) -> set[str]:
        digests = {point.payload["sha256"] for point in points}
        held = scan_source(self._new, self._root, contents=digests)
        return {point.payload["sha256"] for batch in held for point in batch}


def _differences(old: Collection, new: Collection) -> Iterator[tuple[Point | None, Point | None]]:
    """Yield what only one of two versions holds: (point, None) of the old, (None, point) of the new."""
    olds = chain.from_iterable(old.scan())
    news = chain.from_iterable(new.scan())
    one, other = next(olds, None), next(news, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.id < other.id):
            yield one, None
            one = next(olds, None)
        elif one is None or other.id < one.id:
            yield None, other
            other = next(news, None)
        else:
            one, other = next(olds, None), next(news, None)


def told(losses: Sequence[Loss]) -> list[str]:
    """Return a line for each kind of loss."""
    return [
        f"  {loss.images:,} of {quoted(loss.source)} {loss.reason}, "
        f"{'such as ' if loss.images > 1 else ''}{quoted(loss.example)}"
        for loss in losses
    ]
