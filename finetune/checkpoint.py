"""What a training run leaves on disk: the state it resumes from, and the model folder it ends with.

Hides what makes a write whole or absent, and the order in which files appear. A model folder is one only
once it has open_clip_config.json, which is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from imret.errors import DataError, ModelError
from imret.files import write_atomically
from imret.images.preprocess import Preprocess
from imret.models.resolve import CONFIG_NAME

WEIGHTS_NAME = "open_clip_model.safetensors"
TRAINING_NAME = "training.json"
METRICS_NAME = "metrics.jsonl"
_STATE_FOLDER = "checkpoint"
_STATE_NAME = "state.pt"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that after a crash or on a full disk there is the old one or the new one, whole.

    Args:
        path: Where to.
        write: Writes the content to the path it is given, which is another.

    Raises:
        DataError: If it cannot be written; what was there before still is.
    """
    try:
        # safetensors makes files that only their owner reads; whoever reads the folder reads these.
        write_atomically(path, write, durable=True, mode=path.parent.stat().st_mode & 0o666)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap a failed write
        cause = next((e for e in (error, error.__context__) if isinstance(e, OSError)), error)
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise DataError(
            f"cannot write {str(path)!r}: {reason}. "
            "Make room or mend the folder, and run the same command again."
        ) from error


@contextlib.contextmanager
def sole_owner(output: Path) -> Iterator[None]:
    """Make the output folder and keep other runs out of it for as long as the context lasts.

    Raises:
        DataError: If another process is training into it, or it cannot be made.
    """
    state = output / _STATE_FOLDER
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = open(state / "lock", "wb")  # noqa: SIM115 - held open for the context
    except OSError as error:
        raise DataError(f"cannot make the output folder {str(output)!r}: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"another imret finetune is writing to {str(output)!r}. "
                "Wait for it to end, or give another --output."
            ) from None
        try:
            yield
        finally:
            if not (state / _STATE_NAME).exists():  # nothing to go on with: leave no trace but the model
                shutil.rmtree(state, ignore_errors=True)
                with contextlib.suppress(OSError):
                    output.rmdir()


# ---- The state of a run ----------------------------------------------------------------------------------


def save_state(output: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run; an earlier one is replaced only when the new one is safe on disk.

    Raises:
        DataError: If it cannot be written; the earlier one still stands.
    """

    def write(path: Path) -> None:
        with open(path, "wb") as file:  # given a file, torch.save lets the system's own error through
            torch.save(dict(state), file)

    write_whole(output / _STATE_FOLDER / _STATE_NAME, write)


def load_state(output: Path) -> dict[str, Any] | None:
    """Return the state of an unfinished run in this folder, or None.

    Raises:
        ModelError: If there is one that cannot be read.
    """
    path = output / _STATE_FOLDER / _STATE_NAME
    if not path.exists():
        return None
    try:
        # Mapped, not read: three times the weights of the model would otherwise lie beside the model itself.
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged archive fails in as many ways as there are bytes in it
        raise ModelError(
            f"cannot read the checkpoint {str(path)!r}: {str(error).splitlines()[0]}. "
            "Begin anew with --overwrite."
        ) from error
    return state


def discard_state(output: Path) -> None:
    """Remove the state of a run, if there is any."""
    (output / _STATE_FOLDER / _STATE_NAME).unlink(missing_ok=True)


def read_training(output: Path) -> dict[str, Any] | None:
    """Return what a finished run says of itself in training.json, or None where no run has finished."""
    if not (output / CONFIG_NAME).is_file():
        return None
    try:
        training: dict[str, Any] = json.loads((output / TRAINING_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return training


# ---- The model folder ------------------------------------------------------------------------------------


def save_model(
    output: Path,
    model: nn.Module,
    *,
    model_cfg: Mapping[str, Any],
    preprocess: Preprocess,
    training: Mapping[str, Any],
    images_of: str | None = None,
) -> dict[str, Any]:
    """Write a model folder that stock open_clip loads as `local-dir:`.

    A model that was there before stays whole until the new weights are on disk. From then to the end the
    folder has no open_clip_config.json, so nothing takes a half-replaced folder for a model.

    Args:
        output: The folder; it exists.
        model: One of open_clip's two-tower models.
        model_cfg: Its architecture.
        preprocess: What its image tower expects.
        training: For training.json.
        images_of: Fingerprint of the model whose image tower this one has kept, if it has.

    Returns:
        What training.json says.

    Raises:
        DataError: If a file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    new_weights = output / (WEIGHTS_NAME + ".new")
    # "format": "pt" is what readers of the Hugging Face family look for.
    write_whole(new_weights, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    (output / CONFIG_NAME).unlink(missing_ok=True)
    os.replace(new_weights, output / WEIGHTS_NAME)
    training = dict(training)
    if images_of is not None:
        digest = _sha256(output / WEIGHTS_NAME)
        training["images_of"] = {"fingerprint": images_of, "weights_sha256": digest}
    write_whole(output / TRAINING_NAME, lambda path: path.write_bytes(_json(training)))
    config = {
        "model_cfg": _without_downloads(model_cfg),
        "preprocess_cfg": {"mode": "RGB", **asdict(preprocess)},
    }
    write_whole(output / CONFIG_NAME, lambda path: path.write_bytes(_json(config)))
    return training


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _without_downloads(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture with nothing that makes a loader fetch a base model first."""
    cfg: dict[str, Any] = json.loads(json.dumps(dict(model_cfg)))
    if "timm_model_name" in cfg["vision_cfg"]:
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"]["hf_model_pretrained"] = False
    return cfg


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
