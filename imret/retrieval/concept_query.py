"""What concepts make of a query, and which of them a search may use.

A query that is the name of a concept asks with what was learnt; one that holds the name is moved from what
the text says to what was learnt, by as much as that was found to be better on pictures held out. A query
that names none is not changed, to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imret.errors import DataError, StoreError, StoreUnavailable
from imret.files import read_regular
from imret.retrieval.concepts import Concepts
from imret.retrieval.results import ConceptUse

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder
    from imret.store import Store

# In a model folder. open_clip and others do not look at it.
FILE_NAME = "concepts.safetensors"
_MAX_BYTES = 256 << 20


# ---- Where they are ----------------------------------------------------------------------------------------


def read_model_concepts(folder: str | os.PathLike[str]) -> Concepts | None:
    """Return the concepts of a model folder; None if it has none.

    Raises:
        DataError: If they cannot be read.
    """
    path = Path(folder) / FILE_NAME
    try:
        content = read_regular(path, max_bytes=_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the concepts {str(path)!r}: {error}") from error
    return Concepts.from_bytes(content, repr(str(path)))


@dataclass(frozen=True)
class Known:
    """The concepts that a search may use, and what is to be said where some cannot be.

    Attributes:
        concepts: None for none.
        remarks: Sentences.
    """

    concepts: Concepts | None = None
    remarks: tuple[str, ...] = ()


def known_concepts(store: Store, collection: str, encoder: QueryEncoder) -> Known:
    """Return the concepts of a collection and of its model's folder; where both have one, the collection's.

    What cannot be read, or is another encoder's, is left out, and said. Kept until one of them changes.

    Args:
        store: Open; keeps them.
        collection: Name.
        encoder: Of the collection.
    """
    folder = encoder.files.weights.parent
    try:
        stored = store.document_mark(collection, "concepts")
    except StoreUnavailable:
        raise
    except StoreError:  # it will say so again, and be told
        stored = "unreadable"
    mark = (collection, encoder.fingerprint, stored, _state(folder))
    kept: dict[str, tuple[Any, Known]] = store.kept.setdefault("concepts", {})
    if (found := kept.get(collection)) is None or found[0] != mark:
        readers = [_of_folder(folder), _of_collection(store, collection)]
        again = f"imret learn --collection {collection}"
        found = kept[collection] = (mark, _known(readers, encoder, again))
    return found[1]


def _state(folder: Path) -> tuple[int, int, int] | None:
    try:
        info = os.stat(folder / FILE_NAME)
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns


def model_concepts(encoder: QueryEncoder) -> Known:
    """Return the concepts of a model's folder alone; what cannot be read, or is another's, is said."""
    return _known([_of_folder(encoder.files.weights.parent)], encoder, "imret learn --help")


_Reader: TypeAlias = "tuple[str, Callable[[], Concepts | None]]"  # whose they are, and what reads them


def _of_folder(folder: Path) -> _Reader:
    return "its model's folder", lambda: read_model_concepts(folder)


def _of_collection(store: Store, collection: str) -> _Reader:
    def read() -> Concepts | None:
        content = store.document(collection, "concepts")
        return None if content is None else Concepts.from_bytes(content, f"collection {collection!r}")

    return f"collection {collection!r}", read


def _known(readers: Sequence[_Reader], encoder: QueryEncoder, again: str) -> Known:
    found: Concepts | None = None
    remarks = []
    for owner, read in readers:
        try:
            concepts = read()
        except StoreUnavailable:
            raise
        except (DataError, StoreError) as error:
            remarks.append(f"went without the concepts of {owner}: {error}")
            continue
        if concepts is None or not concepts.concepts:
            continue
        if not encoder.embeds_as(concepts.images_fingerprint) or concepts.dim != encoder.dim:
            remarks.append(
                f"went without the concepts of {owner}: they were learnt with {concepts.model!r}, and "
                f"its pictures are embedded with {encoder.model_id!r}. Learn them again: {again}"
            )
            continue
        found = concepts if found is None else found.with_others(concepts)
    return Known(found, tuple(remarks))


# ---- Their part in a query ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ConceptAnswer:
    """What a text asks with once concepts had their part.

    Attributes:
        vector: (D,) not necessarily unit; the very vector of the text where no concept was used.
        offset: What its scores lack to have the mean that the text's have, over all pictures: added to an
            inner product with `vector`, it is a score of the text's size.
        uses: The part that each concept had.
    """

    vector: NDArray[np.float32]
    offset: float = 0.0
    uses: tuple[ConceptUse, ...] = ()


def ask_with_concepts(
    concepts: Concepts,
    text: str,
    vector: NDArray[np.float32],
    encoder: QueryEncoder,
    text_vector: Callable[[str], NDArray[np.float32]],
) -> ConceptAnswer:
    """Return what a text asks with, given what it asks with alone.

    Of several concepts in one text each moves it, independently of the others: "bird on a mushroom" is moved
    towards both.

    Args:
        concepts: That are known.
        text: The query.
        vector: (D,) unit embedding of it.
        encoder: That gave it.
        text_vector: Gives the unit embedding of another text in the same sentences.
    """
    whole = concepts.index.exact(text)
    if whole is not None:
        concept = concepts.concepts[whole]
        if concept.vector is None:
            return ConceptAnswer(vector)
        return ConceptAnswer(
            concept.vector, concept.offset, (ConceptUse(concept.name, True, 1.0, concept.images),)
        )
    asked, offset, uses = vector, 0.0, []
    for key in dict.fromkeys(span.key for span in concepts.index.within(text)):
        concept = concepts.concepts[key]
        if concept.vector is None or not concept.strength:
            continue
        same = encoder.fingerprint == concepts.fingerprint
        of_name = concept.text if same else text_vector(concept.name)
        asked = asked + np.float32(concept.strength) * (concept.vector - of_name)
        offset += concept.strength * concept.offset
        uses.append(ConceptUse(concept.name, False, concept.strength, concept.images))
    return ConceptAnswer(asked, offset, tuple(uses))
