"""Replay: captioned pictures of the kind the base was trained on, shown again against forgetting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from finetune.data.batches import TextSet, text_set
from finetune.data.captions import caption_key
from finetune.data.pixels import ImageSet

# Numbers of random streams; finetune.data.batches has the others.
_REPLAY_ORDER, _REPLAY_CAPTION, _REPLAY_SPLIT = 100, 101, 102

# Share of the captioned pictures that is kept out of replay, to measure what is forgotten.
_HELD_OUT = 0.2


class Replay:
    """Batches of captioned pictures, each a function of the seed and the step alone.

    Args:
        pictures: The pictures to replay; every record has captions.
        batch_size: Pictures a step; no more than there are.
        seed: Decides the order.
    """

    def __init__(self, pictures: ImageSet, *, batch_size: int, seed: int) -> None:
        self._pictures = pictures
        self.batch_size = min(batch_size, len(pictures.records))
        self._seed = seed

    def draw(self, step: int) -> tuple[list[int], TextSet]:
        """Return the positions of a step's pictures, and one caption of each."""
        n = len(self._pictures.records)
        positions = []
        for slot in range(step * self.batch_size, (step + 1) * self.batch_size):
            round_, place = divmod(slot, n)
            order = np.random.default_rng((self._seed, _REPLAY_ORDER, round_)).permutation(n)
            positions.append(int(order[place]))
        rng = np.random.default_rng((self._seed, _REPLAY_CAPTION, step))
        records = [self._pictures.records[i] for i in positions]
        drawn = [record.captions[int(rng.integers(len(record.captions)))] for record in records]
        return positions, text_set(
            drawn, [{caption_key(caption) for caption in record.captions} for record in records]
        )

    def pixels(self, positions: Sequence[int]) -> Tensor:
        """Return (B, H, W, 3) uint8 pixels of the pictures at these positions."""
        return self._pictures.batch(positions)


def hold_out(groups: Sequence[int], *, seed: int) -> tuple[list[int], list[int]]:
    """Return which captioned pictures are replayed, and which are kept to measure retention.

    Args:
        groups: For each picture the number of its group; pictures of one group, such as duplicates, stay
            together.
        seed: Decides which.
    """
    sizes = Counter(groups)
    numbers = sorted(sizes)
    order = np.random.default_rng((seed, _REPLAY_SPLIT)).permutation(len(numbers))
    most, held = round(_HELD_OUT * len(groups)), set[int]()
    for number in (numbers[i] for i in order):
        if sizes[number] <= most:
            held.add(number)
            most -= sizes[number]
    return (
        [i for i, number in enumerate(groups) if number not in held],
        [i for i, number in enumerate(groups) if number in held],
    )
