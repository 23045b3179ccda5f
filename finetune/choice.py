"""Without a recipe, a run chooses: the base as it is, names, or light, each with concepts.

The rule, fixed before anything is measured. The three are made in the order of what they cost elsewhere: the
base costs nothing, `names` keeps the image tower, `light` asks for a new ingest. Each is judged by the mean
average precision of its names on the pictures that the run keeps for validation. A later one takes the place
of an earlier one if it is better by more than chance (the 95 % interval of the difference, a paired bootstrap
over pictures, lies above 0) and keeps within the budgets of `weight_blending.affordable`. The test is never
looked at.

Hides where the candidates lie while they are made, and that any interruption leaves them resumable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.callbacks import Callbacks
from finetune.checkpoint import (
    RunRecord,
    adopt_model,
    check_output,
    has_state,
    note_concepts,
    read_training,
    resolve_resume,
    save_model,
    sole_owner,
    write_whole,
)
from finetune.concepts import ConceptStage, HeldOut, call_model_of_concepts
from finetune.config import FinetuneConfig
from finetune.data.prepare import prepare
from finetune.data.sources import Sources, find_sources
from finetune.distributed import World
from finetune.reporting.tensorboard import require_tensorboard
from finetune.run import Stages, find_trainable_base, leave_as_it_is, note_as_chosen, training_device
from finetune.stages import about_run
from finetune.weight_blending import Point, affordable
from imret.errors import DataError
from imret.evaluation.bootstrap import draw_counts, interval, resampled_ap
from imret.files import read_regular
from imret.output.written_files import check_output_folder

BASE = "base"
CANDIDATES = "candidates"
_RECORD = "choice.json"
_DRAWS = 1_000


@dataclass(frozen=True, eq=False)
class Candidate:
    """One of the models that are chosen among.

    Attributes:
        name: "base", or its recipe.
        point: Its retention, and the mAP of its texts, on validation.
        held_out: How its names rank validation; None where they could not be judged.
    """

    name: str
    point: Point
    held_out: HeldOut | None


@dataclass(frozen=True)
class Verdict:
    """Which candidate is shipped, and why.

    Attributes:
        name: Of the candidate.
        why: A sentence.
    """

    name: str
    why: str


def choose_candidate(
    candidates: Sequence[Candidate], *, budget: float, agreement_budget: float = 1.0, seed: int = 0
) -> Verdict:
    """Return the candidate to ship, by the rule.

    Args:
        candidates: The base first, then those that cost more elsewhere, in that order.
        budget: Largest loss of retention.
        agreement_budget: Largest loss of agreement.
        seed: Of the draws.
    """
    base = best = candidates[0]
    figures = [f"{base.name} + concepts {_map(base)}"]
    reasons: list[str] = []
    for one in candidates[1:]:
        figures.append(f"{one.name} + concepts {_map(one)}{_cost(one.point, base.point)}")
        if not affordable(one.point, base.point, budget, agreement_budget):
            reasons.append(f"{one.name} loses more than the budget")
            continue
        if one.held_out is None or best.held_out is None:
            reasons.append(f"{one.name} cannot be compared")
            continue
        low, high = _difference(one.held_out, best.held_out, seed)
        compared = f"{one.name} against {best.name} [{low:+.3f}, {high:+.3f}]"
        if low > 0:
            reasons.append(f"{compared} is more than chance")
            best = one
        else:
            reasons.append(f"{compared} may be chance, and {best.name} costs less elsewhere")
    said = f"shipping {best.name} + concepts. Validation mAP: {', '.join(figures)}. {'; '.join(reasons)}."
    return Verdict(best.name, said)


def _map(candidate: Candidate) -> str:
    return "unknown" if candidate.held_out is None else f"{candidate.held_out.map:.3f}"


def _cost(point: Point, base: Point) -> str:
    """Say how much of the base is lost, by the measure that the budget is of."""
    if point.retention is None or base.retention is None:
        return ""
    return f" (retention {point.retention - base.retention:+.3f})"


def _difference(one: HeldOut, other: HeldOut, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of a difference in mAP; of candidates that saw other pictures, all of it."""
    if one.scores.shape != other.scores.shape or not np.array_equal(one.labels, other.labels):
        return -1.0, 1.0
    differences = [
        (
            resampled_ap(one.scores, one.relevant, counts)
            - resampled_ap(other.scores, other.relevant, counts)
        ).mean(axis=1)
        for counts in draw_counts(one.labels, _DRAWS, seed=seed)
    ]
    return interval(np.concatenate(differences))


# ---- The run -----------------------------------------------------------------------------------------------


def finetune_by_choice(
    train: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str,
    configs: Mapping[str, FinetuneConfig],
    arch: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    tensorboard: str | os.PathLike[str] | None = None,
    callbacks: Callbacks | None = None,
    sources: Sources | None = None,
    **inputs: Any,
) -> dict[str, Any]:
    """Make the candidates, ship the one that validation chooses, and say why.

    Run again after any interruption, it goes on where it was. In one process only.

    Args:
        train: As for `finetune.run.finetune`.
        output: Where the chosen model goes; until then the candidates lie below it.
        model: A pretrained model.
        configs: How to train, by recipe, in the order of what they cost elsewhere.
        arch: Architecture of a bare checkpoint file.
        device: As for `finetune`.
        overwrite: As for `finetune`.
        tensorboard: Folder for TensorBoard's scalars, one below it for each recipe; None for none.
        callbacks: Functions that the run reports to.
        sources: What `find_sources` gives for `inputs`, where that is known already.
        inputs: captions, names, replay, against and exclude, as for `finetune`.

    Returns:
        The content of training.json; `choice` says what was compared.

    Raises:
        DataError: As `finetune` does.
        ModelError: As `finetune` does.
        KeyboardInterrupt: If interrupted; the state is saved first.
    """
    callbacks = callbacks or Callbacks()
    train, output, say = Path(train), Path(output), callbacks.on_message
    where = training_device(device)
    check_output_folder("--output", output)
    check_output_folder("--tensorboard", tensorboard)
    if tensorboard is not None:
        require_tensorboard()
    sources = sources or find_sources(train, **inputs, on_message=say)
    base = find_trainable_base(model, arch=arch, notify=say)
    check_output(train, output, base, tensorboard=None if tensorboard is None else Path(tensorboard))
    records = {
        name: RunRecord(base.fingerprint, sources.hash(), config.identity())
        for name, config in configs.items()
    }
    identity = {name: record.inputs() for name, record in records.items()}
    first = next(iter(configs.values()))
    with sole_owner(output), contextlib.ExitStack() as opened:
        finished = read_training(output)
        if finished is not None and not overwrite and finished.get("choice", {}).get("run") == identity:
            shutil.rmtree(output / CANDIDATES, ignore_errors=True)
            return leave_as_it_is(output, finished, say)
        _begin(output, identity, finished, overwrite=overwrite)
        data = prepare(sources, base, first, opened=opened, on_image=callbacks.on_image)
        say(data.report.text())
        stages = {
            name: Stages(train, base, data, config, records[name], callbacks, where, World())
            for name, config in configs.items()
        }
        training = _choose_among(stages, output, tensorboard)
        training["choice"]["run"] = identity
        adopt_model(output, output / CANDIDATES / training["choice"]["chosen"], training)
        call_model_of_concepts(output)
    shutil.rmtree(output / CANDIDATES, ignore_errors=True)
    note_as_chosen(base, output, say)
    return training


def _begin(
    output: Path, identity: Mapping[str, Any], finished: Mapping[str, Any] | None, *, overwrite: bool
) -> None:
    """Make the folder of the candidates, or go on in it; refuse an output that holds something else."""
    folder = output / CANDIDATES
    try:
        begun = json.loads(read_regular(folder / _RECORD, max_bytes=1 << 20))
    except (OSError, ValueError):
        begun = None
    if begun == identity and not overwrite:
        return
    if begun is not None and not overwrite:
        raise DataError(
            f"the output {str(output)!r} holds an unfinished choice among recipes that differs in its "
            "pictures, model or options. Give another --output, repeat that command to go on with it, or "
            "begin anew with --overwrite."
        )
    if has_state(output) and not overwrite:
        raise DataError(
            f"the output {str(output)!r} holds an unfinished run of one recipe. Name it with --recipe to go "
            "on with it, give another --output, or begin anew with --overwrite."
        )
    if not overwrite:
        resolve_resume(output, RunRecord("", "", {}), finished, overwrite=False)  # refuses what is not ours
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
    except OSError as error:
        raise DataError(f"cannot make {str(folder)!r}: {error.strerror}.") from error
    write_whole(folder / _RECORD, lambda path: path.write_text(json.dumps(identity), encoding="utf-8"))


def _choose_among(
    stages: Mapping[str, Stages], output: Path, tensorboard: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """Make the candidates below the output; return training.json of the chosen one, with the choice."""
    any_stages = next(iter(stages.values()))
    config, say = any_stages.config, any_stages.callbacks.on_message
    concepts = any_stages.concept_stage()
    trainings: dict[str, dict[str, Any]] = {}
    candidates: list[Candidate] = []
    judged = len({record.category for record in any_stages.data.validation.records}) > 1
    recipes = [*stages] if judged else []
    if judged:
        say(
            f"no recipe is named: the base as it is, {' and '.join(recipes)} are compared on validation, "
            f"each with concepts. That takes as long as {' and '.join(recipes)} together; --recipe light "
            "makes that alone"
        )
    say("candidate: base + concepts")
    folder = output / CANDIDATES / BASE
    folder.mkdir(exist_ok=True)
    trainings[BASE], held_out = _ship_base(any_stages, folder, concepts)
    candidates.append(Candidate(BASE, Point(0.0, 0.0, None), held_out))
    for name in recipes:
        say(f"candidate: {name} + concepts")
        folder = output / CANDIDATES / name
        trainings[name], held_out = _train(stages[name], folder, concepts, tensorboard, name)
        before, now = _points(trainings[name]["validation"])
        if len(candidates) == 1:
            candidates[0] = dataclasses.replace(candidates[0], point=before)
        candidates.append(Candidate(name, now, held_out))
    verdict = _verdict(candidates, trainings[candidates[-1].name], config)
    say(verdict.why)
    choice = {
        "chosen": verdict.name,
        "why": verdict.why,
        "candidates": {
            one.name: {
                "validation_map": None if one.held_out is None else round(one.held_out.map, 4),
                **{key: getattr(one.point, key) for key in ("retention", "agreement")},
            }
            for one in candidates
        },
    }
    return {**trainings[verdict.name], "choice": choice}


def _verdict(candidates: Sequence[Candidate], training: Mapping[str, Any], config: FinetuneConfig) -> Verdict:
    """Return which candidate is shipped; `training` is of the last one."""
    if len(candidates) == 1:
        return Verdict(
            BASE,
            "shipping base + concepts: no pictures of two categories are kept for validation to choose by.",
        )
    kind = training["validation"].get("retention")
    return choose_candidate(
        candidates,
        budget=config.agreement_budget if kind == "agreement" else config.hit_rate_budget,
        agreement_budget=config.agreement_budget,
        seed=config.seed,
    )


def _train(
    stages: Stages,
    folder: Path,
    concepts: ConceptStage,
    tensorboard: str | os.PathLike[str] | None,
    name: str,
) -> tuple[dict[str, Any], HeldOut | None]:
    """Make a candidate by its recipe, or go on with it."""
    log = None if tensorboard is None else Path(tensorboard) / name
    with sole_owner(folder):
        training = read_training(folder)
        if training is None:
            run = stages.begin(folder, resolve_resume(folder, stages.record, None, overwrite=False))
            training = stages.train(run, log)
            del run
        return stages.finish(folder, training, concepts)


def _ship_base(stages: Stages, folder: Path, concepts: ConceptStage) -> tuple[dict[str, Any], HeldOut | None]:
    """Write the base as it is, with concepts; its image tower is the same, to the bit."""
    base = stages.base
    training = read_training(folder)
    if training is None:
        training = save_model(
            folder,
            base.build(stages.device, seed=0),
            model_cfg=base.model_cfg,
            preprocess=base.preprocess,
            training={
                **about_run(stages.record, base, stages.data, stages.folder),
                "validation": {"before": None, "after": None},
                "steps": 0,
                "seconds": 0.0,
            },
            tokenizer=base.tokenizer,
            images_of=base.images_of,
        )
    about, held_out = concepts.learn_into(folder, source=str(stages.folder.resolve()))
    return note_concepts(folder, training, about), held_out


def _points(validation: Mapping[str, Any]) -> tuple[Point, Point]:
    """Return what validation says of the base and of the blend that a run shipped."""
    blends = [Point(**point) for point in validation.get("blends", [])]
    chosen = [
        point
        for point in blends
        if (point.alpha, point.alpha_text) == (validation.get("alpha"), validation.get("alpha_text"))
    ]
    unknown = Point(0.0, 0.0, None)
    return (blends[0], chosen[0] if chosen else blends[0]) if blends else (unknown, unknown)
