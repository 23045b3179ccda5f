"""Pictures that something is learnt from, embedded: of a folder's categories, of files, of a collection.

What a collection holds already is not embedded again; it is known by its bytes (SHA-256), wherever it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.datasets.spelling import composed
from imret.errors import DataError, some_of
from imret.files import sha256_if_readable
from imret.images.decode_batches import BATCH_IMAGES, decode_batches
from imret.images.views import MOST, views_of
from imret.retrieval.names import NameIndex
from imret.retrieval.prompts import Names, common_names
from imret.store import Filter, Match

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder
    from imret.store import Collection, Point

# Others that a collection gives, beside the pictures that something is learnt from, at most.
OTHERS = 2_000


@dataclass(frozen=True, eq=False)
class Example:
    """A picture.

    Attributes:
        sha256: Of its bytes, in hex.
        vectors: (V, D) unit embeddings of its views, the picture as it is first.
    """

    sha256: str
    vectors: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Embedded:
    """Pictures of files, embedded.

    Attributes:
        examples: Of those that can be read, by their path.
        skipped: The others, and why.
        n_stored: How many were in the collection already.
    """

    examples: Mapping[str, Example]
    skipped: Mapping[str, str]
    n_stored: int


def embed_files(
    files: Sequence[str],
    encoder: QueryEncoder,
    *,
    collection: Collection | None = None,
    views: int = MOST,
    on_picture: Callable[[], object] = lambda: None,
) -> Embedded:
    """Embed picture files, but those that a collection holds.

    Args:
        files: Paths.
        encoder: The model; of the collection, if one is given.
        collection: An open one.
        views: In how many ways each is seen that has to be embedded, in [1, `MOST`].
        on_picture: Called for each that is done.

    Raises:
        ModelError: If the model cannot be loaded.
    """
    examples: dict[str, Example] = {}
    skipped: dict[str, str] = {}
    digests: dict[str, str] = {}
    for file in files:
        digest = sha256_if_readable(file)
        if digest is None:
            skipped[file] = "cannot be read"
            on_picture()
        else:
            digests[file] = digest
    stored = _stored(collection, set(digests.values())) if collection is not None else {}
    missing: dict[str, list[str]] = {}  # of one content, all files that have it
    for file, digest in digests.items():
        if digest in stored:
            examples[file] = Example(digest, stored[digest][None])
            on_picture()
        else:
            missing.setdefault(digest, []).append(file)
    n_stored = len(examples)
    first = {same[0]: digest for digest, same in missing.items()}
    for file, found in _encoded(first, encoder, views):
        for same in missing[first[file]]:
            if isinstance(found, str):
                skipped[same] = found
            else:
                examples[same] = Example(first[file], found)
            on_picture()
    return Embedded(examples, skipped, n_stored)


def _stored(collection: Collection, digests: set[str]) -> dict[str, NDArray[np.float32]]:
    """Return the vectors of pictures that a collection holds, by the hash of their files."""
    found: dict[str, NDArray[np.float32]] = {}
    wanted = sorted(digests)
    for start in range(0, len(wanted), 256):
        same = Filter((Match("sha256", tuple(wanted[start : start + 256])),))
        for points in collection.scan(same, vectors=True):
            found |= {str(point.payload["sha256"]): _vector(point) for point in points}
    return found


def _encoded(
    files: Iterable[str], encoder: QueryEncoder, views: int
) -> Iterator[tuple[str, NDArray[np.float32] | str]]:
    """Yield the (V, D) embeddings of each file's views, or why there are none."""
    with closing(decode_batches(list(files), encoder.preprocess)) as batches:
        for batch in batches:
            readable = [(file, pixels) for file, pixels in batch if not isinstance(pixels, str)]
            yield from ((str(file), reason) for file, reason in batch if isinstance(reason, str))
            if readable:
                seen = views_of(np.stack([pixels for _, pixels in readable]), views)
                vectors = encoder.encode_pixels(seen, batch_size=BATCH_IMAGES)
                of_each = vectors.reshape(views, len(readable), -1).swapaxes(0, 1)
                yield from zip((str(file) for file, _ in readable), of_each, strict=True)


# ---- Of a collection -----------------------------------------------------------------------------------


def examples_by_category(collection: Collection, most: int) -> dict[str, list[Example]]:
    """Return pictures of each category of a collection, no more than `most` of one."""
    categories: dict[str, list[str]] = {}
    for name in collection.facet("category"):
        categories.setdefault(composed(name), []).append(name)
    return {
        name: _first(collection, Filter((Match("category", tuple(spelled)),)), most)
        for name, spelled in categories.items()
    }


def examples_by_id(collection: Collection, ids: Sequence[str]) -> list[Example]:
    """Return stored pictures by their ids.

    Raises:
        DataError: If one is not there, or not any more.
    """
    points = collection.get(list(dict.fromkeys(ids)), vectors=True)
    gone = [id_ for id_ in ids if id_ not in points]
    if gone:
        raise DataError(
            f"{len(gone):,} of the {len(ids):,} pictures are not in collection {collection.name!r} any more: "
            f"{some_of(gone, 3)}"
        )
    return [_example(point) for point in points.values()]


def other_examples(
    collection: Collection,
    *,
    but: Iterable[str] = (),
    called: Sequence[str] = (),
    names: Names | None = None,
    most: int = OTHERS,
) -> list[Example]:
    """Return pictures of a collection that are none of some: a random choice where there are more.

    Args:
        collection: An open one.
        but: Hashes (SHA-256) of files that are left out.
        called: Names of what is left out: no picture of a category that goes by one of them is taken.
        names: What categories are called, where it is not what `imret.retrieval.prompts` says.
        most: No more than so many.
    """
    index = NameIndex({True: called})
    excluded = [
        name
        for name in collection.facet("category")
        if any(index.exact(also) for also in (name, *common_names(name, names)))
    ]
    without = Filter(must_not=(Match("category", tuple(excluded)),)) if excluded else None
    hashes = set(but)
    found = _first(collection, without, most + len(hashes))
    return [example for example in found if example.sha256 not in hashes][:most]


def _first(collection: Collection, filter: Filter | None, most: int) -> list[Example]:
    """Return the first points by id; ids are hashes, so that is a random choice, and the same each time."""
    found: list[Example] = []
    for points in collection.scan(filter, vectors=True, batch_size=min(most, 1_000)):
        found += map(_example, points)
        if len(found) >= most:
            break
    return found[:most]


def _example(point: Point) -> Example:
    return Example(str(point.payload["sha256"]), _vector(point)[None])


def _vector(point: Point) -> NDArray[np.float32]:
    if point.vector is None:
        raise RuntimeError("the point was asked for with its vector")
    return point.vector
