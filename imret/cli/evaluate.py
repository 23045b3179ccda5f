"""`imret evaluate`: the command around `imret.evaluation.evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from imret.cli.options import (
    arch_option,
    category_names,
    db_option,
    device_option,
    model_option,
    precision_option,
)
from imret.errors import DataError
from imret.output.console import announce
from imret.settings import DEFAULT_COLLECTION

if TYPE_CHECKING:
    pass


@click.command(
    "evaluate",
    short_help="Measure a model on labelled pictures.",
    epilog="Example:  imret evaluate data/test --model models/nature --baseline ViT-H-14/laion2b_s32b_b79k "
    "--html report.html",
)
@click.argument("data", metavar="DATA", required=False, type=click.Path(path_type=str))
@model_option("Model to measure.  [default: {default}, or the collection's]")
@arch_option
@click.option("--baseline", metavar="MODEL", help="Model to compare with, such as the one it was tuned from.")
@click.option(
    "--also",
    multiple=True,
    metavar="MODEL",
    help="One more model in the same tables, such as one of which only text was tuned; may be repeated.",
)
@click.option(
    "--names",
    "names_file",
    metavar="FILE",
    help="CSV file (category,name) of what categories are called.  [default: what the model was tuned with]",
)
@click.option(
    "--retention",
    metavar="FILE",
    help="CSV file (path,caption) of pictures of other things: how well captions still find them.",
)
@click.option(
    "--train",
    metavar="DIR",
    help="Labelled training pictures, to compare with what needs no tuning: prompts, probe, kNN, centroid.",
)
@click.option(
    "--collection",
    metavar="NAME",
    is_flag=False,
    flag_value=DEFAULT_COLLECTION,
    help="Measure a collection that was ingested, through its index and without it; DATA may be left out.",
)
@db_option
@device_option
@precision_option
@click.option("--resamples", type=click.IntRange(100), default=2000, show_default=True, help="For intervals.")
@click.option("--html", "page", metavar="FILE", help="Write the report as one HTML file, failures and all.")
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - is standard output.")
def command(
    data: str | None,
    collection: str | None,
    db: str | None,
    page: str | None,
    json_file: str | None,
    names_file: str | None,
    **asked: Any,
) -> None:
    """Measure how well a model finds the pictures in DATA, one sub-folder per category.

    Asks for each category in words and ranks all pictures; lets pictures find their like; names each picture;
    and, with --retention, checks what the model still knows of other things.
    """
    from imret.datasets.names_csv import read_names

    if data is None and collection is None:
        raise click.UsageError("give DATA, a folder of labelled pictures, or --collection NAME.")
    needing = [f"--{name}" for name in ("baseline", "also", "retention", "train") if asked[name]]
    if data is None and (needing or page):
        raise click.UsageError(f"{', '.join([*needing, *(['--html'] if page else [])])}: needs DATA.")
    source = click.get_current_context().get_parameter_source
    typed = {name for name in ("db", "resamples") if source(name) == ParameterSource.COMMANDLINE}
    if collection is None and "db" in typed:
        raise click.UsageError("--db is where the collection of --collection NAME is, which is not given.")
    if data is None and "resamples" in typed:
        raise click.UsageError("--resamples is about the pictures in DATA, which is not given.")
    for file in (page, json_file):
        if file in (None, "-"):
            continue
        target = Path(str(file)).absolute()
        if not target.parent.is_dir():
            raise DataError(f"cannot write {file!r}: its folder does not exist. Make it first.")
        if target.is_dir():
            raise DataError(f"cannot write {file!r}: it is a folder. Name a file in it.")
    names = read_names(names_file) if names_file else {}
    report = _measured(data, collection, db, names, asked)
    _tell_strangers(names, report)
    # A name that is no Unicode is written as an escape, which is JSON's own.
    text = json.dumps(report, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    print(text if json_file == "-" else _format(report))
    try:
        if json_file is not None and json_file != "-":
            Path(json_file).write_text(text + "\n", encoding="utf-8")
            announce(f"Wrote {Path(json_file).resolve()}")
        if page is not None:
            from imret.evaluation.html_report import write_page

            announce(f"Wrote {write_page(page, report)}")
    except OSError as error:
        raise DataError(f"cannot write {error.filename!r}: {error.strerror}.") from error


def _measured(
    data: str | None,
    collection: str | None,
    db: str | None,
    names: dict[str, tuple[str, ...]],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the report: of the collection, if one was named, and of the folder, if one was given."""
    from imret.evaluation.evaluate import evaluate
    from imret.evaluation.index_error import evaluate_collection
    from imret.models.encoder import Encoder
    from imret.retrieval.collection_encoder import collection_encoder
    from imret.settings import DEFAULT_MODEL
    from imret.store import open_store

    options: dict[str, Any] = {
        "device": asked["device"],
        "precision": asked["precision"],
        "notify": announce,
    }
    through = encoder = None
    if collection is not None:
        with open_store(db, create=False) as store:
            if store.reason:
                announce(store.reason)
            named = {"model": asked["model"], "arch": asked["arch"], **options}
            encoder = collection_encoder(store, collection, existing=True, **named).encoder
            names = category_names(encoder, names)
            through = evaluate_collection(store, collection, encoder=encoder, names=names)
    if data is None:
        return {"collection": through}
    if encoder is None:
        encoder = Encoder(asked["model"] or DEFAULT_MODEL, arch=asked["arch"], **options)
        names = category_names(encoder, names)
    announce(f"model {encoder.model_id}, {encoder.device}, {encoder.precision}")
    with _Count() as count:
        report = evaluate(
            data,
            encoder=encoder,
            baseline=Encoder(asked["baseline"], **options) if asked["baseline"] else None,
            also={name: Encoder(model, **options) for name, model in _labels(asked["also"]).items()},
            names=names,
            retention=asked["retention"],
            train=asked["train"],
            resamples=asked["resamples"],
            on_picture=count.one,
        )
    return {**report, "collection": through}


def _tell_strangers(names: Mapping[str, tuple[str, ...]], report: Mapping[str, Any]) -> None:
    """Tell of names that --names gives to what is no category here, such as a misspelt one."""
    from imret.datasets.names_csv import name_key

    categories = {
        *(report["data"]["categories"] if "data" in report else ()),
        *(report["collection"]["per_category"] if report["collection"] else ()),
    }
    strangers = sorted(names.keys() - set(map(name_key, categories)))
    if strangers:
        announce(
            f"Warning: --names names {len(strangers):,} categories that there are no pictures of, the first "
            f"{strangers[0]!r}; there are {', '.join(sorted(categories)[:10])}"
        )


def _labels(models: tuple[str, ...]) -> dict[str, str]:
    """Return models by a short name for their row: the last part of what was typed, numbered if it recurs."""
    from imret.evaluation.evaluate import OTHER_ROWS

    labels: dict[str, str] = {}
    for model in models:
        last = Path(model.rstrip("/")).name or model
        label, number = last, 2
        while label in labels or label in OTHER_ROWS:
            label, number = f"{last} {number}", number + 1
        labels[label] = model
    return labels


def _format(report: Mapping[str, Any]) -> str:
    from imret.evaluation.text_report import format_report

    return format_report(report)


class _Count:
    """Pictures encoded, on stderr, while it is a terminal."""

    def __enter__(self) -> _Count:
        from tqdm import tqdm

        self._bar = tqdm(desc="encode", unit=" images", disable=not sys.stderr.isatty())
        return self

    def one(self) -> None:
        self._bar.update()

    def __exit__(self, *_: object) -> None:
        self._bar.close()
