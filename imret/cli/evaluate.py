"""`imret evaluate`: the command around `imret.evaluation.evaluate`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from imret.cli.help import MODEL, STORE, SectionedCommand, examples
from imret.cli.numbers import Whole
from imret.cli.options import (
    arch_option,
    ask_at_terminal,
    category_names,
    db_option,
    device_option,
    exclude_option,
    max_pixels_option,
    model_option,
    precision_option,
    warn_of_strangers,
)
from imret.defaults import DEFAULT_COLLECTION
from imret.errors import DataError, some_of
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.evaluation.report import CollectionReport, EvaluationReport
    from imret.models.fingerprint import ModelFiles


_SECTIONS = {
    "Model": ("--no-concepts", *MODEL),
    "Comparison": ("--baseline", "--also", "--train", "--retention", "--resamples"),
    "Collection": STORE,
    "Output": ("--html", "--json"),
}


@click.command(
    "evaluate",
    cls=SectionedCommand,
    sections=_SECTIONS,
    short_help="Measure a model on labelled pictures.",
    epilog=examples(
        "imret evaluate data/test --model models/nature --html report.html",
        "imret evaluate data/test --model models/nature --baseline ViT-H-14/laion2b_s32b_b79k",
        "imret evaluate data/test --model models/nature --names names.csv --json -",
        "imret evaluate --collection photos",
        "imret evaluate data/test --train data/train --model models/nature",
    ),
)
@click.argument("data", metavar="DATA", required=False, type=click.Path(path_type=str))
@click.option(
    "--no-concepts",
    is_flag=True,
    help="Ask for all categories in words, also those that the model's folder has learnt from pictures.",
)
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
    help="Labelled training pictures, to compare with what leaves the model as it is: prompts, probe, kNN, "
    "centroid, Tip-Adapter, TaskRes, concepts (imret learn).",
)
@exclude_option
@click.option(
    "--collection",
    metavar="NAME",
    is_flag=False,
    flag_value=DEFAULT_COLLECTION,
    help="Measure a collection, through its index and without it; without NAME the default one. DATA may be "
    "left out; --html and --baseline need it.",
)
@db_option
@max_pixels_option
@device_option
@precision_option
@click.option(
    "--resamples",
    type=Whole(100),
    default=2000,
    show_default=True,
    help="How often pictures are drawn anew, which the intervals are computed from.",
)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    help="Write the report on DATA as one HTML file, with the pictures that were not found.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - is standard output.")
def command(
    data: str | None,
    collection: str | None,
    db: str | None,
    page: str | None,
    json_file: str | None,
    names_file: str | None,
    **options: Any,
) -> None:
    """Measure how well a model finds the pictures in DATA, one sub-folder per category.

    Asks for each category in words and ranks all pictures; lets pictures find their like; names each picture;
    and, with --retention, checks what the model still knows of other things.
    """
    from imret.datasets.names_csv import read_names
    from imret.files import write_atomically
    from imret.output.written_files import check_outputs

    if data is None and collection is None:
        raise click.UsageError("give DATA, a folder of labelled pictures, or --collection NAME.")
    about_data = ("baseline", "also", "retention", "train", "exclude", "no_concepts")
    needing = [f"--{name.replace('_', '-')}" for name in about_data if options[name]]
    if data is None and (needing or page):
        raise click.UsageError(f"{', '.join([*needing, *(['--html'] if page else [])])}: needs DATA.")
    source = click.get_current_context().get_parameter_source
    typed = {name for name in ("db", "resamples") if source(name) == ParameterSource.COMMANDLINE}
    if collection is None and "db" in typed:
        raise click.UsageError("--db is where the collection of --collection NAME is, which is not given.")
    if data is None and "resamples" in typed:
        raise click.UsageError("--resamples is about the pictures in DATA, which is not given.")
    inputs = {f"--{name}": options[name] for name in ("retention", "train", "model", "baseline")}
    check_outputs(
        {"--html": page, "--json": None if json_file == "-" else json_file},
        inputs={
            "DATA": data,
            "--names": names_file,
            **inputs,
            **{f"--also {name}": name for name in options["also"]},
        },
    )
    names = read_names(names_file) if names_file else {}
    report, of_collection = _measure(data, collection, db, names, options)
    from imret.evaluation.text_report import format_report

    categories = set(report.data.categories) if report else set()
    warn_of_strangers(names, categories | (set(of_collection.per_category) if of_collection else set()))
    text = _as_json(report, of_collection)
    print(text if json_file == "-" else format_report(report, of_collection))
    if json_file is not None and json_file != "-":
        with _telling(json_file):
            write_atomically(json_file, text + "\n", in_place=True)
    if page is not None and report is not None:
        from imret.evaluation.html_report import write_page

        with _telling(page):
            write_page(page, report, of_collection)


@contextlib.contextmanager
def _telling(file: str) -> Iterator[None]:
    """Say that a file was written, or why it was not."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {file!r}: {error.strerror or error}.") from error
    announce(f"Wrote {Path(file).absolute()}")


def _measure(
    data: str | None,
    collection: str | None,
    db: str | None,
    names: dict[str, tuple[str, ...]],
    options: Mapping[str, Any],
) -> tuple[EvaluationReport | None, CollectionReport | None]:
    """Return the reports of the folder, if one was given, and of the collection, if one was named."""
    from tqdm import tqdm

    from imret.concepts.from_training import learn_from
    from imret.evaluation.evaluate import evaluate, find_inputs
    from imret.evaluation.index_recall import evaluate_collection
    from imret.retrieval.category_names import stored_names
    from imret.retrieval.collection_encoder import collection_encoder
    from imret.store import open_store

    model, arch = options["model"], options["arch"]
    device: dict[str, Any] = {"device": options["device"], "precision": options["precision"]}
    if data is not None:  # before a model is looked for, which may be a download
        find_inputs(data, retention=options["retention"], train=options["train"], exclude=options["exclude"])
    _check_models(options)
    of_collection = encoder = None
    if collection is not None:
        with open_store(db, create=False, share="if possible", collection=collection) as store:
            if store.reason:
                announce(store.reason)
            encoder = collection_encoder(
                store,
                collection,
                existing=True,
                model=model,
                arch=arch,
                ask=ask_at_terminal(),
                notify=announce,
                **device,
            ).encoder
            names = category_names(encoder, names, stored_names(store, collection, notify=announce))
            of_collection = evaluate_collection(store, collection, encoder=encoder, names=names)
    if data is None:
        return None, of_collection
    found = _find_models(options, has_model=encoder is not None)
    from imret.models.encoder import Encoder  # which imports torch

    if encoder is None:
        encoder = Encoder(found[model], **device)
        names = category_names(encoder, names)
    _warn_of_doubtful(data, names, options["exclude"], encoder.files)
    announce(f"model {encoder.model_id}, {encoder.device}, {encoder.precision}")
    with tqdm(desc="encode", unit=" images", disable=not sys.stderr.isatty()) as bar:
        report = evaluate(
            data,
            encoder=encoder,
            baseline=Encoder(found[options["baseline"]], **device) if options["baseline"] else None,
            also={name: Encoder(found[other], **device) for name, other in _labels(options["also"]).items()},
            names=names,
            retention=options["retention"],
            train=options["train"],
            exclude=options["exclude"],
            concepts=not options["no_concepts"],
            learn=learn_from,
            resamples=options["resamples"],
            on_picture=bar.update,
        )
    return report, of_collection


def _check_models(options: Mapping[str, Any]) -> None:
    """Refuse models that are no folder here and no name, before the first is downloaded."""
    from imret.models.resolve import check_name

    if options["model"] is not None:
        check_name(options["model"], arch=options["arch"])
    for name in (*filter(None, [options["baseline"]]), *options["also"]):
        check_name(name)


def _find_models(options: Mapping[str, Any], *, has_model: bool) -> dict[str | None, ModelFiles]:
    """Find the models that are measured in a folder, by their names; the default's is None."""
    from imret.defaults import DEFAULT_MODEL
    from imret.models.download import advice_for
    from imret.models.known_models import note_model
    from imret.models.resolve import resolve_model

    advice = advice_for(device=options["device"], precision=options["precision"])
    found: dict[str | None, ModelFiles] = {}
    if not has_model:
        model = options["model"]
        found[model] = resolve_model(
            model or DEFAULT_MODEL, arch=options["arch"], notify=announce, advice=advice
        )
        note_model(found[model], notify=announce)
    for name in (*filter(None, [options["baseline"]]), *options["also"]):
        found[name] = resolve_model(name, notify=announce, advice=advice)
    return found


def _warn_of_doubtful(
    data: str, names: Mapping[str, tuple[str, ...]], exclude: Sequence[str], model: ModelFiles
) -> None:
    """Tell of splits of a data set, and of numbers, that are measured as categories and have no name."""
    from imret.datasets.doubtful_categories import doubtful_folders
    from imret.datasets.names_csv import name_key
    from imret.retrieval.prompts import evaluation_queries, templates_for

    doubtful, templates = doubtful_folders(data, exclude), templates_for(model.model_cfg)
    for categories, what in ((doubtful.splits, "splits of a data set"), (doubtful.numbers, "numbers")):
        if unnamed := [category for category in categories if name_key(category) not in names]:
            announce(
                f"Warning: categories of {data} are named like {what}: {some_of(unnamed, 5)}. They "
                f"are asked for as that, {evaluation_queries(unnamed[0], templates=templates)[0]!r}; "
                "--names FILE names them, "
                "or give the folder that the categories lie in"
            )


def _as_json(report: EvaluationReport | None, collection: CollectionReport | None) -> str:
    parts = report.as_dict() if report else {}
    parts["collection"] = collection.as_dict() if collection else None
    # A name that is no Unicode is written as an escape, which is JSON's own.
    return json.dumps(parts, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


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
