"""`imret benchmark`: the command around `imret.evaluation.benchmark`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from imret.cli.help import MODEL, SectionedCommand, examples
from imret.cli.numbers import Whole
from imret.cli.options import (
    arch_option,
    device_option,
    format_option,
    max_pixels_option,
    model_option,
)
from imret.errors import counted
from imret.escape import escape_control
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.evaluation.benchmark_report import BenchmarkReport

_MOST_TOLD = 5


@click.command(
    "benchmark",
    cls=SectionedCommand,
    sections={"Model": MODEL, "Data": ("--split", "--images")},
    short_help="Run a published benchmark.",
    epilog=examples(
        "imret benchmark INQUIRE-Rerank --model ViT-B-32/openai",
        "imret benchmark INQUIRE-Rerank --split validation --k 10 --k 50",
        "imret benchmark wds_mscoco_captions --model models/nature --format json",
        "imret benchmark wds_mscoco_captions/test/0.tar --k 1 --k 5",
        "imret benchmark judged.csv --images photos --model models/nature",
    ),
)
@click.argument("data", metavar="DATA...", nargs=-1, required=True, type=click.Path(path_type=str))
@click.option(
    "--k",
    "ks",
    multiple=True,
    type=Whole(1),
    help="Figures over the first N pictures; may be repeated.  [default: whole lists; of captions 1, 5, 10]",
)
@click.option(
    "--resamples",
    type=Whole(100),
    default=2000,
    show_default=True,
    help="How often queries or pictures are drawn anew, which the intervals are computed from.",
)
@format_option("json: one object, with every query, what was left out, and how it was made.")
@click.option(
    "--split", metavar="NAME", default="test", show_default=True, help="Part of a folder that has several."
)
@click.option(
    "--images",
    metavar="DIR",
    help="Folder that paths of a CSV file begin in.  [default: that of the file, or images in it]",
)
@model_option("Model to measure.  [default: {default}]")
@arch_option
@max_pixels_option
@device_option
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "auto"]),
    default="fp32",
    show_default=True,
    help="bf16 is faster on much hardware, and moves the last decimals.",
)
@click.pass_context
def command(
    context: click.Context,
    /,
    data: tuple[str, ...],
    ks: tuple[int, ...],
    resamples: int,
    output: str,
    split: str,
    images: str | None,
    **encoding: Any,
) -> None:
    """Run a benchmark on DATA as it is published, and give the figures that are published of it.

    Judged lists, as INQUIRE-Rerank: Parquet files, or CSV (query,path,relevant) and a folder of pictures. The
    pictures of each query are ranked: mAP, nDCG, MRR.

    Captions, as the retrieval sets of CLIP_benchmark: tar files of pictures and their captions (WebDataset).
    Captions find pictures, and pictures captions: recall at k, as papers on CLIP have it.

    Queries and captions are asked as they are written. A picture that cannot be read is reported, the figures
    are those of the others, and the exit code is 1.
    """
    from imret.datasets.webdataset import Shards
    from imret.defaults import DEFAULT_MODEL
    from imret.evaluation.benchmark import CAPTION_KS, find_benchmark
    from imret.models.download import advice_for
    from imret.models.known_models import note_model
    from imret.models.resolve import check_name, resolve_model

    found = find_benchmark(data, split=split, images=images)  # before a model is looked for
    model, device, precision = encoding["model"] or DEFAULT_MODEL, encoding["device"], encoding["precision"]
    check_name(model, arch=encoding["arch"])
    files = resolve_model(
        model,
        arch=encoding["arch"],
        notify=announce,
        advice=advice_for(device=device, precision=precision),
    )
    note_model(files, notify=announce)
    from imret.models.encoder import Encoder  # which imports torch

    encoder = Encoder(files, device=device, precision=precision)
    announce(f"model {encoder.model_id}, {encoder.device}, {encoder.precision}")
    depths = tuple(sorted(set(ks))) or (CAPTION_KS if isinstance(found, Shards) else ())
    report = _run(found, encoder, depths, resamples)
    _tell(report)
    if output == "json":
        # A name that is no Unicode is written as an escape, which is JSON's own.
        text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False)
        print(text.encode("utf-8", "backslashreplace").decode())
    else:
        from imret.evaluation.benchmark_report import format_benchmark

        print(format_benchmark(report))
    if report.data.left_out:
        announce(f"left out: {len(report.data.left_out):,}. The figures are not those of the whole set")
        context.exit(1)


def _run(found: Any, encoder: Any, depths: tuple[int, ...], resamples: int) -> BenchmarkReport:
    from tqdm import tqdm

    from imret.datasets.judged import JudgedLists
    from imret.evaluation.benchmark import benchmark_captions, benchmark_judged

    hidden = not sys.stderr.isatty()
    if isinstance(found, JudgedLists):
        with tqdm(desc="encode", unit=" images", total=len(found.pictures), disable=hidden) as bar:
            return benchmark_judged(
                found, encoder=encoder, ks=depths, resamples=resamples, on_picture=bar.update
            )
    with (
        tqdm(desc="encode", unit=" images", disable=hidden) as bar,
        tqdm(desc="captions", unit=" texts", disable=hidden, delay=1) as texts,
    ):
        return benchmark_captions(
            found,
            encoder=encoder,
            ks=depths,
            resamples=resamples,
            on_picture=bar.update,
            on_texts=texts.update,
        )


def _tell(report: BenchmarkReport) -> None:
    """Tell what the figures do not say: what was left out, cut, or counted in a way to know of."""
    for skipped in report.data.left_out[:_MOST_TOLD]:
        announce(escape_control(f"{skipped.path}: {skipped.reason}"))
    if (more := len(report.data.left_out) - _MOST_TOLD) > 0:
        announce(f"and {more:,} more, which --format json lists")
    if report.data.cut:
        what = ("query", "queries") if report.per_query is not None else ("caption", "captions")
        announce(f"{counted(report.data.cut, *what)} longer than the model reads, and cut")
    for note in report.data.notes:
        announce(escape_control(f"Note: {note}"))
