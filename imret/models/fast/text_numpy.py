"""CLIP's text tower in numpy, for the few texts of a command: importing torch takes longer than they do.

In float32, on weights mapped from the file: each is read when its layer is computed, and none is copied.
Only for text towers of CLIP's plain kind in safetensors; every other kind is left to `imret.models.encoder`.
`imret.models.lazy_encoder` chooses between the two; IMRET_LIGHT_TEXT=off leaves all to torch.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret.errors import ModelError
from imret.models.embedding import Floats
from imret.models.fast.tokenizer import (
    VOCAB_SIZE,
    is_clip_tokenizer,
    load_vocabulary,
    padded,
    token_ids,
    warn_truncated,
)
from imret.models.fingerprint import ModelFiles
from imret.models.safetensors_map import LEFTOVERS, block_shapes, is_safetensors, map_safetensors, norm_shapes

# What a plain text tower is described by; any other key is a feature that is not in here.
_PLAIN_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}
_PLAIN_MODEL_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"}

# BF16 as its bits: numpy has no such type.
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_EPSILON = 1e-5  # of torch's LayerNorm


class NumpyTextTower:
    """The text side of one model: what `imret.models.encoder.Encoder` gives of texts, in fp32.

    Calls from several threads are safe.
    """

    def __init__(self, files: ModelFiles, weights: _Weights) -> None:
        """Use `open_text_tower`, which finds out whether a model can be one."""
        text = files.model_cfg["text_cfg"]
        self._model_id, self._weights, self._prefix = files.model_id, weights, _prefix(files)
        self._products = _Products(weights)
        self._context_length = int(text.get("context_length", 77))
        self._layers, self._heads = int(text["layers"]), int(text["heads"])
        self._quick_gelu = bool(files.model_cfg.get("quick_gelu", False))

    def rows(self, texts: Sequence[str]) -> int:
        """Return how many rows go through the tower: texts times the tokens that are read of the longest."""
        longest = max((len(self._ids(text)) for text in texts), default=0)
        return len(texts) * min(self._context_length, longest)

    def truncated(self, texts: Sequence[str]) -> list[str]:
        """Return which texts do not fit the model's context, and would be cut with a warning."""
        return [text for text in texts if len(self._ids(text)) > self._context_length]

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Encode at least one text, all at once.

        Returns:
            (N, D) float32, each row of unit length, in the order given.

        Warns:
            TextTruncated: If a text does not fit the model's context; the message shows it.

        Raises:
            ModelError: If the model gives no direction for a text.
        """
        ids = [self._ids(text) for text in texts]
        too_long = [
            text for text, tokens in zip(texts, ids, strict=True) if len(tokens) > self._context_length
        ]
        warn_truncated(too_long, self._context_length, stacklevel=3)
        with self._products.alone():
            features = self._features(padded(ids, self._context_length))
        # Not finite, or zero: both leave no direction. (N,)
        norms = np.sqrt(np.einsum("nd,nd->n", features, features))
        unusable: NDArray[np.bool_] = ~(np.isfinite(norms) & (norms > 0))
        if unusable.any():
            raise ModelError(
                f"Model '{self._model_id}' gave no direction for text number {int(unusable.argmax()) + 1} "
                "(zero or not a number) in fp32 on cpu. Its weights may be damaged."
            )
        return np.asarray(features / norms[:, None], dtype=np.float32)

    def _ids(self, text: str) -> list[int]:
        return token_ids(text, enough=self._context_length)

    def _features(self, tokens: NDArray[np.int64]) -> Floats:
        """Return the (N, D) features, not of unit length, of (N, L) token ids.

        Only as many positions are computed as the longest text has: no position sees one after it.
        """
        weights = self._weights
        ends = tokens.argmax(axis=1)  # (N,) the end token has the highest id
        length = int(ends.max()) + 1
        x = weights.rows(f"{self._prefix}token_embedding.weight", tokens[:, :length].reshape(-1))  # (N l, W)
        positions = weights.rows(f"{self._prefix}positional_embedding", np.arange(length))  # (l, W)
        x = x + np.tile(positions, (len(tokens), 1))
        # (l, l): 0 on and below the diagonal, -inf above.
        mask = np.triu(np.full((length, length), -np.inf, dtype=np.float32), 1)
        with np.errstate(all="ignore"):  # damaged weights end as numbers that are not finite, and are told
            for layer in range(self._layers):
                name = f"{self._prefix}transformer.resblocks.{layer}."
                x += self._attention(self._norm(x, f"{name}ln_1"), name, mask)
                hidden = self._linear(self._norm(x, f"{name}ln_2"), f"{name}mlp.c_fc.")
                hidden = quick_gelu(hidden) if self._quick_gelu else gelu(hidden)
                x += self._linear(hidden, f"{name}mlp.c_proj.")
            x = self._norm(x[np.arange(len(tokens)) * length + ends], f"{self._prefix}ln_final")  # (N, W)
            features: Floats = x @ weights.tensor(f"{self._prefix}text_projection")
            return features

    def _attention(self, x: Floats, name: str, mask: Floats) -> Floats:
        """(N l, W), (l, l) -> (N l, W)."""
        width, length = x.shape[1], len(mask)
        qkv = self._linear(x, f"{name}attn.in_proj_")
        # (N l, 3 W) -> 3 of (N, H, l, W / H)
        q, k, v = qkv.reshape(-1, length, 3, self._heads, width // self._heads).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) * np.float32((width // self._heads) ** -0.5) + mask
        attention = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attention /= attention.sum(axis=-1, keepdims=True)
        return self._linear((attention @ v).swapaxes(1, 2).reshape(-1, width), f"{name}attn.out_proj.")

    def _linear(self, x: Floats, name: str) -> Floats:
        """(rows, in) -> (rows, out)."""
        product = self._products.product(f"{name}weight", x.T)
        sums: Floats = np.add(product.T, self._weights.tensor(f"{name}bias"), order="C")
        return sums

    def _norm(self, x: Floats, name: str) -> Floats:
        centred: Floats = x - x.mean(axis=1, keepdims=True)
        variance = np.einsum("rw,rw->r", centred, centred)[:, None] / np.float32(x.shape[1])
        centred *= 1 / np.sqrt(variance + np.float32(_EPSILON))
        centred *= self._weights.tensor(f"{name}.weight")
        centred += self._weights.tensor(f"{name}.bias")
        return centred


def open_text_tower(files: ModelFiles) -> NumpyTextTower | None:
    """Open a plain text tower; None where it is of another kind, or the weights are not as expected.

    `imret.models.encoder.Encoder` then loads it, or says what is wrong with it.
    """
    shapes = _plain_shapes(files)
    if shapes is None or not is_clip_tokenizer(files.tokenizer, files.model_cfg["text_cfg"]):
        return None
    try:
        load_vocabulary()
        weights = _Weights(files.weights) if is_safetensors(files.weights) else None
    except (OSError, ModelError):
        return None
    if weights is None or not weights.match(shapes):
        return None
    return NumpyTextTower(files, weights)


# ---- Activations --------------------------------------------------------------------------------------


def quick_gelu(x: Floats) -> Floats:
    """Return x * sigmoid(1.702 x), of the shape of x."""
    return np.asarray(x / (1 + np.exp(np.float32(-1.702) * x)), dtype=np.float32)


def gelu(x: Floats) -> Floats:
    """Return x * Phi(x), of the shape of x; off by at most 1e-7 * |x|, and rounding.

    Source: Abramowitz & Stegun (1964), Handbook of Mathematical Functions, 7.1.26, for erfc, whose error is
        1.5e-7 at most; used for |x|, so that nothing cancels out where x is far below 0.
    """
    away = np.abs(x)
    z = away * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    tail = np.float32(1.061405429) * t
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail += np.float32(factor)
        tail *= t
    np.multiply(z, z, out=z)
    tail *= np.exp(np.negative(z, out=z), out=z)  # erfc(|x| / sqrt(2)) = 2 Phi(-|x|)
    tail *= away
    tail *= np.float32(0.5)
    result: Floats = np.subtract(np.maximum(x, 0, out=away), tail, out=tail)
    return result


# ---- Weights ------------------------------------------------------------------------------------------


def _plain_shapes(files: ModelFiles) -> dict[str, tuple[int, ...]] | None:
    """Return the shape of every tensor of a plain text tower by its name; None for another kind."""
    cfg = files.model_cfg
    text = cfg["text_cfg"]
    if not set(text) <= _PLAIN_KEYS or not set(cfg) <= _PLAIN_MODEL_KEYS:
        return None
    sizes = {"context_length": 77, "vocab_size": VOCAB_SIZE, **text}  # open_clip's defaults
    if not all(isinstance(sizes.get(name), int) for name in _PLAIN_KEYS):
        return None
    width, length, words = (sizes[name] for name in ("width", "context_length", "vocab_size"))
    if text["heads"] < 1 or width % text["heads"] or words < VOCAB_SIZE:
        return None
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (words, width),
        "positional_embedding": (length, width),
        "text_projection": (width, cfg["embed_dim"]),
        **norm_shapes("ln_final", width),
    }
    for layer in range(text["layers"]):
        shapes |= block_shapes(f"transformer.resblocks.{layer}.", width, 4 * width)
    return {_prefix(files) + name: shape for name, shape in shapes.items()}


def _prefix(files: ModelFiles) -> str:
    """Return what the names of a text tower begin with: open_clip has it on the root, or as a part."""
    return "text." if files.model_cfg.get("custom_text") else ""


class _Weights:
    """The tensors of a safetensors file, mapped, as float32."""

    def __init__(self, path: Path) -> None:
        self._map, self._entries = map_safetensors(path, mmap.ACCESS_READ)

    def match(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether these tensors are there and can be read, and no others but of the image tower."""
        expected = {*shapes, "logit_scale", *LEFTOVERS}
        return (
            "logit_scale" in self._entries
            and all(name in expected or name.startswith("visual.") for name in self._entries)
            and all(
                name in self._entries
                and self._entries[name].shape == shape
                and self._entries[name].dtype in _DTYPES
                for name, shape in shapes.items()
            )
        )

    def tensor(self, name: str) -> Floats:
        """Return a tensor, of float32 as it lies in the file."""
        return _as_float32(self._stored(name), self._entries[name].dtype)

    def n_rows(self, name: str) -> int:
        """Return the first number of a tensor's shape."""
        return self._entries[name].shape[0]

    def rows(self, name: str, which: NDArray[np.int64] | slice) -> Floats:
        """Return rows of a matrix; the others are not read."""
        return _as_float32(self._stored(name)[which], self._entries[name].dtype)

    def _stored(self, name: str) -> NDArray[Any]:
        entry = self._entries[name]
        dtype = _DTYPES[entry.dtype]
        count = entry.size_bytes // dtype.itemsize
        flat: NDArray[Any] = np.frombuffer(self._map, dtype, count, entry.start)
        return flat.reshape(entry.shape)


def _as_float32(stored: NDArray[Any], dtype: str) -> Floats:
    if dtype == "BF16":  # the upper half of a float32
        bits: NDArray[np.uint32] = stored.astype(np.uint32)
        upper: Floats = (bits << np.uint32(16)).view(np.float32)
        return upper
    return np.asarray(stored, dtype=np.float32)


# ---- Products -----------------------------------------------------------------------------------------

_MAX_THREADS = 8  # memory gives weights no faster to more
_one_at_a_time = threading.Lock()  # a BLAS's number of threads is the process's


class _Products:
    """Products of mapped weights with few rows.

    OpenBLAS's threads spin while they wait for each other: on cores that others use too, twice the time. So
    each of our own has a part of a weight, and the BLAS one thread.
    """

    def __init__(self, weights: _Weights) -> None:
        self._weights = weights
        with _one_at_a_time:
            sizes = [library.num_threads for library in _blas().lib_controllers]
        self._threads = min(_MAX_THREADS, max(sizes, default=1))
        self._others = ThreadPoolExecutor(max(1, self._threads - 1), "imret-text")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the BLAS to one thread, and other threads waiting that want to."""
        with _one_at_a_time, _blas().limit(limits=1):
            yield

    def product(self, name: str, x: Floats) -> Floats:
        """Return weight @ x: (out, in), (in, rows) -> (out, rows).

        The long side first: OpenBLAS takes half as long as for x.T @ weight.T.
        """
        products = np.empty((self._weights.n_rows(name), x.shape[1]), dtype=np.float32)

        def multiply(part: slice) -> None:
            with np.errstate(all="ignore"):  # which holds for one thread
                np.matmul(self._weights.rows(name, part), x, out=products[part])

        ends = [len(products) * i // self._threads for i in range(self._threads + 1)]
        first, *others = (slice(*pair) for pair in pairwise(ends))
        futures = [self._others.submit(multiply, part) for part in others]
        multiply(first)
        for future in futures:
            future.result()
        return products


@lru_cache(maxsize=1)
def _blas() -> Any:
    """Return threadpoolctl's controller of numpy's BLAS."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
