"""`imret models`: the few worth choosing from, what is published of each, and how fast each is here."""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from imret.cli.help import examples
from imret.cli.options import (
    collection_choice,
    db_option,
    device_option,
    format_option,
    precision_option,
)
from imret.errors import ImretError
from imret.escape import escape_control
from imret.output.console import announce
from imret.settings import read_settings

if TYPE_CHECKING:
    from imret.models.choices import Choice

_FIGURES = ("imagenet", "flickr", "coco", "species")


@click.command(
    "models",
    short_help="List the models worth choosing from.",
    epilog=examples(
        "imret models",
        "imret models --device cpu --precision fp32",
        "imret models --format json",
    ),
)
@db_option
@collection_choice("Say of this one alone what it uses.  [default: all]")
@device_option
@precision_option
@format_option("json: one object, for programs; it names the source of each figure.")
def command(db: str | None, collection: str | None, device: str, precision: str, output: str) -> None:
    """List models to choose from by a short name: --model small, base, large, huge, multilingual, biology.

    Of each: the memory and the download it takes, published figures, the licence, and about how many pictures
    a second it embeds here, which is an estimate from one block of such a model. Then what is downloaded
    already, and which collections use it. Any other model of open_clip's can be named in full.

    ImageNet is the share of its pictures that are given the right name of 1,000; Flickr30k and COCO the share
    of captions that find their own picture first.
    """
    from imret.models.choices import CHOICES
    from imret.models.download import hub_cache

    used = _used_by(db, collection)
    listed = [
        _described(choice, used.pop(choice.model, []), device, precision) for choice in CHOICES.values()
    ]
    described = {
        "models": listed,
        "others": [{"model": model, "collections": names} for model, names in sorted(used.items())],
        "cache": str(hub_cache()),
    }
    if output == "json":
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return
    _print_table(described)


def _used_by(db: str | None, collection: str | None) -> dict[str, list[str]]:
    """Return the names of collections by their model; of a store that was named, or that can be read."""
    from imret.store import open_store

    used: defaultdict[str, list[str]] = defaultdict(list)
    try:
        with open_store(db, create=False, share="if possible") as store:
            if collection is not None:
                store.open(collection).close()  # says which there are
            for name in store.collections() if collection is None else [collection]:
                with suppress(ImretError):
                    if live := store.live(name):
                        used[live.model].append(name)
    except ImretError:
        if collection is not None or (db is not None and db != read_settings().db):  # typed
            raise
    return dict(used)


def _described(choice: Choice, collections: list[str], device: str, precision: str) -> dict[str, Any]:
    from imret.models.resolve import cached_weights
    from imret.models.speed import speed_of

    speed = speed_of(choice.name, device=device, precision=precision)
    missing = choice.extra is not None and importlib.util.find_spec(choice.extra) is None
    return {
        "name": choice.name,
        "model": choice.model,
        "good_for": choice.good_for,
        "parameters": choice.parameters,
        "download_bytes": choice.size_bytes,
        "dim": choice.dim,
        **{figure: getattr(choice, figure) for figure in _FIGURES},
        "sources": choice.sources,
        "licence": choice.licence,
        "pictures_per_s": None if speed is None else float(f"{speed.pictures_per_s:.2g}"),
        "device": None if speed is None else speed.device,
        "precision": None if speed is None else speed.precision,
        "downloaded": cached_weights(choice.repo) is not None,
        "needs": f"pip install 'imret[{choice.extra}]'" if missing else None,
        "collections": collections,
    }


def _print_table(described: dict[str, Any]) -> None:
    head = (
        "name",
        "parameters",
        "download",
        "dims",
        "ImageNet",
        "Flickr30k",
        "COCO",
        "here, about",
        "licence",
    )
    rows = [_cells(model) for model in described["models"]]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print("  ".join(f"{cell:<{width}}" for cell, width in zip(head, widths, strict=True)).rstrip())
    for model, row in zip(described["models"], rows, strict=True):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        print(f"{'':<{widths[0]}}  {'; '.join(_remarks(model))}")
    for other in described["others"]:
        names = escape_control(", ".join(other["collections"]))
        print(f"{'':<{widths[0]}}  {escape_control(other['model'])}; used by {names}")
    first = described["models"][0]
    announce(
        f"\nHere is on {first['device']} in {first['precision']}, with what else runs now. Downloads go to "
        f"{described['cache']}. Figures and their sources: imret models --format json"
    )


def _cells(model: dict[str, Any]) -> tuple[str, ...]:
    from imret.models.choices import gigabytes

    def percent(figure: str) -> str:
        return "-" if model[figure] is None else f"{model[figure]:.1f} %"

    rate = model["pictures_per_s"]
    return (
        model["name"],
        f"{model['parameters'] / 1e6:,.0f} M",
        gigabytes(model["download_bytes"]),
        str(model["dim"]),
        *(percent(figure) for figure in _FIGURES[:3]),
        "-" if rate is None else f"{rate:,g} pictures/s",
        model["licence"],
    )


def _remarks(model: dict[str, Any]) -> list[str]:
    remarks = [model["model"], model["good_for"]]
    if model["species"] is not None:
        remarks.append(f"{model['species']} % over ten sets of species")
    if model["downloaded"]:
        remarks.append("downloaded")
    if model["needs"]:
        remarks.append(f"needs {model['needs']}")
    if model["collections"]:
        remarks.append(f"used by {escape_control(', '.join(model['collections']))}")
    return remarks
