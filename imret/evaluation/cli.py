"""`imret evaluate`: the command around `imret.evaluation.report`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from imret import DEFAULT_COLLECTION
from imret.errors import DataError
from imret.options import announce, arch_option, db_option, device_option, model_option, precision_option


@click.command(
    "evaluate",
    short_help="Measure a model on labelled pictures.",
    epilog="Example:  imret evaluate data/test --model models/nature --baseline ViT-H-14/laion2b_s32b_b79k "
    "--html report.html",
)
@click.argument("data", metavar="DATA", required=False, type=click.Path(path_type=str))
@model_option("Model to measure.  [default: {default}]")
@arch_option
@click.option("--baseline", metavar="MODEL", help="Model to compare with, such as the one it was tuned from.")
@click.option(
    "--retention",
    metavar="FILE",
    help="CSV file (path, caption) of pictures of other things: how well captions still find them.",
)
@click.option(
    "--train", metavar="DIR", help="Labelled training pictures, for the baselines that need some: probe, kNN."
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
    model: str | None,
    arch: str | None,
    baseline: str | None,
    retention: str | None,
    train: str | None,
    collection: str | None,
    db: str | None,
    device: str,
    precision: str,
    resamples: int,
    page: str | None,
    json_file: str | None,
) -> None:
    """Measure how well a model finds the pictures in DATA, one sub-folder per category.

    Asks for each category in words and ranks all pictures; lets pictures find their like; names each picture;
    and, with --retention, checks what the model still knows of other things.
    """
    from imret import DEFAULT_MODEL
    from imret.encoder import Encoder
    from imret.evaluation.page import write_page
    from imret.evaluation.report import evaluate, evaluate_collection
    from imret.retrieval import encoder_for
    from imret.store import open_store

    if data is None and collection is None:
        raise click.UsageError("give DATA, a folder of labelled pictures, or --collection NAME.")
    if data is None and (page or baseline or retention or train):
        raise click.UsageError("--html, --baseline, --retention and --train need DATA.")
    options: dict[str, Any] = {"device": device, "precision": precision, "notify": announce}
    through = None
    if collection is not None:
        with open_store(db, create=False) as store:
            encoder = encoder_for(store, collection, model=model, arch=arch, **options)
            through = evaluate_collection(store, collection, encoder=encoder)
    report: dict[str, Any] = {"collection": through}
    if data is not None:
        encoder = Encoder(model or DEFAULT_MODEL, arch=arch, **options)
        with _Count() as count:
            report = {
                **evaluate(
                    data,
                    encoder=encoder,
                    baseline=Encoder(baseline, **options) if baseline else None,
                    retention=retention,
                    train=train,
                    resamples=resamples,
                    on_picture=count.one,
                ),
                "collection": through,
            }
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if json_file == "-":
        print(text)
    else:
        print(format_report(report))
    try:
        if json_file not in (None, "-"):
            Path(json_file).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        if page is not None:
            announce(f"Wrote {write_page(page, report)}")
    except OSError as error:
        raise DataError(f"cannot write {error.filename!r}: {error.strerror}.") from error


def format_report(report: Mapping[str, Any]) -> str:
    """Return the figures for a terminal: one line a figure, then one a category."""
    lines: list[str] = []
    if report.get("models"):
        models = report["models"]
        names = [m["name"] for m in models] + (["difference"] if len(models) > 1 else [])
        lines.append(f"{'':<26}" + "".join(f"{name:>12}" for name in names))
        intervals = {row["metric"]: row["interval"] for row in report["differences"]}
        for name, key, values in _figures(models):
            line = f"{name:<26}" + "".join(f"{value:>12.3f}" for value in values)
            if len(values) > 1:
                line += f"{values[1] - values[0]:>+12.3f}"
                if key in intervals:
                    low, high = intervals[key]
                    line += f"  95 % [{low:+.3f}, {high:+.3f}]"
            lines.append(line)
        lines.append("")
        for category, about in report["data"]["categories"].items():
            values = [m["text_to_image"]["per_category"][category]["ap"] for m in models]
            line = f"  {category[:16]:<17}{about['images']:>6,} " + "".join(f"{v:>12.3f}" for v in values)
            lines.append(line + (f"{values[1] - values[0]:>+12.3f}" if len(values) > 1 else ""))
        fitted = [row for row in report["baselines"] if row["map"] is not None]
        if fitted:
            lines += ["", f"{'without tuning':<26}{'mAP':>12}{'top-1':>12}"]
            lines += [f"  {row['name']:<24}{row['map']:>12.3f}{row['top1']:>12.3f}" for row in fitted]
        if report["data"]["skipped"]:
            lines.append(f"{len(report['data']['skipped']):,} pictures could not be read")
    if report.get("collection"):
        one = report["collection"]
        lines.append(
            f"collection {one['name']}, {one['images']:,} pictures: text-to-image mAP "
            f"{one['text_to_image_map']:.3f} through the index, {one['exact_map']:.3f} exact; "
            f"recall@10 of the index {one['recall@10']:.3f}"
        )
    return "\n".join(lines)


def _figures(models: list[Mapping[str, Any]]) -> list[tuple[str, str, list[float]]]:
    rows = [
        ("text to image mAP", "text_to_image_map", [m["text_to_image"]["macro"]["map"] for m in models]),
        *(
            (f"text to image {name}", name, [m["text_to_image"]["macro"][name] for m in models])
            for name in ("r_precision", "p@1", "p@10", "ndcg@10", "hit_rate@10")
        ),
        ("image to image mAP", "", [m["image_to_image"]["map"] for m in models]),
        ("zero-shot top-1", "zero_shot_top1", [m["zero_shot"]["top1"] for m in models]),
        ("zero-shot top-1, macro", "", [m["zero_shot"]["macro_top1"] for m in models]),
    ]
    if models[-1]["retention"]:
        rows.append(("retention hit rate@10", "", [m["retention"]["hit_rate@10"] for m in models]))
    return rows


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
