"""Encoders that searches load themselves, kept for the next until the store or collection is closed."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING

from imret.models.lazy_encoder import LazyEncoder
from imret.models.resolve import resolve_model
from imret.models.safetensors_map import shards_of
from imret.retrieval.collection_encoder import read_as_made
from imret.retrieval.own_model import find_own_model

if TYPE_CHECKING:
    from imret.models.fingerprint import ModelFiles
    from imret.store import Collection, Identity, Store

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
    kept = _kept_by(owner)
    encoder = kept.encoder_of(identity)
    if encoder is not None:
        return encoder
    advice = f"give the encoder: encoder=imret.Encoder({identity.model!r})"
    found = find_own_model(collection.name, identity, advice=advice)
    files = read_as_made(found, collection.name, identity)
    try:
        return kept.keep(identity, _state_of(found), files, _state_of(files))
    except OSError:
        return LazyEncoder(files)  # which says what is wrong with them


class _Kept:
    """What one owner keeps: encoders by what they were read from, and which of them is whose."""

    def __init__(self) -> None:
        self._encoders: dict[Hashable, LazyEncoder] = {}
        # Of each identity the state of the model that it names, and that of its encoder. Whether the user has
        # chosen the model, and which it is by its content, takes longer to find out than all else of a search
        # of few pictures, and is the same as long as the model's files are.
        self._found: dict[Identity, tuple[Hashable, Hashable]] = {}

    def encoder_of(self, identity: Identity) -> LazyEncoder | None:
        """Return what is kept for an identity; None where the model that it names is another now."""
        with _lock:
            found = self._found.get(identity)
        if found is None:
            return None
        try:
            named = _state_of(resolve_model(identity.model))
        except OSError:
            return None
        with _lock:
            encoder = self._encoders.get(found[1])
            if named != found[0] or encoder is None:
                return None
            self._use(found[1], encoder)
            return encoder

    def keep(self, identity: Identity, named: Hashable, files: ModelFiles, state: Hashable) -> LazyEncoder:
        """Return the encoder of a model's files, this owner's or another's if there is one, and keep it."""
        with _lock:
            encoder = _encoders.get(state) or LazyEncoder(files)
            _encoders[state] = encoder
            self._found[identity] = (named, state)
            self._use(state, encoder)
            return encoder

    def _use(self, state: Hashable, encoder: LazyEncoder) -> None:
        self._encoders.pop(state, None)
        self._encoders[state] = encoder
        for oldest in list(self._encoders)[:-MODELS_KEPT]:
            del self._encoders[oldest]
        self._found = {of: found for of, found in self._found.items() if found[1] in self._encoders}


def _kept_by(owner: Store | Collection) -> _Kept:
    kept: _Kept = owner.kept.setdefault(_KEY, _Kept())
    return kept


def _state_of(files: ModelFiles) -> Hashable:
    read = [*shards_of(files.weights), *files.text_files.values()]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in read]
    cfg = json.dumps(files.model_cfg, sort_keys=True, default=str)
    return files.model_id, *stats, cfg, files.preprocess
