"""The exponential moving average of the weights, which is steadier than the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """An exponential moving average of parameters, in float32.

    In step t, counted from 1, it moves by 1 - min(decay, (1 + t) / (10 + t)), so that a short run is not held
    back by the weights it began with.

    Args:
        parameters: What is averaged, beginning with their present values.
        decay: In (0, 1).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie in (0, 1), not {decay}")
        self._parameters = list(parameters)
        self._decay = decay
        self._steps = 0
        self._averages: list[Tensor] = [p.detach().float().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters' present values."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._averages, [p.detach().float() for p in self._parameters], 1 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Overwrite the parameters with their averages."""
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            parameter.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"steps": self._steps, "averages": self._averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of an average of the same parameters."""
        self._steps = state["steps"]
        for average, saved in zip(self._averages, state["averages"], strict=True):
            average.copy_(saved)
