"""Concepts: names whose place in the joint space was learnt from pictures, and the document they lie in.

The document is a safetensors file, bound to the image tower whose pictures they were learnt from. It lies in
a model's folder, or is kept with a collection. How concepts are learnt is in `imret.concepts`, their part in
a query in `imret.retrieval.concept_query`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imret.errors import DataError, some_of
from imret.retrieval.names import NameIndex

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder

FORMAT = "imret-concepts-1"


class NewerFormat(DataError):
    """Concepts that a newer imret wrote: never replaced."""


# What people may type as a name; a longer one is a mistake, or somebody's attack.
MAX_NAME_CHARS = 200
# Of what was learnt: longer vectors are nobody's scores, and their sums would be no numbers.
_MAX_LENGTH = 1e6


@dataclass(frozen=True, eq=False)
class Concept:
    """A name and what was learnt of it.

    Attributes:
        name: What it is called, for people and in sentences.
        names: All that it goes by, `name` among them: folder's name, common and scientific ones.
        vector: (D,) what a query asks with in the place of the text: not unit, but with scores that spread as
            the text's do; None where the text is the better.
        text: (D,) unit vector of the text, as it was when it was learnt.
        offset: What the vector's scores lack to have the mean that the text's have, over all pictures.
        strength: In [0, 1]; how far a query that holds the name is moved.
        images: How many pictures it was learnt from.
        held_out: Average precision on pictures held out, of the text and of what was learnt; None where they
            were too few to hold any out.
        source: Where the pictures came from, for people.
        learnt: Date, as 2026-12-31.
    """

    name: str
    names: tuple[str, ...]
    vector: NDArray[np.float32] | None
    text: NDArray[np.float32]
    offset: float
    strength: float
    images: int
    held_out: tuple[float, float] | None = None
    source: str = ""
    learnt: str = field(default_factory=lambda: date.today().isoformat())


@dataclass(frozen=True)
class Calibration:
    """How scores of concepts that were learnt together become probabilities.

    The logit of a picture and a concept is `scale` times their inner product, plus the concept's bias.

    Attributes:
        biases: By the name of the concept.
        scale: > 0.
        error_before: Expected calibration error of the text alone, on pictures held out; in [0, 1].
        error: The same of the concepts.
    """

    biases: Mapping[str, float]
    scale: float
    error_before: float
    error: float


@dataclass(frozen=True, eq=False)
class Concepts:
    """What was learnt with one image tower.

    Attributes:
        images_fingerprint: Of the tower.
        fingerprint: Of the whole encoder that read the names.
        model: What that is called.
        dim: Length of its vectors.
        concepts: By name.
        calibrations: Of those that were learnt together.
    """

    images_fingerprint: str
    fingerprint: str
    model: str
    dim: int
    concepts: Mapping[str, Concept] = field(default_factory=dict)
    calibrations: tuple[Calibration, ...] = ()

    @classmethod
    def of(
        cls, encoder: QueryEncoder, concepts: Iterable[Concept] = (), *calibrations: Calibration
    ) -> Concepts:
        """Return concepts that an encoder learnt."""
        by_name = {concept.name: concept for concept in concepts}
        return cls(
            encoder.images_fingerprint,
            encoder.fingerprint,
            encoder.model_id,
            encoder.dim,
            by_name,
            calibrations,
        )

    @cached_property
    def index(self) -> NameIndex[str]:
        """The concepts by their names; a name of two is neither's."""
        return NameIndex({name: concept.names for name, concept in self.concepts.items()})

    def with_others(self, others: Concepts) -> Concepts:
        """Return these and others of the same tower; of two of one name, the other's."""
        replaced = others.concepts.keys() & self.concepts.keys()
        mine = (one for one in self.calibrations if not replaced & one.biases.keys())
        return replace(
            others,
            concepts={**self.concepts, **others.concepts},
            calibrations=(*mine, *others.calibrations),
        )

    def without(self, names: Iterable[str]) -> Concepts:
        """Return those that are called otherwise.

        Raises:
            DataError: If one of the names is no concept's.
        """
        found: dict[str, None] = {}
        for name in names:
            key = name if name in self.concepts else self.index.exact(name)
            if key is None:
                known = f"There are: {some_of(list(self.concepts))}" if self.concepts else "There are none."
                raise DataError(f"no concept {some_of([name])!r}. {known}")
            found[key] = None
        return replace(
            self,
            concepts={name: one for name, one in self.concepts.items() if name not in found},
            calibrations=tuple(one for one in self.calibrations if not found.keys() & one.biases.keys()),
        )

    def calibration_of(self, names: Iterable[str]) -> Calibration | None:
        """Return a calibration that all of these concepts are in, if they were learnt together."""
        wanted = set(names)
        return next((one for one in self.calibrations if wanted <= one.biases.keys()), None)

    # ---- The document --------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Return them as a safetensors file: header of JSON, then float32; nothing in it is ever run."""
        from safetensors.numpy import save

        entries = [
            {**asdict(replace(one, vector=None, text=None)), "learnt_better": one.vector is not None}  # type: ignore[arg-type]
            for one in self.concepts.values()
        ]
        for entry in entries:
            del entry["vector"], entry["text"]
        shape = (len(entries), self.dim)
        zero = np.zeros(self.dim, dtype=np.float32)
        vectors = [zero if one.vector is None else one.vector for one in self.concepts.values()]
        tensors = {
            "vectors": np.asarray(vectors, dtype=np.float32).reshape(shape),
            "texts": np.asarray([one.text for one in self.concepts.values()], dtype=np.float32).reshape(
                shape
            ),
        }
        about = {
            "format": FORMAT,
            "images_fingerprint": self.images_fingerprint,
            "fingerprint": self.fingerprint,
            "model": self.model,
            "dim": self.dim,
            "concepts": entries,
            "calibrations": [asdict(one) for one in self.calibrations],
        }
        # One entry: safetensors writes several in an order that differs from run to run.
        return save(tensors, metadata={"concepts": json.dumps(about)})

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Concepts:
        """Read what `to_bytes` gave.

        Args:
            content: The file.
            where: What to call it in an error.

        Raises:
            DataError: If it is not that, or of a newer format.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            size = int.from_bytes(content[:8], "little")
            about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["concepts"])
            if about["format"] != FORMAT:
                raise NewerFormat(f"{where} is of format {about['format']!r}, not {FORMAT!r}. Upgrade imret.")
            tensors = load(content)
            return _checked(about, tensors["vectors"], tensors["texts"])
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
        ) as error:
            raise DataError(
                f"{where} holds no concepts of imret's: {type(error).__name__}: {error}. Learn them again: "
                "imret learn --help"
            ) from error


def _checked(about: dict[str, Any], vectors: NDArray[np.float32], texts: NDArray[np.float32]) -> Concepts:
    """Return concepts of what a file says, which may be anybody's.

    Raises:
        ValueError: If it contradicts itself.
    """
    entries, dim = about["concepts"], int(about["dim"])
    for tensor in (vectors, texts):
        if (
            tensor.dtype != np.float32
            or tensor.shape != (len(entries), dim)
            or not (np.abs(tensor) < _MAX_LENGTH).all()
        ):
            raise ValueError(f"{len(entries)} concepts of {dim} finite float32 are expected")
    concepts = {}
    for entry, vector, text in zip(entries, vectors, texts, strict=True):
        better, held_out = bool(entry.pop("learnt_better")), entry.pop("held_out")
        names, strength = tuple(map(str, entry.pop("names"))), float(entry.pop("strength"))
        offset = float(entry["offset"])
        if not 0 <= strength <= 1 or not np.isfinite(offset) or (better and not vector.any()):
            raise ValueError(f"the concept {entry['name']!r} is out of range")
        name = check_name(str(entry["name"]))
        if name in concepts:
            raise ValueError(f"{name!r} is there twice")
        concepts[name] = Concept(
            name,
            tuple(map(check_name, names)),
            vector if better else None,
            text,
            offset,
            strength,
            int(entry["images"]),
            None if held_out is None else (float(held_out[0]), float(held_out[1])),
            str(entry["source"]),
            str(entry["learnt"]),
        )
    calibrations = tuple(
        Calibration(
            {str(name): float(bias) for name, bias in one["biases"].items()},
            float(one["scale"]),
            float(one["error_before"]),
            float(one["error"]),
        )
        for one in about["calibrations"]
    )
    for one in calibrations:
        if not (
            one.scale > 0
            and np.isfinite([one.scale, one.error_before, one.error, *one.biases.values()]).all()
        ):
            raise ValueError("a calibration is out of range")
    fingerprints = str(about["images_fingerprint"]), str(about["fingerprint"])
    return Concepts(*fingerprints, str(about["model"]), dim, concepts, calibrations)


def check_name(name: str) -> str:
    """Return a name as it is kept, with its words parted by one space.

    Raises:
        DataError: If it is empty, too long, or holds what is not printed.
    """
    shown = some_of([name[:60]])
    words = " ".join(name.split())
    if not words:
        raise DataError("the name is empty. Say what the pictures show: --name 'my dog'")
    if len(words) > MAX_NAME_CHARS:
        raise DataError(
            f"the name {shown!r}... has {len(words):,} characters, and at most {MAX_NAME_CHARS} can be asked "
            "for. Give a shorter one."
        )
    if not words.isprintable():
        raise DataError(f"the name {shown!r} holds control characters, which nobody types. Leave them out.")
    return words
