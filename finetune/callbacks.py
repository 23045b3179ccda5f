"""What a training tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Callbacks:
    """Who is told what a run does.

    Attributes:
        say: Called with sentences for a person.
        picture: Called for each picture that was decoded at the start, with how many there are.
        step: Called after each step with what it did and how many pictures it took.
    """

    say: Callable[[str], None] = lambda _: None
    picture: Callable[[int], object] = lambda _: None
    step: Callable[[Step, int], object] = lambda _step, _pictures: None


@dataclass(frozen=True)
class Step:
    """What one step did; a line of metrics.jsonl.

    Attributes:
        step: Counted from 1.
        steps: In the whole run.
        epoch: How far, in passes over the training pictures.
        loss: Label-aware contrastive loss on the step's batch, without anchors and replay.
        floor: The least that it could have been.
        lr: Learning rate of the top layers.
        grad_norm: Before clipping.
        logit_scale: Inverse temperature.
        parts: Anchors and replay, before their weights; only those that are on.
        memory_mib: Most held so far: on CUDA by tensors on the device, on a CPU by the whole process; 0 where
            the device does not say.
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
