"""Query vectors kept on disk, so that a text asked before costs neither torch nor a model.

    encoder = CachedEncoder("models/nature")
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
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imret.disk_cache import DiskCache
from imret.images.preprocess import Preprocess
from imret.models.fingerprint import ModelFiles
from imret.models.resolve import open_clip_version, resolve_model
from imret.settings import DEFAULT_MODEL, __version__, cache_dir, read_settings

if TYPE_CHECKING:
    from imret.images.decode import Source
    from imret.models.encoder import Encoder
    from imret.models.fast.text_numpy import LightText

# 10,000 vectors of 1,024 float32, on file systems that give out 4 KiB at a time.
MAX_CACHE_BYTES = 80_000_000

# Rows of tokens that a process encodes without torch, and how many of them a call counts as for reading the
# weights. Measured with ViT-H/14 on 2 busy cores, in seconds of processor time: 66 rows 1.0 without torch and
# 11.5 with it, 600 rows 4.7 and 13.9, 1,200 rows 9.4 and 16.4, which torch spreads over the cores.
LIGHT_ROWS = 512
_ROWS_A_CALL = 50
_light_rows = 0  # so far


class CachedEncoder:
    """A model that is named but not loaded: it stands in for `Encoder` where queries are asked.

    Knows the model's identity from its files alone. `encode_mean` first looks into the cache; that, and
    everything else that needs the model, loads torch and a tower only when it has to.

    Attributes:
        files: The model's files.
    """

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
            model if isinstance(model, ModelFiles) else resolve_model(model, arch=arch, notify=notify)
        )
        self._device, self._precision = device, precision

    def __repr__(self) -> str:
        return f"CachedEncoder({self.model_id!r}, device={self._device!r}, precision={self._precision!r})"

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder itself; the first use imports torch.

        Raises:
            ModelError: If the device is not there.
        """
        from imret.models.encoder import Encoder

        return Encoder(self.files, device=self._device, precision=self._precision)

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
        if vector is None:
            if not texts:
                raise ValueError("the mean of no texts has no direction")
            light = self._light_for(texts)
            if light is None:
                vector = self.encoder.encode_mean(texts)
            else:
                from imret.models.embedding import unit_mean

                vector = unit_mean(light.encode_texts(texts), texts, self.model_id)
            if not (light or self.encoder).truncated(texts):
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

    def _light_for(self, texts: Sequence[str]) -> LightText | None:
        """Return what encodes these texts without torch; None where torch is there, or is the quicker way."""
        global _light_rows
        least = _light_rows + _ROWS_A_CALL + 2 * len(texts)  # the fewest tokens a text has
        if _has_torch() or "encoder" in vars(self) or isinstance(texts, str) or not texts:
            return None
        if least > LIGHT_ROWS or self._light is None:
            return None
        rows = _light_rows + _ROWS_A_CALL + self._light.rows(texts)
        if rows > LIGHT_ROWS:
            return None
        _light_rows = rows
        return self._light

    @cached_property
    def _light(self) -> LightText | None:
        if self._device not in ("auto", "cpu") or self._precision == "bf16":
            return None
        from imret.models.fast.text_numpy import open_light_text

        return open_light_text(self.files) if read_settings().light_text else None

    # ---- As Encoder ---------------------------------------------------------------------------------

    @property
    def model_id(self) -> str:
        """The name that gives this model again."""
        return self.files.model_id

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.files.dim

    @property
    def fingerprint(self) -> str:
        """See `ModelFiles.fingerprint`."""
        return self.files.fingerprint

    @property
    def images_fingerprint(self) -> str:
        """See `ModelFiles.images_fingerprint`."""
        return self.files.images_fingerprint

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes the input of the image tower."""
        return self.files.preprocess

    @property
    def device(self) -> Any:
        """Where the towers run, a torch.device."""
        return self.encoder.device

    @property
    def precision(self) -> str:
        """The precision in use: "fp32" or "bf16"."""
        return self.encoder.precision

    @property
    def calls_at_once(self) -> int:
        """See `Encoder.calls_at_once`."""
        return self.encoder.calls_at_once

    @property
    def logit_scale(self) -> float:
        """See `Encoder.logit_scale`."""
        return self.encoder.logit_scale

    @property
    def logit_bias(self) -> float | None:
        """See `Encoder.logit_bias`."""
        return self.encoder.logit_bias

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> NDArray[np.float32]:
        """See `Encoder.encode_texts`; not cached."""
        light = self._light_for(texts)
        return light.encode_texts(texts) if light else self.encoder.encode_texts(texts, batch_size=batch_size)

    def encode_images(self, images: Iterable[Source], *, batch_size: int = 32) -> NDArray[np.float32]:
        """See `Encoder.encode_images`; not cached."""
        return self.encoder.encode_images(images, batch_size=batch_size)

    def encode_pixels(self, pixels: NDArray[np.uint8], *, batch_size: int = 32) -> NDArray[np.float32]:
        """See `Encoder.encode_pixels`; not cached."""
        return self.encoder.encode_pixels(pixels, batch_size=batch_size)


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
