"""What a training run leaves on disk: the state it resumes from, and the model folder it ends with.

Hides which output a run may write to, how writes are made atomic, and the order in which files appear. A
folder is a model folder only once it has open_clip_config.json, which is written last.
"""

from __future__ import annotations

import contextlib
import filecmp
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from finetune.model.text_files import shipped_config, write_text_files
from imret import system
from imret.errors import DataError, ModelError
from imret.files import read_regular, write_atomically
from imret.images.preprocess import Preprocess
from imret.models.published import CONFIG_NAME
from imret.models.text_files import TEXT_TOWER_FOLDER
from imret.models.training_record import TRAINING_NAME, read_training_record
from imret.models.weights_digest import digest_tensors
from imret.retrieval.concept_query import FILE_NAME as CONCEPTS_NAME

if TYPE_CHECKING:
    from finetune.model.base_model import Base

WEIGHTS_NAME = "open_clip_model.safetensors"
METRICS_NAME = "metrics.jsonl"
_STATE_FOLDER = "checkpoint"
_STATE_NAME = "state.pt"
_MAX_TRAINING_BYTES = 256 << 20


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that after a crash or on a full disk the old one or the new one is there, whole.

    Args:
        path: Where to.
        write: Writes the content to the path it is given, which is a temporary one.

    Raises:
        DataError: If it cannot be written; the old file is as it was.
    """
    try:
        # safetensors makes files that only their owner may read; give them the folder's permissions.
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
    """Make the output folder, and lock other runs out of it while the context lasts.

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
            system.lock(lock.fileno())
        except OSError:
            raise DataError(
                f"another imret finetune is writing to {str(output)!r}. "
                "Wait for it to end, or give another --output."
            ) from None
        try:
            yield
        finally:
            if not (state / _STATE_NAME).exists():  # nothing to resume: leave nothing but the model
                shutil.rmtree(state, ignore_errors=True)
                with contextlib.suppress(OSError):
                    output.rmdir()


# ---- The state of a run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunRecord:
    """What decides the result of a run: runs of equal records make the same model.

    Attributes:
        base: Fingerprint of the model it starts from.
        data: Hash of its pictures and texts, as they were found.
        config: `FinetuneConfig.identity()`.
        pictures: Hash of the pictures that could be decoded; None before they are.
    """

    base: str
    data: str
    config: dict[str, Any]
    pictures: str | None = None

    def inputs(self) -> dict[str, Any]:
        """Return what is known before a picture is decoded; training.json says it under `run`."""
        return {"base": self.base, "data": self.data, "config": self.config}


def save_state(output: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run; an earlier one is replaced only when the new one is safe on disk.

    Raises:
        DataError: If it cannot be written; the earlier one is as it was.
    """

    def write(path: Path) -> None:
        with open(path, "wb") as file:  # given a file, torch.save raises the system's own error
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
        # Mapped, not read: three times the model's weights would otherwise be in memory beside the model.
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged archive fails in as many ways as there are bytes in it
        raise ModelError(
            f"cannot read the checkpoint {str(path)!r}: {str(error).splitlines()[0]}. "
            "Begin anew with --overwrite."
        ) from error
    return state


def has_state(output: Path) -> bool:
    """Whether this folder holds the state of an unfinished run."""
    return (output / _STATE_FOLDER / _STATE_NAME).exists()


def discard_state(output: Path) -> None:
    """Remove the state of a run, if there is any."""
    (output / _STATE_FOLDER / _STATE_NAME).unlink(missing_ok=True)


def read_training(output: Path) -> dict[str, Any] | None:
    """Return training.json of a finished run, or None where no run has finished: its weights are others."""
    if not (output / CONFIG_NAME).is_file() or not (output / WEIGHTS_NAME).is_file():
        return None
    try:
        return read_training_record(output / WEIGHTS_NAME) or None
    except ModelError:  # of what no run has written
        return None


def note_concepts(output: Path, training: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Add to training.json what was learnt of concepts; return its content.

    A run that learns concepts is done with this, and not before.

    Raises:
        DataError: If it cannot be written.
    """
    training = {**training, "concepts": dict(about)}
    write_whole(output / TRAINING_NAME, lambda path: path.write_bytes(_json(training)))
    return training


# ---- Which output a run may write to ----------------------------------------------------------------------


def check_output(train: Path, output: Path, base: Base, *, tensorboard: Path | None = None) -> None:
    """Refuse an output that would be trained on, that would replace the base, or a file of somebody else's.

    Raises:
        DataError: If it lies in the training folder, is the base's folder or a file, holds a file that no run
            made where one of the tokenizer belongs, or if the TensorBoard folder lies in it or in the
            training folder.
    """
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
    if output.is_dir():
        with tempfile.TemporaryDirectory(prefix="imret-tokenizer-") as staged:
            write_text_files(Path(staged), base.tokenizer, None)
            _refuse_to_replace_others(Path(staged), output)


def resolve_resume(
    output: Path, record: RunRecord, finished: Mapping[str, Any] | None, *, overwrite: bool
) -> dict[str, Any] | None:
    """Return the state to resume from, or None to begin; refuse an output that holds something else.

    A run that was begun with `overwrite` is resumed without it, although another run's model is there.

    Args:
        output: The folder; it exists.
        record: Of the run that is about to write there.
        finished: From `read_training`.
        overwrite: Whether to begin anew whatever is there.

    Raises:
        DataError: If the output holds another run, or files that no run made.
        ModelError: If the state cannot be read.
    """
    if overwrite:
        discard_state(output)
        shutil.rmtree(output / "candidates", ignore_errors=True)
        return None
    state = load_state(output)
    if state is not None:
        other, what = state["run"], "an unfinished run"
        if all(other[key] == value for key, value in record.inputs().items()):
            return state
    elif finished is not None:
        other, what = finished.get("run", {}), "a finished model"
    elif (output / "candidates").is_dir():
        raise DataError(
            f"the output {str(output)!r} holds an unfinished choice among recipes. Give another --output, "
            "repeat that command (without --recipe) to go on with it, or begin anew with --overwrite."
        )
    elif any(entry.name not in ("checkpoint", METRICS_NAME) for entry in output.iterdir()):
        raise DataError(
            f"the output {str(output)!r} holds files that no run made. Give another --output, "
            "or write among them with --overwrite."
        )
    else:
        return None
    raise DataError(
        f"the output {str(output)!r} holds {what} that differs in {_differences(other, record)}. "
        f"Give another --output{'' if state is None else ', repeat that command to go on with it'}, "
        "or begin anew with --overwrite."
    )


def _differences(other: Mapping[str, Any], record: RunRecord) -> str:
    """Say what another run and this one differ in."""
    parts = []
    if other.get("base") != record.base:
        parts.append("the model it started from")
    if other.get("data") != record.data:
        parts.append("its pictures or texts")
    options = other.get("config", {})
    for name, value in record.config.items():
        if options.get(name) != value:
            parts.append(f"{name} ({options.get(name)}, now {value})")
    return ", ".join(parts) or "settings of another version of imret"


# ---- The model folder ------------------------------------------------------------------------------------


def save_model(
    output: Path,
    model: nn.Module,
    *,
    model_cfg: Mapping[str, Any],
    preprocess: Preprocess,
    training: Mapping[str, Any],
    tokenizer: Any = None,
    images_of: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a model folder that stock open_clip loads as `local-dir:`.

    An earlier model stays whole until the new weights are on disk. From then to the end the folder has no
    open_clip_config.json, so that a half-replaced folder does not pass for a model.

    Args:
        output: The folder; it exists.
        model: One of open_clip's two-tower models.
        model_cfg: Its architecture.
        preprocess: What its image tower expects.
        training: For training.json.
        tokenizer: `Base.tokenizer`, whose files are written where it has some.
        images_of: The model whose image tower this one kept, if any; see `Base.images_of`.

    Returns:
        The content of training.json.

    Raises:
        DataError: If a file cannot be written, or one that no run made is in the tokenizer's place.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    new_weights = output / (WEIGHTS_NAME + ".new")
    # "format": "pt" is what readers of the Hugging Face family look for.
    write_whole(new_weights, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    staged = _stage_text_files(output, tokenizer, model)
    try:
        _refuse_to_replace_others(staged, output)
    except DataError:
        shutil.rmtree(staged)
        new_weights.unlink()
        raise
    (output / CONFIG_NAME).unlink(missing_ok=True)
    (output / CONCEPTS_NAME).unlink(missing_ok=True)  # of the model that was here
    _note_text_files(staged, output)
    os.replace(new_weights, output / WEIGHTS_NAME)
    text_files = _replace_text_files(staged, output)
    training = {**training, "text_files": text_files} if text_files else dict(training)
    weights = output / WEIGHTS_NAME
    training["weights"] = digest_tensors(weights).tensors
    if images_of is not None:
        training["images_of"] = {
            **images_of,
            "weights": training["weights"],
        }
    write_whole(output / TRAINING_NAME, lambda path: path.write_bytes(_json(training)))
    config = {
        "model_cfg": shipped_config(model_cfg, tokenizer),
        "preprocess_cfg": {"mode": "RGB", **asdict(preprocess)},
    }
    write_whole(output / CONFIG_NAME, lambda path: path.write_bytes(_json(config)))
    return training


def adopt_model(output: Path, made: Path, training: Mapping[str, Any]) -> None:
    """Put a model that lies below the output into its place; until the end it stays whole where it was made.

    Args:
        output: The folder.
        made: The model folder.
        training: For training.json.

    Raises:
        DataError: If a file cannot be written.
    """
    names = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    names -= {CONFIG_NAME, TRAINING_NAME} | {name for name in names if name.startswith(_STATE_FOLDER + "/")}
    (output / CONFIG_NAME).unlink(missing_ok=True)
    _remove_text_files(output)
    for name in (CONCEPTS_NAME, METRICS_NAME, "training.png"):  # of the model that was here
        (output / name).unlink(missing_ok=True)
    noted = {**_noted(output), "text_files": training.get("text_files", [])}
    write_whole(output / TRAINING_NAME, lambda path: path.write_bytes(_json(noted)))
    for name in sorted(names):
        (output / name).parent.mkdir(exist_ok=True)
        write_whole(output / name, functools.partial(_link_or_copy, made / name))
    write_whole(output / TRAINING_NAME, lambda path: path.write_bytes(_json(training)))
    write_whole(output / CONFIG_NAME, functools.partial(shutil.copyfile, made / CONFIG_NAME))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.unlink(missing_ok=True)
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copyfile(source, target)


def _stage_text_files(output: Path, tokenizer: Any, model: nn.Module) -> Path:
    """Write what texts need besides weights into a folder of its own in the output; return that folder."""
    staged = output / "text_files.new"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir()
        write_text_files(staged, tokenizer, getattr(model, "text", None))
    except OSError as error:
        raise DataError(
            f"cannot write the tokenizer into {str(output)!r}: {error.strerror or error}. "
            "Make room or mend the folder, and run the same command again."
        ) from error
    return staged


def _replace_text_files(staged: Path, output: Path) -> list[str]:
    """Move what was staged into the model folder, in place of what an earlier run wrote; return the names.

    Nothing of another tokenizer may stay beside a new one, and nothing of anybody else's may go.
    """
    _remove_text_files(output)
    names = _staged_names(staged)
    for name in names:
        (output / name).parent.mkdir(exist_ok=True)
        write_whole(output / name, functools.partial(shutil.copyfile, staged / name))
    shutil.rmtree(staged)
    return names


def _remove_text_files(output: Path) -> None:
    with contextlib.suppress(OSError):
        for path in (output / name for name in _noted(output).get("text_files", [])):
            if path.resolve().is_relative_to(output.resolve()):
                path.unlink(missing_ok=True)
        (output / TEXT_TOWER_FOLDER).rmdir()  # if it is empty now


def _refuse_to_replace_others(staged: Path, output: Path) -> None:
    """Raise DataError if a file that no run made has a name that one of the staged is to have."""
    own = _noted(output).get("text_files", [])
    for name in _staged_names(staged):
        there = output / name
        if name not in own and there.exists() and not _is_same(staged / name, there):
            raise DataError(
                f"the output {str(output)!r} holds {name!r}, a file that no run made, in the place of the "
                "model's tokenizer.\n"
                "Move it away, and run the same command again: without --overwrite if it was trained already."
            )


def _note_text_files(staged: Path, output: Path) -> None:
    """Put down which files are about to come: if this run is killed meanwhile, the next one removes them."""
    names = _staged_names(staged)
    if names:
        noted = _noted(output)
        noted["text_files"] = sorted({*noted.get("text_files", []), *names})
        write_whole(output / TRAINING_NAME, lambda path: path.write_bytes(_json(noted)))


def _noted(output: Path) -> dict[str, Any]:
    """Return what an earlier run put down in training.json, whether it came to its end or not."""
    try:
        noted = json.loads(read_regular(output / TRAINING_NAME, max_bytes=_MAX_TRAINING_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    names = noted.get("text_files", []) if isinstance(noted, dict) else None
    return noted if isinstance(names, list) and all(isinstance(name, str) for name in names) else {}


def _staged_names(staged: Path) -> list[str]:
    return sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())


def _is_same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
