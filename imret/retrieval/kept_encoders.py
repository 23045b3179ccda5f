"""Encoders that searches load themselves, kept for the next until the store or collection is closed."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING

from imret.models.lazy_encoder import LazyEncoder
from imret.models.safetensors_map import shards_of
from imret.retrieval.collection_encoder import read_as_made
from imret.retrieval.own_model import find_own_model

if TYPE_CHECKING:
    from imret.models.fingerprint import ModelFiles
    from imret.store import Collection, Store

# Of one store: two collections of two models may be searched in turn.
MODELS_KEPT = 2

_KEY = "encoders"
_lock = threading.Lock()
# Of all that are kept: two stores of one model share it.
_encoders: weakref.WeakValueDictionary[Hashable, LazyEncoder] = weakref.WeakValueDictionary()


def kept_encoder(owner: Store | Collection, collection: Collection) -> LazyEncoder:
    """Return the encoder of a collection: an earlier search's, unless the model's files have changed.

    Safe to use from many threads.

    Args:
        owner: Keeps it until it is closed, and no more than the `MODELS_KEPT` used last.
        collection: Its own model is the one.

    Raises:
        ModelUnknown: If only the collection names its model, and this user has not chosen it.
        ModelError: If the model cannot be found.
    """
    identity = collection.identity
    advice = f"give the encoder: encoder=imret.Encoder({identity.model!r})"
    files = read_as_made(find_own_model(collection.name, identity, advice=advice), collection.name, identity)
    try:
        state = _state_of(files)
    except OSError:
        return LazyEncoder(files)  # which says what is wrong with them
    with _lock:
        encoder = _encoders.get(state) or LazyEncoder(files)
        _encoders[state] = encoder
        kept: dict[Hashable, LazyEncoder] = owner.kept.setdefault(_KEY, {})
        kept.pop(state, None)
        kept[state] = encoder
        for oldest in list(kept)[:-MODELS_KEPT]:
            del kept[oldest]
    return encoder


def _state_of(files: ModelFiles) -> Hashable:
    read = [*shards_of(files.weights), *files.text_files.values()]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in read]
    cfg = json.dumps(files.model_cfg, sort_keys=True, default=str)
    return files.model_id, *stats, cfg, files.preprocess
