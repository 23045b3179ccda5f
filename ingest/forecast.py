"""What an ingest is about to do, and how long that takes here: told while it can still be stopped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress

from imret.errors import StoreError, counted
from imret.models.choices import smaller_than
from imret.models.lazy_encoder import LazyEncoder
from imret.sources.stored import count_source
from imret.store import Store
from ingest.sources import Source

_FEW = 20  # pictures that are embedded before an estimate is made
_LONG_S = 120  # from here on a smaller model is worth naming


class Forecast:
    """How many pictures are to be embedded, and what that takes: looked at before, told when it begins.

    Args:
        store: Where the collection is.
        collection: Its name.
        sources: Folders to ingest.
        rebuild: Whether every picture is embedded again.
    """

    def __init__(self, store: Store, collection: str, sources: Sequence[Source], *, rebuild: bool) -> None:
        self._sources = sources
        self._stored = 0
        self._is_new = store.live(collection) is None
        if not self._is_new and not rebuild:
            with suppress(StoreError), closing(store.open(collection)) as opened:  # the ingest tells of it
                self._stored = sum(count_source(opened, source.root) for source in sources)

    def told(self, encoder: LazyEncoder) -> str:
        """Return a sentence for whoever waits; loads torch, and takes a second.

        Args:
            encoder: Is about to embed them.
        """
        how = f"with {encoder.model_id} on {encoder.device} in {encoder.precision}"
        counts = [source.count() for source in self._sources]
        if None in counts:
            return f"how many there are to embed shows as they are read; {how}"
        # By names of files, so that some may turn out to be no pictures, or to be copies.
        n = max(1, sum(filter(None, counts)) - self._stored)
        if n <= _FEW:
            return f"{counted(n)} to embed {how}"
        from imret.models.speed import duration_in_words, estimate_speed, measure_speed, speed_of

        where = {"device": encoder.device, "precision": encoder.precision}
        speed = estimate_speed(encoder.files.model_cfg, **where) or measure_speed(encoder)
        seconds = n / speed.pictures_per_s
        told = f"{counted(n)} to embed, {duration_in_words(seconds)} {how}"
        smaller = smaller_than(encoder.model_id) if self._is_new and seconds > _LONG_S else None
        other = None if smaller is None else speed_of(smaller.name, **where)
        if smaller is None or other is None:
            return told
        quicker = duration_in_words(n / other.pictures_per_s)
        return (
            f"{told}; with --model {smaller.name} {quicker} (to choose that, stop this now with Ctrl-C: "
            "a collection keeps its first model)"
        )
