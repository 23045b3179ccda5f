"""Features of more pictures or texts than memory holds activations for, with exact gradients.

A contrastive loss needs the features of the whole batch at once, so its gradient cannot be summed up over
smaller batches. But features are small: encode in parts and keep no activations, take the gradient of the
loss with respect to the features, then encode each part once more and push its share of that gradient on.

Source: Gao et al. (2021), "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    https://arxiv.org/abs/2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class CachedFeatures:
    """The features of some inputs, and the way back from their gradient to the weights.

    Args:
        encode: Gives (N, D) features of inputs (N, ...).
        inputs: (N, ...).
        part: Most inputs that are encoded at once; 0 for all, which then are encoded only once.
        seed: Of the random numbers that `encode` may draw, so that the second time it draws the same.
        trained: Whether `encode` has weights that want a gradient.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        inputs: Tensor,
        *,
        part: int = 0,
        seed: int = 0,
        trained: bool = True,
    ) -> None:
        self._encode, self._seed = encode, seed
        self._parts = torch.split(inputs, part) if part else (inputs,)
        self._trained = trained
        self._with_graph: Tensor | None = None
        if len(self._parts) == 1 and trained:
            torch.manual_seed(seed)
            self._with_graph = encode(inputs)
            self.values = self._with_graph.detach()
            return
        encoded = []
        with torch.no_grad():
            for number, some in enumerate(self._parts):
                torch.manual_seed(seed + number)
                encoded.append(encode(some))
        self.values = torch.cat(encoded)  # (N, D)

    def backward(self, gradient: Tensor) -> None:
        """Add to the gradients of the weights what the (N, D) gradient of the features asks for."""
        if not self._trained or not len(gradient):
            return
        if self._with_graph is not None:
            self._with_graph.backward(gradient)  # type: ignore[no-untyped-call]
            self._with_graph = None
            return
        start = 0
        for number, some in enumerate(self._parts):
            torch.manual_seed(self._seed + number)
            self._encode(some).backward(gradient[start : start + len(some)])  # type: ignore[no-untyped-call]
            start += len(some)
