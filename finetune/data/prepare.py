"""The pictures and texts of a run: decoded, checked, and split into training and validation.

Hides what is left out of training. What was decided is in a Report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.data.duplicates import Leak, find_duplicates, find_leaks
from finetune.data.pixels import ImageSet, Noted, training_size
from finetune.data.records import (
    Record,
    manifest_hash,
    refuse_one_category,
    split_records,
)
from finetune.data.replay import hold_out
from finetune.data.report import Report
from finetune.data.sources import Listing, Sources
from finetune.data.token_lengths import measure_token_lengths
from finetune.model.base_model import Base
from imret.datasets.scan import Skipped
from imret.errors import DataError
from imret.images.phash import ImageHash, cluster
from imret.models.tokenizer import count_tokens
from imret.retrieval.prompts import templates_for


@dataclass(frozen=True)
class Data:
    """The pictures of a run, decoded or ready to be.

    Attributes:
        train: To train on, larger than the model's input so that they can be cropped.
        validation: To score on, at the model's own size.
        replay: Of other things, to show again; None without any.
        captioned: To measure retention on; None without any.
        names: What categories are called, where a file says so.
        report: What was found and decided.
    """

    train: ImageSet
    validation: ImageSet
    replay: ImageSet | None
    captioned: ImageSet | None
    names: Mapping[str, Sequence[str]] | None
    report: Report

    def manifest_hash(self) -> str:
        """Return a hash of the pictures that could be read."""
        image_sets = (self.train, self.validation, self.replay, self.captioned)
        return manifest_hash([record for images in image_sets if images for record in images.records])


# ---- Decoding --------------------------------------------------------------------------------------------


def prepare(
    sources: Sources,
    base: Base,
    config: FinetuneConfig,
    *,
    opened: contextlib.ExitStack,
    on_image: Callable[[int], object] = lambda _: None,
) -> Data:
    """Decode every picture once, leave out what must not be trained on, and split off validation.

    Args:
        sources: From `find_sources`.
        base: Says how pictures are fitted and texts are tokenized.
        config: Says how much is kept in memory and how validation is split off.
        opened: Closes the image sets.
        on_image: Called for each picture that was decoded, with the number of all pictures.

    Raises:
        DataError: If the pictures that can be read and trained on are of one category, a category's name is
            too long for the model, or nothing is left to replay.
        ModelError: If the model's tokenizer cannot be loaded.
    """
    lengths = measure_token_lengths(
        sources.labelled.records,
        sources.replay.records if sources.replay else (),
        lambda text: count_tokens(base.tokenizer, text),
        context=base.context_length,
        names=sources.names,
        templates=templates_for(base.model_cfg),
    )
    decoder = _Decoder(sources, base, opened, on_image)
    cache_bytes = config.cache_mib << 20
    labelled = decoder.decode(sources.labelled, cache_bytes)
    test_set = decoder.decode(sources.test_set, 0, full_paths=True) if sources.test_set else None
    leaks = _drop_leaks(labelled, test_set)
    refuse_one_category(labelled.records, labelled.folder)
    groups, duplicates = find_duplicates(labelled.folder, labelled.records, labelled.hashes)
    train, validation = split_records(
        labelled.records, share=config.validation_share, seed=config.seed, groups=groups.tolist()
    )
    held_out = decoder.at_model_size(labelled, validation, cache_bytes // 4)
    replay = captioned = None
    if sources.replay is not None:
        replay = decoder.decode(sources.replay, cache_bytes // 2)
        leaks += _drop_replay_leaks(replay, held_out, [labelled.hashes[i] for i in validation], test_set)
        if not replay.records:
            raise DataError(
                f"of the {len(sources.replay.records):,} captioned pictures to replay none can be read and "
                "is no picture of validation or of the test. Mend them, or leave out --replay."
            )
        shown, kept = hold_out(cluster(replay.hashes).tolist(), seed=config.seed)
        captioned = decoder.at_model_size(replay, kept, cache_bytes // 4)
        replay.select(shown)
    categories = {record.category for record in labelled.records}
    report = Report(
        train=[labelled.records[i] for i in train],
        validation=held_out.records,
        names=sources.names,
        skipped=decoder.skipped,
        noted=decoder.noted,
        duplicates=duplicates,
        leaks=leaks,
        test=sources.n_test,
        against=None if test_set is None else len(test_set.records),
        lengths=lengths,
        lost=sorted({record.category for record in sources.labelled.records} - categories),
    )
    return Data(labelled.select(train), held_out, replay, captioned, sources.names, report)


class _Decoder:
    """Makes the image sets of a run; collects what cannot be read in `skipped`, notes in `noted`."""

    def __init__(
        self,
        sources: Sources,
        base: Base,
        opened: contextlib.ExitStack,
        on_image: Callable[[int], object],
    ) -> None:
        self.skipped: list[Skipped] = []
        self.noted: list[Noted] = []
        self._preprocess, self._opened = base.preprocess, opened
        listings = (sources.labelled, sources.replay, sources.test_set)
        total = sum(len(listing.records) for listing in listings if listing)
        self._on_image = lambda: on_image(total)

    def decode(self, listing: Listing, budget_bytes: int, *, full_paths: bool = False) -> ImageSet:
        """Decode and hash a listing at the size that training crops from."""
        size = training_size(self._preprocess.size)
        images = self._image_set(listing.root, listing.records, size, budget_bytes)
        skipped = images.load(self._on_image, with_hashes=True)
        noted = images.noted
        if full_paths:
            skipped = [replace(skip, path=str(listing.root / skip.path)) for skip in skipped]
            noted = [replace(one, path=str(listing.root / one.path)) for one in noted]
        self.skipped += skipped
        self.noted += noted
        return images

    def at_model_size(self, images: ImageSet, positions: Sequence[int], budget_bytes: int) -> ImageSet:
        """Return some of the pictures at the model's own size, decoded when they are first scored."""
        records = [images.records[i] for i in positions]
        return self._image_set(images.folder, records, self._preprocess.size, budget_bytes)

    def _image_set(
        self, root: Path, records: Sequence[Record], size: tuple[int, int], budget_bytes: int
    ) -> ImageSet:
        images = ImageSet(root, records, size=size, preprocess=self._preprocess, budget_bytes=budget_bytes)
        self._opened.callback(images.close)
        return images


def _drop_leaks(labelled: ImageSet, test_set: ImageSet | None) -> list[Leak]:
    """Leave out duplicates of test pictures and of those that a manifest means for validation."""
    leaks: dict[int, Leak] = {}
    if test_set is not None:
        leaks = find_leaks(labelled.records, labelled.hashes, test_set.records, test_set.hashes)
    validation = [i for i, record in enumerate(labelled.records) if record.split == "validation"]
    if validation:
        records = [labelled.records[i] for i in validation]
        hashes = [labelled.hashes[i] for i in validation]
        found = find_leaks(labelled.records, labelled.hashes, records, hashes)
        leaks = {i: leak for i, leak in found.items() if labelled.records[i].split == "train"} | leaks
    labelled.select([i for i in range(len(labelled.records)) if i not in leaks])
    return [*leaks.values()]


def _drop_replay_leaks(
    replay: ImageSet, held_out: ImageSet, held_out_hashes: Sequence[ImageHash], test_set: ImageSet | None
) -> list[Leak]:
    """Leave out of replay the duplicates of validation and test pictures."""
    leaks = find_leaks(replay.records, replay.hashes, held_out.records, held_out_hashes)
    if test_set is not None:
        leaks = find_leaks(replay.records, replay.hashes, test_set.records, test_set.hashes) | leaks
    replay.select([i for i in range(len(replay.records)) if i not in leaks])
    return [*leaks.values()]
