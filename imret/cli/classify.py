"""`imret classify`: the command around `imret.retrieval.classify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any, TextIO

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
)
from imret.defaults import DEFAULT_COLLECTION, DEFAULT_MODEL
from imret.errors import DataError, StoreError, counted, some_of
from imret.output.console import announce
from imret.settings import read_settings

if TYPE_CHECKING:
    from imret.models.lazy_encoder import LazyEncoder
    from imret.retrieval.classify import Classification
    from imret.retrieval.concept_query import Known
    from imret.retrieval.concepts import Concepts
    from imret.retrieval.prompts import Names


_SECTIONS = {"Store": STORE, "Model": MODEL}


@click.command(
    "classify",
    cls=SectionedCommand,
    sections=_SECTIONS,
    short_help="Say what pictures show.",
    epilog=examples(
        "imret classify holiday/ --labels 'dog,cat,a cat that sits on a dog' --top-k 1",
        "imret classify ./pool.jpg",
        "imret classify ./pool.jpg holiday/ --collection photos --format tsv",
        "imret classify holiday/ --names names.csv --format json",
        "imret classify s3://bucket/photos/00012.tar --labels dog,cat",
    ),
)
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@click.option(
    "--labels",
    "labels_text",
    metavar="A,B,...|@FILE",
    help="What they may show: names or phrases, separated by commas, or @FILE with one a line.  "
    "[default: the categories of the collection]",
)
@click.option(
    "--top-k",
    "-k",
    type=Whole(1),
    default=3,
    show_default=True,
    help="Show this many labels of each picture.",
)
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "tsv", "json"]),
    default="table",
    show_default=True,
    help="json: one object per line, one for each picture.",
)
@click.option(
    "--names",
    "names_file",
    metavar="FILE",
    help="CSV file (category,name) of what categories are called.  [default: what the collection's are, else "
    "what the model was tuned with]",
)
@click.option(
    "--no-concepts",
    is_flag=True,
    help="Score all labels by their words, also those that were learnt from pictures (imret learn).",
)
@exclude_option
@db_option
@click.option(
    "--collection",
    metavar="NAME",
    help=f"Collection whose model is used, and without --labels its categories.  "
    f"[default: {DEFAULT_COLLECTION}]",
)
@model_option("Model to look with.  [default: the collection's; {default} where there is none]")
@arch_option
@max_pixels_option
@device_option
@precision_option
@click.pass_context
def command(
    context: click.Context,
    /,
    pictures: tuple[str, ...],
    labels_text: str | None,
    top_k: int,
    output: str,
    names_file: str | None,
    no_concepts: bool,
    exclude: tuple[str, ...],
    db: str | None,
    collection: str | None,
    **encoding: Any,
) -> None:
    """Say which of some labels each PICTURE shows, the most probable first.

    A folder means all in it; so do a tar or Parquet file, and a URL such as s3://bucket/photos.

    A probability is what the model makes of it and is shared out among the labels given: where none is true,
    one still comes first. Models trained with a sigmoid (SigLIP) judge each label on its own instead. Labels
    that imret learn taught are scored by what was learnt; of labels that were learnt together probabilities
    are as often right as they say, on pictures like those.

    A picture that cannot be read is reported, the others are classified, and the exit code is 1.
    """
    from imret.cli.pictures_to_classify import PicturesToClassify
    from imret.datasets.names_csv import read_names
    from imret.retrieval.classify import classify_each

    names = read_names(names_file) if names_file else {}
    labels = None if labels_text is None else read_labels(labels_text)
    files = PicturesToClassify(pictures, exclude, _report)
    files.report_missing()
    found = iter(files)
    first = next(found, None)
    if first is None:  # before a model is looked for, which may be a download
        announce(f"{files.n_skipped:,} could not be read")
        context.exit(1)
    labels, encoder, stored, known = _labels_and_encoder(labels, db, collection, encoding)
    n_labels = counted(len(labels), "label")
    announce(f"model {encoder.model_id}, {encoder.device}, {encoder.precision}; {n_labels}")
    if context.get_parameter_source("top_k") is not ParameterSource.DEFAULT and top_k > len(labels):
        announce(f"each picture gets {n_labels}, not {top_k}: there are no more")
    called = category_names(encoder, names, stored)
    concepts = None if no_concepts else _told(known, labels, called)
    results = classify_each(
        chain([first], found),
        labels,
        encoder=encoder,
        names=called,
        concepts=concepts,
        top_k=top_k,
        on_note=lambda picture, note: _report(str(picture), note),
    )
    n_unreadable = write_predictions(results, labels, output, sys.stdout) + files.n_skipped
    if n_unreadable:
        announce(f"{n_unreadable:,} could not be read")
        context.exit(1)


def read_labels(text: str) -> list[str]:
    """Return the labels of `--labels`: separated by commas, or the lines of the file after an @.

    Raises:
        DataError: If the file cannot be read, or there is no label.
    """
    if not text.startswith("@"):
        labels = [label.strip() for label in text.split(",")] if text.strip() else []
    else:
        try:
            with open(text[1:], encoding="utf-8-sig") as lines:
                labels = [line.strip() for line in lines if line.strip()]
        except OSError as error:
            raise DataError(f"cannot read the labels file {text[1:]!r}: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"cannot read the labels file {text[1:]!r}: {error}. Save it as UTF-8."
            ) from error
    if not labels:
        where = f" in the file {text[1:]!r}" if text.startswith("@") else ""
        raise DataError(f"there are no labels{where}. Say what pictures may show: --labels dog,cat")
    return labels


def _labels_and_encoder(
    labels: list[str] | None, db: str | None, collection: str | None, encoding: dict[str, Any]
) -> tuple[list[str], LazyEncoder, dict[str, tuple[str, ...]], Known]:
    """Return the labels, the model, stored names and concepts, from the collection where it is the one."""
    from imret.retrieval.category_names import stored_names
    from imret.retrieval.collection_encoder import check_same_encoder, collection_encoder
    from imret.retrieval.concept_query import known_concepts, model_concepts
    from imret.store import open_store

    if labels is not None and collection is None:
        encoder = _encoder_for_labels(db, encoding)
        return labels, encoder, {}, model_concepts(encoder)
    collection = collection or DEFAULT_COLLECTION
    with open_store(db, create=False, share="if possible", collection=collection) as store:
        if store.reason:
            announce(store.reason)
        with closing(store.open(collection)) as opened:
            categories = list(opened.facet("category")) if labels is None else labels
        if labels is None and not categories:
            raise DataError(
                f"the pictures of collection {collection!r} have no categories. Say what pictures may show: "
                "--labels dog,cat"
            )
        encoder = collection_encoder(store, collection, notify=announce, ask=ask_at_terminal(), **encoding)
        with closing(store.open(collection)) as opened:
            is_own = encoder.embeds_as(opened.identity.fingerprint)
            if encoding["model"] is None:
                check_same_encoder(opened, encoder, store=store)  # or it is not the model that was chosen
        known = known_concepts(store, collection, encoder) if is_own else model_concepts(encoder)
        return categories, encoder, stored_names(store, collection, notify=announce), known


def _told(known: Known, labels: Sequence[str], names: Names) -> Concepts | None:
    """Return the concepts that labels are scored by, and say which and how sure the probabilities are."""
    from imret.retrieval.classify import calibration_of, concepts_of

    for remark in known.remarks:
        announce(f"note: {remark}")
    if known.concepts is None:
        return None
    of_labels = zip(labels, concepts_of(labels, known.concepts, names), strict=True)
    learnt = [label for label, concept in of_labels if concept is not None]
    if not learnt:
        return None
    calibration = calibration_of(labels, known.concepts, names)
    if calibration is not None:
        announce(
            "scored by what was learnt (--no-concepts scores words); probabilities calibrated on pictures "
            f"held out: expected calibration error {calibration.error_before:.3f} by the words, "
            f"{calibration.error:.3f} now"
        )
    else:
        announce(
            f"scored by what was learnt: {some_of(learnt, 5)} (--no-concepts scores words); not calibrated, "
            "for not all labels were learnt together"
        )
    return known.concepts


def _encoder_for_labels(db: str | None, encoding: dict[str, Any]) -> LazyEncoder:
    """Return the model that is named, else that of the default collection, else the default model."""
    from imret.models.known_models import note_model
    from imret.models.lazy_encoder import LazyEncoder
    from imret.retrieval.collection_encoder import collection_encoder
    from imret.store import open_store

    model = encoding.pop("model")
    if model is None:
        try:
            store = open_store(db, create=False, share="if possible")
        except StoreError:
            if db is not None and db != read_settings().db:  # typed: then it is meant to be there
                raise
        else:
            with store:
                if store.live(DEFAULT_COLLECTION) is not None:
                    announce(
                        f"looking with the model of collection {DEFAULT_COLLECTION!r} in {store.address} "
                        "(--model names another)"
                    )
                    return collection_encoder(
                        store, DEFAULT_COLLECTION, notify=announce, ask=ask_at_terminal(), **encoding
                    )
    encoder = LazyEncoder(model or DEFAULT_MODEL, notify=announce, **encoding)
    note_model(encoder.files, notify=announce)
    return encoder


def write_predictions(
    results: Iterable[Classification], labels: Sequence[str], output: str, stream: TextIO
) -> int:
    """Write results as they come, in one of the formats, which are a contract: table, tsv, json.

    Returns:
        How many pictures could not be read; they are reported on stderr.
    """
    from imret.escape import escape_control, escape_undecodable
    from imret.output.formats import tsv

    n_unreadable = 0
    width = max(len(escape_control(label)) for label in labels)
    if output == "tsv":
        print("rank\tprobability\tscore\tlabel\tpath", file=stream)
    for result in results:
        path = str(result.picture)
        if result.reason is not None:
            n_unreadable += 1
            _report(path, result.reason)
        elif output == "json":
            fields = {
                "path": path,
                "predictions": [
                    {
                        "label": p.label,
                        "probability": round(p.probability, 6),
                        "score": round(p.score, 6),
                        "learnt": p.learnt,
                    }
                    for p in result.predictions
                ],
                "expected_error": result.expected_error and round(result.expected_error, 4),
            }
            # Escaped where a name is no valid Unicode: still JSON, and its path still opens the file.
            print(json.dumps(fields, ensure_ascii=escape_undecodable(path) != path), file=stream)
        for rank, p in enumerate(result.predictions if output != "json" else (), start=1):
            if output == "tsv":
                row = (str(rank), f"{p.probability:.6f}", f"{p.score:.6f}", tsv(p.label), tsv(path))
                print("\t".join(row), file=stream)
            else:
                name = escape_control(path)
                label = escape_control(p.label)
                print(f"{rank:>4}  {p.probability:.3f}  {label:<{width}}  {name}", file=stream)
    return n_unreadable


def _report(path: str, reason: str) -> None:
    from imret.escape import escape_control

    announce(f"{escape_control(path)}: {reason}")
