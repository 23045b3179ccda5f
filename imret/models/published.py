"""What a bare checkpoint leaves unsaid, told from the weights that open_clip lists for its architecture.

That is how it wants its pictures (mean, deviation, crop, interpolation), and which GELU it computes with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imret.errors import ModelError
from imret.images.preprocess import Preprocess, parse_preprocess

CONFIG_NAME = "open_clip_config.json"


def read_as_published(
    known: str,
    model_cfg: dict[str, Any],
    tags: Mapping[str, Mapping[str, Any]],
    path: Path,
    *,
    notify: Callable[[str], None] | None,
    is_id: bool,
) -> tuple[dict[str, Any], Preprocess]:
    """Return the architecture of a checkpoint, with the activation, and its preprocessing.

    Preprocessing is what all weights agree on. Their activation decides too, where they agree; where they do
    not, the architecture states it, as ViT-B-32 and ViT-B-32-quickgelu do.

    Args:
        known: The architecture's name.
        model_cfg: Its configuration.
        tags: What open_clip says of each of its weights, or of those that the checkpoint is like.
        path: Of the checkpoint.
        notify: Called with a sentence where preprocessing or activation could be another.
        is_id: Whether a collection may have the architecture noted, from a time when it was asked for no tag:
            then it keeps meaning open_clip's default.

    Raises:
        ModelError: If preprocessing differs from tag to tag.
    """
    stated = {name: parse_preprocess(cfg, model_cfg, known) for name, cfg in tags.items()}
    quick = {name: bool(cfg.get("quick_gelu", False)) for name, cfg in tags.items()}
    default = parse_preprocess({}, model_cfg, known)
    if len(set(stated.values())) > 1:
        differ = _ambiguous(known, path, {name: (way, quick[name]) for name, way in stated.items()})
        if not is_id:
            raise differ
        if notify is not None:
            notify(f"{differ}\nIt is taken for one of open_clip's default.")
        return model_cfg, default
    told = None if is_id else notify
    return _with_activation(known, model_cfg, quick, path, told), next(iter(stated.values()), default)


def _with_activation(
    known: str,
    model_cfg: dict[str, Any],
    quick: Mapping[str, bool],
    path: Path,
    notify: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Return an architecture with the activation of its weights, by tag, where these agree; tell of doubt."""
    stated = bool(model_cfg.get("quick_gelu", False))
    others = [tag for tag, is_quick in quick.items() if is_quick is not stated]
    if not others:
        return model_cfg
    taken = not stated if len(others) == len(quick) else stated
    names = ("QuickGELU", "GELU") if taken else ("GELU", "QuickGELU")
    if notify is not None:
        way = (
            f"put {CONFIG_NAME} beside it and pass the folder"
            if taken is not stated
            else f"say --arch {known}/{others[0]}"
        )
        notify(f"'{path}' is read as a {known} with {names[0]}; if it was trained with {names[1]}, {way}")
    return model_cfg if taken is stated else {**model_cfg, "quick_gelu": taken}


def _ambiguous(known: str, path: Path, tags: dict[str, tuple[Preprocess, bool]]) -> ModelError:
    """Say between which weights a checkpoint's owner has to choose."""
    first: dict[tuple[Preprocess, bool], str] = {}
    for tag, way in tags.items():
        first.setdefault(way, tag)
    ways = [{**asdict(preprocess), "quick_gelu": quick} for preprocess, quick in first]
    differing = [key for key in ways[0] if len({way[key] for way in ways}) > 1]
    listed = "\n".join(
        f"  --arch {known}/{tag}: {', '.join(f'{key} {way[key]}' for key in differing)}"
        for tag, way in zip(first.values(), ways, strict=True)
    )
    return ModelError(
        f"Checkpoint '{path}' does not say how it wants its pictures, and the weights that are published for "
        f"'{known}' differ in it. Say which it is like:\n{listed}\n"
        f"Or put {CONFIG_NAME} beside it, and pass the folder."
    )
