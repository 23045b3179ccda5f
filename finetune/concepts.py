"""The last stage of a run: concepts of its categories, learnt from the pictures it was trained on.

They lie in the model folder, are of the model as it was shipped, and change no weight of it. Pictures are
embedded as `imret learn` does it, so both learn the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.data.prepare import Data
from finetune.data.records import Record
from imret.concepts.examples import Example, embed_files
from imret.concepts.learn import Lesson, Taught, keep_in_folder, learn
from imret.datasets.names_csv import name_key
from imret.errors import DataError, counted, some_of
from imret.evaluation.metrics import average_precision
from imret.files import write_atomically
from imret.images.views import MOST
from imret.models.encoder import Encoder
from imret.retrieval.concept_query import FILE_NAME, read_model_concepts
from imret.retrieval.prompts import common_names

if TYPE_CHECKING:
    from imret.retrieval.concepts import Concepts


@dataclass(frozen=True, eq=False)
class HeldOut:
    """How the names of the categories rank the pictures that a run keeps for validation.

    Attributes:
        scores: (Q, N) of each category's name, by its concept where there is one.
        labels: (N,) int in [0, Q).
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def relevant(self) -> NDArray[np.bool_]:
        """(Q, N) which pictures are of which category."""
        own: NDArray[np.bool_] = self.labels[None] == np.arange(len(self.scores))[:, None]
        return own

    @property
    def map(self) -> float:
        """Mean average precision over the categories."""
        return float(average_precision(self.scores, self.relevant).mean())


@dataclass(eq=False)
class ConceptStage:
    """Learns concepts into model folders, from the pictures of one run.

    Models that share an image tower share its embeddings: each picture is embedded once.

    Args:
        data: Of the run.
        device: Where pictures are embedded.
        say: Called with sentences.
        on_image: Called for each picture that is embedded, with the number of all pictures.
    """

    data: Data
    device: torch.device
    say: Callable[[str], None] = lambda _: None
    on_image: Callable[[int], object] = lambda _: None
    _embedded: dict[str, dict[str, Example]] = field(default_factory=dict)  # by image tower

    def learn_into(self, folder: Path, *, source: str) -> tuple[dict[str, Any], HeldOut | None]:
        """Learn the concepts of the model in a folder, and keep them there.

        What keeps them from being learnt is said, and noted; the model is whole without.

        Args:
            folder: A model folder.
            source: Where the pictures lie, for people.

        Returns:
            What training.json says of them; and how names rank validation, where there is some.

        Raises:
            ModelError: If the model cannot embed.
            OSError: If they cannot be written.
        """
        encoder = Encoder(folder, device=self.device)
        examples = self._examples(encoder)
        try:
            lesson = self._learn(encoder, examples, source)
            notes = [*lesson.notes, *keep_in_folder(folder, lesson.concepts)]
        except DataError as error:
            self.say(f"Warning: no concepts are learnt: {error}")
            return {"none": str(error)}, None
        for note in notes:
            self.say(f"concepts: {note}")
        held_out = self._rank(lesson.concepts, examples)
        about = _as_json(lesson)
        if held_out is not None:
            about["validation_map"] = round(held_out.map, 4)
        self.say(_describe(lesson, held_out))
        return about, held_out

    def _examples(self, encoder: Encoder) -> dict[str, Example]:
        """Return the pictures of the run, embedded, by path; those that cannot be read are left out."""
        tower = encoder.images_fingerprint
        if tower not in self._embedded:
            seen, scored = self._files()
            total = len(seen) + len(scored)
            found: dict[str, Example] = {}
            for files, views in ((seen, MOST), (scored, 1)):
                embedded = embed_files(files, encoder, views=views, on_picture=lambda: self.on_image(total))
                found |= embedded.examples
                if embedded.skipped:
                    self.say(
                        f"concepts: {counted(len(embedded.skipped))} cannot be read any more: "
                        f"{some_of(list(embedded.skipped), 3)}"
                    )
            self._embedded = {tower: found}  # those of another tower are not asked for again
        return self._embedded[tower]

    def _files(self) -> tuple[list[str], list[str]]:
        """Return the files that concepts are learnt from, and those that they are judged by."""
        data = self.data
        sets = (data.train, data.replay)
        seen = [_file(images.folder, record) for images in sets if images for record in images.records]
        scored = [_file(data.validation.folder, record) for record in data.validation.records]
        return list(dict.fromkeys(seen)), list(dict.fromkeys(scored))

    def _learn(self, encoder: Encoder, examples: Mapping[str, Example], source: str) -> Lesson:
        by_category: dict[str, list[Example]] = {}
        train, replay = self.data.train, self.data.replay
        for record in train.records:
            if (example := examples.get(_file(train.folder, record))) is not None:
                by_category.setdefault(record.category, []).append(example)
        taught = []
        for category, pictures in sorted(by_category.items()):
            name, *more = self._called(category)
            taught.append(Taught(name, tuple(more), pictures))
        others: Sequence[Example] = ()
        if replay is not None:
            files = (_file(replay.folder, record) for record in replay.records)
            others = [examples[file] for file in files if file in examples]
        return learn(encoder, taught, others=others, source=source)

    def _called(self, category: str) -> tuple[str, ...]:
        """Return all that a category goes by, the name for sentences first and its folder's last."""
        folder = " ".join(category.replace("_", " ").split())
        return tuple(dict.fromkeys((*common_names(category, self.data.names), folder or category)))

    def _rank(self, concepts: Concepts, examples: Mapping[str, Example]) -> HeldOut | None:
        """Return how concepts rank validation; None where it has fewer than two categories."""
        validation = self.data.validation
        asked = {
            name_key(name): (one.text if one.vector is None else one.vector)
            for one in concepts.concepts.values()
            for name in one.names
        }
        found = [
            (record.category, examples[file].vectors[0])
            for record in validation.records
            if (file := _file(validation.folder, record)) in examples
        ]
        keys = {category: name_key(self._called(category)[0]) for category, _ in found}
        found = [(category, vector) for category, vector in found if keys[category] in asked]
        categories = sorted({category for category, _ in found})
        if len(categories) < 2:
            return None
        queries = np.stack([asked[keys[category]] for category in categories])
        labels = np.array([categories.index(category) for category, _ in found], dtype=np.int64)
        return HeldOut(queries @ np.stack([vector for _, vector in found]).T, labels)


def _file(folder: Path, record: Record) -> str:
    return str(folder / record.path)


def _describe(lesson: Lesson, held_out: HeldOut | None) -> str:
    kept = sum(row.text_kept for row in lesson.rows)
    said = f"learnt {counted(len(lesson.rows), 'concept')}"
    if lesson.text is not None and lesson.learnt is not None:
        said += (
            f": mAP {lesson.text:.3f} by the texts, {lesson.learnt:.3f} by what was learnt, cross-validated"
        )
    if held_out is not None:
        said += f"; on validation {held_out.map:.3f}"
    return said + (f"; {kept} keep the text, which is the better" if kept else "")


def _as_json(lesson: Lesson) -> dict[str, Any]:
    """Return what training.json says of a lesson."""
    calibration = next(iter(lesson.concepts.calibrations), None)
    errors = None
    if calibration is not None:
        errors = {"texts": round(calibration.error_before, 4), "learnt": round(calibration.error, 4)}
    return {
        "text": lesson.text,
        "learnt": lesson.learnt,
        "gain": None if lesson.gain is None else [*lesson.gain],
        "shrinkage": lesson.shrinkage,
        "calibration_error": errors,
        "names": [{**asdict(row), "gain": None if row.gain is None else [*row.gain]} for row in lesson.rows],
        "notes": list(lesson.notes),
    }


def call_model_of_concepts(folder: Path) -> None:
    """Have the concepts of a folder say that they were learnt with the model that lies there now."""
    concepts = read_model_concepts(folder)
    if concepts is not None:
        named = replace(concepts, model=str(folder.absolute()))
        write_atomically(folder / FILE_NAME, named.to_bytes())
