"""Query vectors kept on disk, so that a text asked before costs neither torch nor a model.

    encoder = LazyEncoder("models/nature")
    vector = encoder.encode_mean(["a photo of a mushroom.", "a picture of a mushroom."])

One small file a query below the user's cache folder (IMRET_HOME/cache where that is set), rather than SQLite:
a hit reads in 0.02 ms instead of 0.3 ms (24 ms where it also notes the use), and kills, network drives and
other processes can do it no harm. Whatever is wrong with the cache, the vector is right: it is computed then.
IMRET_QUERY_CACHE=off turns it off.

The first few new texts of a process cost no torch either: `imret.models.fast.text_numpy` encodes them,
unless torch is there already, or a device or bf16 is asked for. IMRET_LIGHT_TEXT=off turns that off.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from imret.defaults import DEFAULT_MODEL
from imret.disk_cache import DiskCache
from imret.models.download import advice_for
from imret.models.embedding import unit_mean
from imret.models.fingerprint import ModelFiles, ModelInfo
from imret.models.resolve import open_clip_version, resolve_model
from imret.settings import __version__, cache_dir, read_settings

if TYPE_CHECKING:
    from imret.images.decode import Source
    from imret.models.encoder import Encoder
    from imret.models.fast.text_numpy import NumpyTextTower

T = TypeVar("T")

# 10,000 vectors of 1,024 float32, on file systems that give out 4 KiB at a time.
MAX_CACHE_BYTES = 80_000_000

# Rows of tokens that a process encodes without torch, and how many of them a call counts as for reading the
# weights. Measured with ViT-H/14 on 2 busy cores, in seconds of processor time: 66 rows 1.0 without torch and
# 11.5 with it, 600 rows 4.7 and 13.9, 1,200 rows 9.4 and 16.4, which torch spreads over the cores.
ROWS_WITHOUT_TORCH = 512
_ROWS_A_CALL = 50


class RowBudget:
    """How many more rows of tokens are encoded without torch.

    Args:
        rows: In all.
    """

    def __init__(self, rows: int) -> None:
        self._left = rows

    def allows(self, rows: int) -> bool:
        """Whether a call of so many rows fits."""
        return rows + _ROWS_A_CALL <= self._left

    def take(self, rows: int) -> bool:
        """Count a call of so many rows, if it fits; return whether it does."""
        if not self.allows(rows):
            return False
        self._left -= rows + _ROWS_A_CALL
        return True


class Delegated(Generic[T]):
    """An attribute that is looked up, each time, on the encoder that an encoder wraps.

    Args:
        wrapped: Name of the attribute that holds the encoder.
    """

    def __init__(self, wrapped: str) -> None:
        self._wrapped = wrapped

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> T:
        value: T = getattr(getattr(instance, self._wrapped), self._name)
        return value


class LazyEncoder(ModelInfo):
    """A model that is named but not loaded: it stands in for `Encoder` where queries are asked.

    Knows the model's identity from its files alone. `encode_mean` first looks into the cache; that, and
    everything else that needs the model, loads torch and a tower only when it has to. Calls from several
    threads are safe.

    Attributes:
        files: The model's files.
        device: See `Encoder`, and so for the next three; asking for any of them loads torch.
    """

    row_budget = RowBudget(ROWS_WITHOUT_TORCH)  # of the process: torch is loaded for all encoders or none

    device = Delegated[Any]("encoder")  # a torch.device
    precision = Delegated[str]("encoder")
    calls_at_once = Delegated[int]("encoder")
    logit_bias = Delegated["float | None"]("encoder")

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelFiles = DEFAULT_MODEL,
        *,
        device: str = "auto",
        precision: str = "auto",
        arch: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Find the model; arguments and errors are those of `Encoder`.

        That the device is there is checked when it is first needed.
        """
        if precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be 'auto', 'fp32' or 'bf16', got {precision!r}")
        self.files = (
            model
            if isinstance(model, ModelFiles)
            else resolve_model(
                model,
                arch=arch,
                notify=notify,
                advice=advice_for(device=device, precision=precision),
            )
        )
        self._device, self._precision = device, precision
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()

    def __repr__(self) -> str:
        return f"LazyEncoder({self.model_id!r}, device={self._device!r}, precision={self._precision!r})"

    @property
    def is_loaded(self) -> bool:
        """Whether the encoder itself has been made."""
        return self._encoder is not None

    @property
    def encoder(self) -> Encoder:
        """The encoder itself; the first use imports torch.

        Raises:
            ModelError: If the device is not there.
        """
        with self._loading:  # made once, also where many threads ask for it at once
            if self._encoder is None:
                from imret.models.encoder import Encoder

                self._encoder = Encoder(self.files, device=self._device, precision=self._precision)
            return self._encoder

    def encode_mean(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return what `Encoder.encode_mean` does, from the cache if the same texts were asked for before.

        Keyed by the model's fingerprint, device and precision as asked for ("auto" is a key of its own, of
        fp32 without torch and perhaps bf16 with it: where machines share a cache folder, one may answer with
        what another rounded), the texts, and the versions of imret and open_clip. Texts that the model cuts
        are not kept, so that each time warns.

        Returns:
            (D,) float32 of unit length.
        """
        key = entry_key(self.files.fingerprint, self._device, self._precision, texts)
        vector = load_vector(key, self.dim)
        if vector is not None:
            return vector
        if not texts:
            raise ValueError("the mean of no texts has no direction")
        tower = self._tower_without_torch(texts)
        if tower is None:
            vector = self.encoder.encode_mean(texts)
        else:
            vector = unit_mean(tower.encode_texts(texts), texts, self.model_id)
        if not (tower or self.encoder).truncated(texts):
            save_vector(key, vector)
        return vector

    def encode_bank(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return what `Encoder.encode_texts` does, from the cache if the same N texts were asked for before.

        Meant for texts that every query needs: they are one entry, of 4 N D bytes.

        Returns:
            (N, D) float32, each row of unit length.
        """
        key = entry_key(self.files.fingerprint, self._device, self._precision, ["each", *texts])
        rows = load_vector(key, len(texts) * self.dim)
        if rows is None:
            rows = self.encode_texts(texts).reshape(-1)
            save_vector(key, rows)
        return rows.reshape(len(texts), self.dim)

    @cached_property
    def logit_scale(self) -> float:
        """See `Encoder.logit_scale`; from the cache if it was asked for before, as its logarithm."""
        key = entry_key(self.files.fingerprint, "", "", ["a number", "logit_scale"])
        logarithm = load_vector(key, 1)
        if logarithm is None:
            logarithm = np.array([math.log(self.encoder.logit_scale)], dtype=np.float32)
            save_vector(key, logarithm)
        return math.exp(float(logarithm[0]))

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> NDArray[np.float32]:
        """See `Encoder.encode_texts`; not cached."""
        tower = self._tower_without_torch(texts)
        return tower.encode_texts(texts) if tower else self.encoder.encode_texts(texts, batch_size=batch_size)

    def encode_images(self, images: Iterable[Source], *, batch_size: int = 32) -> NDArray[np.float32]:
        """See `Encoder.encode_images`; not cached."""
        return self.encoder.encode_images(images, batch_size=batch_size)

    def encode_pixels(self, pixels: NDArray[np.uint8], *, batch_size: int = 32) -> NDArray[np.float32]:
        """See `Encoder.encode_pixels`; not cached."""
        return self.encoder.encode_pixels(pixels, batch_size=batch_size)

    def load_image_tower(self) -> None:
        """See `Encoder.load_image_tower`."""
        self.encoder.load_image_tower()

    def _tower_without_torch(self, texts: Sequence[str]) -> NumpyTextTower | None:
        """Return what encodes these texts without torch; None where torch is there, or is the quicker way."""
        if _has_torch() or self.is_loaded or isinstance(texts, str) or not texts:
            return None
        # A text has at least two tokens: not worth opening the tower for what cannot fit.
        if not self.row_budget.allows(2 * len(texts)) or self._numpy_tower is None:
            return None
        return self._numpy_tower if self.row_budget.take(self._numpy_tower.rows(texts)) else None

    @cached_property
    def _numpy_tower(self) -> NumpyTextTower | None:
        if self._device not in ("auto", "cpu") or self._precision == "bf16" or not read_settings().light_text:
            return None
        from imret.models.fast.text_numpy import open_text_tower

        return open_text_tower(self.files)


def _has_torch() -> bool:
    return "torch" in sys.modules


# ---- Entries -----------------------------------------------------------------------------------


def entry_key(fingerprint: str, device: str, precision: str, texts: Sequence[str]) -> str:
    """Return the name of an entry: 64 hex digits, from which the texts cannot be read.

    Who may read the folder (nobody else, where it was made by `save_vector`) can still test a guess.
    """
    parts = [__version__, open_clip_version(), fingerprint, device, precision, list(texts)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load_vector(key: str, dim: int) -> NDArray[np.float32] | None:
    """Return the (dim,) vector of an entry and mark it as used; None if there is none that is whole."""
    if not read_settings().query_cache:
        return None
    data = _cache().get(key)
    if data is None or len(data) != 4 * dim:
        return None
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def save_vector(key: str, vector: NDArray[np.float32]) -> None:
    """Keep a (D,) vector. A cache that cannot be written is no error."""
    if read_settings().query_cache:
        _cache().put(key, np.ascontiguousarray(vector, dtype="<f4").tobytes())


def _cache() -> DiskCache:
    return DiskCache(cache_dir() / "queries", MAX_CACHE_BYTES)
