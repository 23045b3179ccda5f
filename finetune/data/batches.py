"""Class-balanced batches: which pictures a step trains on, and with which texts.

What is drawn is a pure function of the seed and the step, so that an interrupted run resumes exactly where it
was from the number of the step alone. Knows nothing of pixels and models.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.captions import caption_key, category_captions
from finetune.data.records import Record, by_category
from finetune.data.species import TEXT_KINDS

# Numbers of random streams: the seed, one of these and a counter make the stream's own seed. Number 2 is in
# finetune.data.records.
_ORDER_CATEGORIES, _ORDER_IMAGES, _, _LEVEL, _CAPTION, AUGMENT_STREAM, _SPECIES = range(7)


@dataclass(frozen=True)
class Batch:
    """The pictures and texts of one step.

    Attributes:
        positions: (B,) positions of the records.
        text_sets: Each has one text for every picture, and a loss of its own.
    """

    positions: NDArray[np.int64]
    text_sets: tuple[TextSet, ...]


@dataclass(frozen=True)
class TextSet:
    """Texts for the B pictures of a batch, equal ones merged.

    Attributes:
        captions: U texts, all different.
        match: (B, U) bool, True where the text is true of the picture.
        counts: (U,) float, for how many of the B pictures the text was drawn.
    """

    captions: list[str]
    match: Tensor
    counts: Tensor


class Batches:
    """Class-balanced batches, each a function of the seed and the step alone.

    Categories take turns in an order that is shuffled every round, so their counts in any batch differ by one
    at most. Within a category every picture comes once before any comes again. An epoch is as many steps as
    it takes to draw as many pictures as there are; small categories are seen more often in it.

    Args:
        records: The training pictures.
        batch_size: Pictures per step; no more than there are.
        seed: Decides the order.
        category_share: Of the text sets, how many pair pictures with the name of their category rather than
            one of their own captions, in [0, 1]. Without captions it is all of them.
        captions_per_picture: Text sets of a batch; no more than the most captions of a picture.
        species_share: Of the text sets, how many pair pictures with their species, in [0, 1]; 0 where no
            species is known.
        species_kinds: Which of the kinds of text of finetune.data.species; a set has one kind.
        names: What categories are called, where it is not what imret.retrieval.prompts says.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        batch_size: int,
        seed: int,
        category_share: float = 1.0,
        captions_per_picture: int = 1,
        species_share: float = 0.0,
        species_kinds: Sequence[str] = TEXT_KINDS,
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.records = records
        self.batch_size = min(batch_size, len(records))
        self.seed = seed
        most = max((len(record.captions) for record in records), default=0)
        self.category_share = category_share if most else 1.0
        self._n_text_sets = max(1, min(captions_per_picture, most))
        self._n_captions = most
        self._names = names
        taxa = {record.taxon for record in records if record.taxon is not None}
        self._kinds = [kind for kind in species_kinds if any(taxon.has(kind) for taxon in taxa)]
        self._species_share = species_share if self._kinds else 0.0
        # By species, all texts that are true of it: rows may differ in what they name of one species.
        self._true_of_species: dict[str, set[str]] = defaultdict(set)
        for taxon in taxa:
            self._true_of_species[taxon.key].update(caption_key(taxon.text(kind)) for kind in self._kinds)
        positions_of = by_category(records)
        self.categories = tuple(positions_of)
        self._positions = [np.asarray(positions) for positions in positions_of.values()]
        # Not a method: a cache on a method would keep the records alive.
        self._shuffled = lru_cache(maxsize=4 * len(self.categories) + 4)(_shuffled)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that draw about as many pictures as there are."""
        return max(1, round(len(self.records) / self.batch_size))

    def draw(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0."""
        positions = self._draw_positions(step)
        rng = np.random.default_rng((self.seed, _LEVEL, step))
        named = self._category_names(step, positions)
        by_category = rng.random(self._n_text_sets) < self.category_share
        # The same place in every picture's list of captions, so that a set compares texts of one kind: if
        # some were detailed and some bare, wording would tell pictures apart that their content does not.
        places = rng.permutation(self._n_captions)
        # A stream of its own, so that data without species is drawn as in earlier versions.
        at_species = np.random.default_rng((self.seed, _SPECIES, step))
        sets = []
        for number, use_names in enumerate(by_category):
            if at_species.random() < self._species_share:
                kind = self._kinds[at_species.integers(len(self._kinds))]
                sets.append(self._species_texts(positions, named, kind))
            elif use_names:
                sets.append(text_set(named, [{caption_key(name)} for name in named]))
            else:
                sets.append(self._own_texts(positions, named, place=int(places[number])))
        return Batch(positions, tuple(sets))

    def _draw_positions(self, step: int) -> NDArray[np.int64]:
        n_categories = len(self.categories)
        positions = []
        for slot in range(step * self.batch_size, (step + 1) * self.batch_size):
            turn, place = divmod(slot, n_categories)
            category = int(self._shuffled(self.seed, _ORDER_CATEGORIES, 0, turn, n_categories)[place])
            members = self._positions[category]
            round_, place = divmod(turn, len(members))
            order = self._shuffled(self.seed, _ORDER_IMAGES, category, round_, len(members))
            positions.append(members[order[place]])
        return np.asarray(positions, dtype=np.int64)

    def _category_names(self, step: int, positions: NDArray[np.int64]) -> list[str]:
        draw = int(np.random.default_rng((self.seed, _CAPTION, step)).integers(1 << 30))
        texts = category_captions(self.categories, draw=draw, names=self._names)
        captions = dict(zip(self.categories, texts, strict=True))
        return [captions[self.records[i].category] for i in positions]

    def _own_texts(self, positions: NDArray[np.int64], named: Sequence[str], *, place: int) -> TextSet:
        """Return the captions at one place; a picture that has none goes by the name of its category."""
        drawn, true_of = [], []
        for i, name in zip(positions, named, strict=True):
            options = self.records[i].captions or (name,)
            drawn.append(options[place % len(options)])
            true_of.append({caption_key(text) for text in (*options, name)} | self._of_species(i))
        return text_set(drawn, true_of)

    def _species_texts(self, positions: NDArray[np.int64], named: Sequence[str], kind: str) -> TextSet:
        """Return texts of one kind; a picture of no known species goes by the name of its category."""
        taxa = [self.records[i].taxon for i in positions]
        drawn = [taxon.text(kind) if taxon else name for taxon, name in zip(taxa, named, strict=True)]
        return text_set(
            drawn,
            [{caption_key(name)} | self._of_species(i) for i, name in zip(positions, named, strict=True)],
        )

    def _of_species(self, position: int) -> set[str]:
        taxon = self.records[position].taxon
        return self._true_of_species[taxon.key] if taxon else set()


def text_set(drawn: Sequence[str], true_of: Sequence[set[str]]) -> TextSet:
    """Merge equal texts.

    Args:
        drawn: A text for each picture.
        true_of: For each picture the keys of all texts that are true of it.
    """
    texts: dict[str, str] = {}  # by key, in order of first use
    for text in drawn:
        texts.setdefault(caption_key(text), text)
    counts = Counter(caption_key(text) for text in drawn)
    return TextSet(
        list(texts.values()),
        torch.tensor([[key in keys for key in texts] for keys in true_of]),
        torch.tensor([counts[key] for key in texts], dtype=torch.float32),
    )


def _shuffled(seed: int, stream: int, number: int, round_: int, n: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, stream, number, round_)).permutation(n)
