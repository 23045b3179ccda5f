"""Features of more pictures or texts than memory holds activations for, with exact gradients.

A contrastive loss needs the features of the whole batch at once, so its gradient cannot be summed up over
smaller batches. But features are small: encode in chunks and keep no activations, take the gradient of the
loss with respect to the features, then encode each chunk once more and send its rows of that gradient back.

Source: Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    https://arxiv.org/abs/2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class CachedFeatures:
    """The features of inputs, encoded chunk by chunk, and the way from their gradient back to the weights.

    Args:
        encode: Gives (N, D) features of inputs (N, ...).
        inputs: (N, ...).
        chunk_size: Most inputs encoded at once; 0 for all, which are then encoded only once.
        seed: Of the random numbers that `encode` may draw, so that it draws the same the second time.
        trained: Whether `encode` has weights that take a gradient.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        inputs: Tensor,
        *,
        chunk_size: int = 0,
        seed: int = 0,
        trained: bool = True,
    ) -> None:
        self._encode, self._seed = encode, seed
        self._chunks = torch.split(inputs, chunk_size) if chunk_size else (inputs,)
        self._trained = trained
        self._with_graph: Tensor | None = None
        if len(self._chunks) == 1 and trained:
            torch.manual_seed(seed)
            self._with_graph = encode(inputs)
            self.values = self._with_graph.detach()
            return
        encoded = []
        with torch.no_grad():
            for number, chunk in enumerate(self._chunks):
                torch.manual_seed(seed + number)
                encoded.append(encode(chunk))
        self.values = torch.cat(encoded)  # (N, D)

    def backward(self, gradient: Tensor) -> None:
        """Backpropagate the (N, D) gradient of the features into the gradients of the weights."""
        if not self._trained or not len(gradient):
            return
        if self._with_graph is not None:
            self._with_graph.backward(gradient)  # type: ignore[no-untyped-call]
            self._with_graph = None
            return
        start = 0
        for number, chunk in enumerate(self._chunks):
            torch.manual_seed(self._seed + number)
            self._encode(chunk).backward(gradient[start : start + len(chunk)])  # type: ignore[no-untyped-call]
            start += len(chunk)
