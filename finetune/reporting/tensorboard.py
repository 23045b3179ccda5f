"""Scalars for TensorBoard, while a run goes on.

Hides the optional package, which is loaded only where it is asked for, and what a resumed run does to the
curves of the part that it repeats: they are cut off where it goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imret.errors import DataError
from imret.escape import escape_undecodable

if TYPE_CHECKING:
    from finetune.callbacks import Step


def require_tensorboard() -> None:
    """Load the optional package.

    Raises:
        DataError: If it is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"--tensorboard needs a package that is not here ({error}). "
            "Install it, or leave the option out: pip install 'imret[tensorboard]'"
        ) from error


class TensorBoardLogger:
    """Writes the scalars of one run to a folder.

    Should the folder become unwritable, that is reported once, and training goes on without it.

    Args:
        folder: Where TensorBoard finds them; made if it is missing.
        done: Steps done so far. Scalars of later steps in the folder are purged.
        say: Called with a sentence if they cannot be written any more.

    Raises:
        DataError: If the folder cannot be written to, or the package is missing.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, done: int, on_message: Callable[[str], None]
    ) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._on_message, self._lost = Path(folder), on_message, False
        try:
            self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else 0)
        except OSError as error:
            raise DataError(
                f"cannot write to the --tensorboard folder {str(folder)!r}: {error.strerror}. "
                "Mend it or give another, and run the same command again."
            ) from error
        self._last_s = time.monotonic()

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self._try(self._writer.close)

    def step(self, step: Step, pictures: int) -> None:
        """Add the figures of a step.

        Args:
            step: What it did.
            pictures: How many it took, for the rate since the step before.
        """
        now = time.monotonic()
        scalars = {
            "train/loss": step.loss,
            "train/floor": step.floor,
            "train/excess_over_floor": step.loss - step.floor,
            "train/lr": step.lr,
            "train/grad_norm": step.grad_norm,
            "train/logit_scale": step.logit_scale,
            **{f"parts/{name}": value for name, value in step.parts.items()},
            "machine/memory_mib": step.memory_mib,
        }
        scalars["machine/images_per_s"] = pictures / max(now - self._last_s, 1e-9)
        self._last_s = now
        self._add(scalars, step.step)

    def validation(self, scores: Mapping[str, Any] | None, at: int) -> None:
        """Add scores from `finetune.validation.Validation.scores`, of the model after so many steps."""
        if scores is None:
            return
        scalars = {"validation/text_to_image_map": scores["text_to_image_map"]}
        for category, value in scores["average_precision"].items():
            scalars[f"validation_by_category/{escape_undecodable(category)}"] = value
        self._add(scalars, at)
        self._last_s = time.monotonic()

    def _add(self, scalars: Mapping[str, float], at: int) -> None:
        def add() -> None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, at)

        self._try(add)

    def flush(self) -> None:
        """Write what was added to the file."""
        self._try(self._writer.flush)

    def _try(self, act: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            act()
        except OSError as error:
            self._lost = True
            self._on_message(
                f"Warning: cannot write to the --tensorboard folder {str(self._folder)!r} any more: {error}. "
                "Training goes on without it."
            )
