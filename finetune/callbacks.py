"""What a training run reports while it goes on, and to whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls to report what it does; by default they do nothing.

    Attributes:
        on_message: Called with sentences for a person.
        on_image: Called for each picture decoded at the start, with the number of all pictures.
        on_step: Called after each step with what it did and how many pictures it took.
        on_embedded: Called for each picture embedded for concepts, with the number of all pictures.
    """

    on_message: Callable[[str], None] = lambda _: None
    on_image: Callable[[int], object] = lambda _: None
    on_step: Callable[[Step, int], object] = lambda _step, _n_images: None
    on_embedded: Callable[[int], object] = lambda _: None


@dataclass(frozen=True)
class Step:
    """What one step did; a line of metrics.jsonl.

    Attributes:
        step: Counted from 1.
        steps: In the whole run.
        epoch: Passes over the training pictures so far; fractional.
        loss: Label-aware loss, of a softmax or of a sigmoid, on the step's batch, without anchors and replay.
        floor: The least value that the loss could have had on this batch.
        lr: Learning rate of the top layers.
        grad_norm: Before clipping.
        logit_scale: Inverse temperature.
        parts: Anchors and replay, before their weights; only those that are on.
        memory_mib: Peak so far: on CUDA of tensors on the device, on a CPU of the whole process; 0 where the
            device does not say.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    floor: float
    lr: float
    grad_norm: float
    logit_scale: float
    parts: dict[str, float] = field(default_factory=dict)
    memory_mib: int = 0
