"""Which output a run may write to, what it goes on from, and what is refused before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.checkpoint import METRICS_NAME, discard_state, load_state
from finetune.model.base_model import Base
from imret.errors import DataError


def check_output(train: Path, output: Path, base: Base, *, tensorboard: Path | None = None) -> None:
    """Refuse an output that would be trained on, or that would replace the model that is started from."""
    if train.is_dir() and output.resolve().is_relative_to(train.resolve()):
        raise DataError(
            f"the output {str(output)!r} lies in the training folder {str(train)!r} and would become a "
            "category. Give an --output elsewhere."
        )
    if base.files is not None and base.files.weights.parent.resolve() == output.resolve():
        raise DataError(f"the output {str(output)!r} is the model to start from. Give another --output.")
    if output.exists() and not output.is_dir():
        raise DataError(
            f"the output {str(output)!r} is a file. Give a folder, which need not exist, as --output."
        )
    for taken in (output, train):
        if tensorboard is not None and tensorboard.resolve().is_relative_to(taken.resolve()):
            raise DataError(
                f"the --tensorboard folder {str(tensorboard)!r} lies in {str(taken)!r}, where nothing but "
                f"{'the model' if taken == output else 'pictures'} may be. Give one elsewhere."
            )


def resolve_resume(
    output: Path, run: Mapping[str, Any], finished: Mapping[str, Any] | None, *, overwrite: bool
) -> dict[str, Any] | None:
    """Return the state to go on from, or None to begin; refuse an output that holds something else.

    A run that was begun with `overwrite` is found again without it, although another run's model is there.
    """
    if overwrite:
        discard_state(output)
        return None
    state = load_state(output)
    if state is not None:
        theirs = state["run"]
        if all(theirs[key] == run[key] for key in ("base", "data", "config")):
            return state
        what = "an unfinished run"
    elif finished is not None:
        theirs, what = finished.get("run", {}), "a finished model"
    elif any(entry.name not in ("checkpoint", METRICS_NAME) for entry in output.iterdir()):
        raise DataError(
            f"the output {str(output)!r} holds files that no run made. Give another --output, "
            "or write among them with --overwrite."
        )
    else:
        return None
    raise DataError(
        f"the output {str(output)!r} holds {what} that differs in {_differences(theirs, run)}. "
        f"Give another --output{'' if state is None else ', repeat that command to go on with it'}, "
        "or begin anew with --overwrite."
    )


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Say what two runs differ in."""
    parts = []
    if theirs.get("base") != ours["base"]:
        parts.append("the model it started from")
    if theirs.get("data") != ours["data"]:
        parts.append("its pictures or texts")
    options = theirs.get("config", {})
    for name, value in ours["config"].items():
        if options.get(name) != value:
            parts.append(f"{name} ({options.get(name)}, now {value})")
    return ", ".join(parts) or "settings of another version of imret"
