"""An evaluation as one self-contained HTML file: tables, bars, curves, confusion, and the worst failures to see.

It fetches nothing and runs no script. Names of files and categories come from strangers and are escaped.
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

from imret.datasets.scan import Skipped
from imret.errors import counted
from imret.evaluation.plots import confusion, curves, legend
from imret.evaluation.report import (
    CollectionReport,
    Data,
    Difference,
    EvaluationReport,
    Failure,
    ModelReport,
    as_dict,
)
from imret.evaluation.text_report import (
    COMPARED,
    IN_COLLECTION,
    absent_of,
    columns_of,
    fitted_of,
    rows_of,
    value_of,
)
from imret.files import write_atomically
from imret.images.thumbnails import thumbnail

NO_BREAK_HYPHEN = "\u2011"


def write_page(
    file: str | os.PathLike[str], report: EvaluationReport, collection: CollectionReport | None = None
) -> Path:
    """Write a report of `evaluate` as HTML.

    Args:
        file: Where to; replaced as a whole if it is a file that exists.
        report: What `evaluate` returned.
        collection: What `evaluate_collection` returned, if it is to be on the page too.

    Returns:
        The absolute path of the file.

    Raises:
        OSError: If it cannot be written.
    """
    data, provenance = report.data, report.provenance
    ours = next(model for model in report.models if model.name == "model")
    body = [
        _figures(report),
        _differences(report),
        _collection(collection) if collection else "",
        _categories(report.models, data),
        curves(report.models, report.recall_levels),
        confusion(ours.zero_shot),
        _gallery(ours.worst, Path(data.source)),
        _skipped(data.skipped),
    ]
    page = _PAGE.format(
        title=f"{_text(_last(ours.model_id))} on {_text(_last(data.source))}",
        summary=f"{counted(data.images)} of {_text(data.source)} in "
        f"{counted(len(data.categories), 'category', 'categories')}. imret {_text(provenance.imret)}, {_text(provenance.date)}, {_text(provenance.device)} in "
        f"{_text(provenance.precision)}, {provenance.seconds:,.0f} s.",
        body="\n".join(part for part in body if part),
    )
    write_atomically(file, page.encode("utf-8", "backslashreplace"), in_place=True)
    return Path(os.path.abspath(file))


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _last(path: str) -> str:
    return Path(path).name or path


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return "<td>–</td>"
    return f"<td>{'<b>' if value == best else ''}{value:.3f}{'</b>' if value == best else ''}</td>"


def _figures(report: EvaluationReport) -> str:
    rows, columns = rows_of(report), columns_of(report)
    values = [[value_of(row, column.path) for column in columns] for row in rows]
    best = [max((v for v in column if v is not None), default=None) for column in zip(*values, strict=True)]
    head = "".join(
        f'<td title="{_text(column.meaning)}">{_text(column.title.replace("-", NO_BREAK_HYPHEN))}</td>'
        for column in columns
    )
    body = "".join(
        f'<tr><th scope="row">{_text(row.name)}</th>'
        f"{''.join(_cell(value, top) for value, top in zip(cells, best, strict=True))}</tr>"
        for row, cells in zip(rows, values, strict=True)
    )
    key = "".join(f"<dt>{_text(column.title)}</dt><dd>{_text(column.meaning)}</dd>" for column in columns)
    models = "".join(
        f"<dt>{_text(model.name)}</dt><dd>{_text(model.model_id)} ({model.fingerprint[:8]})</dd>"
        for model in report.models
    )
    absent, fitted = absent_of(report), fitted_of(report)
    prompts = next((baseline.prompts for baseline in fitted if baseline.prompts), {})
    note = "".join(f"<p class=note>No row of {_text(name)}: {_text(why)}</p>" for name, why in absent.items())
    if absent and not fitted:
        note = f"<p class=note>What needs no tuning {_text(next(iter(absent.values())))}</p>"
    if fitted:
        if duplicates := report.data.duplicates_in_train:
            note += f"<p class=note><b>{len(duplicates):,} of the pictures are among those too, which flatters these rows.</b></p>"
        note += f"<p class=note>The last {len(fitted)} rows need no tuning: fitted on training pictures, as the {_text(fitted[0].on)} embeds them.</p>"
    queries = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(' / '.join(category.queries))}"
        + (f"<br>tuned: {_text(prompts[name])}" if name in prompts else "")
        + "</dd>"
        for name, category in report.data.categories.items()
    )
    return (
        f"<section><h2>Figures</h2><div class=wide><table class=figures><tr><th></th>{head}</tr>{body}</table></div>{note}"
        f"<details><summary>What they mean, the models, and what was asked</summary><dl>{key}</dl><dl>{models}</dl><dl>{queries}</dl></details></section>"
    )


def _differences(report: EvaluationReport) -> str:
    """Draw each difference as a dot on its interval, on one scale for all."""
    if not report.differences:
        return ""
    ends = [0.0, *(end for row in report.differences for end in (*row.interval, row.difference))]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def at(value: float) -> str:
        return f"{100 * (value - low) / span:.2f}%"

    def line(row: Difference) -> str:
        begin, end = row.interval
        return (
            f"<tr><th>{_text(row.of)}</th><td class=plot><div class=axis><i class=zero style='left:{at(0)}'></i>"
            f"<i class=span style='left:{at(begin)};width:{100 * (end - begin) / span:.2f}%'></i>"
            f"<i class=dot style='left:{at(row.difference)}'></i></div></td>"
            f"<td>{row.difference:+.3f} <small>[{begin:+.3f}, {end:+.3f}]</small></td></tr>"
        )

    parts = []
    for metric, title in COMPARED:
        if lines := "".join(line(row) for row in report.differences if row.metric == metric):
            parts.append(f"<h3>{_text(title)}</h3><table class=forest>{lines}</table>")
    return (
        f"<section><h2>Difference to the {_text(report.reference)}</h2>{''.join(parts)}"
        f"<p class=note>Line and brackets: 95 % interval of {report.provenance.resamples:,} paired bootstrap draws over pictures, seed {report.provenance.seed}.</p></section>"
    )


def _categories(models: Sequence[ModelReport], data: Data) -> str:
    rows = []
    for name, category in data.categories.items():
        rankings = [model.text_to_image.per_category[name] for model in models]
        bars = []
        for number, ranking in enumerate(rankings):
            low, high = ranking.ap_interval
            bars.append(
                f"<div class=lane><div class='bar c{number % 6}' style='width:{100 * ranking.ap:.1f}%'></div>"
                f"<i class=whisker style='left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%'></i></div>"
            )
        numbers = "".join(f"<div>{ranking.ap:.3f}</div>" for ranking in rankings)
        called = f"{category.called}, " if category.called != name else ""
        rows.append(
            f"<tr><th>{_text(name)} <small>{_text(called)}{category.images:,}</small></th>"
            f"<td class=plot>{''.join(bars)}</td><td class=lanes>{numbers}</td></tr>"
        )
    return (
        f"<section><h2>Average precision by category</h2>{legend(models)}<table class=categories>{''.join(rows)}</table>"
        "<p class=note>Thin line: 95 % bootstrap interval over pictures.</p></section>"
    )


def _collection(collection: CollectionReport) -> str:
    head = "".join(
        f"<td>{_text(IN_COLLECTION[name].replace('-', NO_BREAK_HYPHEN))}</td>"
        for name in as_dict(collection.exact)
    )
    rows = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{value:{form}}</td>' for value in as_dict(ranking).values())}</tr>"
        for ranking, name, form in (
            (collection.through_index, "through the index", ".3f"),
            (collection.exact, "exact", ".3f"),
            (collection.difference, "difference", "+.3f"),
        )
    )
    return (
        f"<section><h2>Collection {_text(collection.name)} <small>{collection.size}</small></h2>"
        f"<div class=wide><table class=figures><tr><th></th>{head}</tr>{rows}</table></div>"
        f"<p class=note>Recall of the index @10 {collection.recall[10]:.3f}, @100 {collection.recall[100]:.3f}.</p></section>"
    )


def _gallery(worst: Sequence[Failure], folder: Path) -> str:
    parts = []
    for kind, title, meaning in (
        ("missed", "Missed", "pictures that rank last for their own category"),
        ("intruder", "Intruders", "pictures of other categories that rank first"),
    ):
        figures = []
        for failure in [entry for entry in worst if entry.kind == kind]:
            picture = thumbnail(folder / failure.path)
            image = f'<img src="{picture}" alt="">' if picture else "<div class=gone>cannot be read</div>"
            is_what = f"is {_text(failure.true)}, " if kind == "intruder" else ""
            figures.append(
                f'<figure title="{_text(failure.path)}">{image}<figcaption><b>{_text(failure.category)}</b> '
                f"rank {failure.rank:,}<br>{is_what}taken for {_text(failure.predicted)}</figcaption></figure>"
            )
        if figures:
            parts.append(
                f"<section><h2>{title} <small>{meaning}</small></h2><div class=strip>{''.join(figures)}</div></section>"
            )
    return "\n".join(parts)


def _skipped(skipped: Sequence[Skipped]) -> str:
    lines = "".join(f"<li>{_text(picture.path)}: {_text(picture.reason)}</li>" for picture in skipped[:100])
    more = f"<p class=note>and {len(skipped) - 100:,} more</p>" if len(skipped) > 100 else ""
    return f"<section><h2>Left out</h2><ul>{lines}</ul>{more}</section>" if skipped else ""


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2420; --soft: #5f6963; --paper: #fbfaf7; --line: #e3e1da; --faint: #f1efe8; --bad: #c2553a;
  --c0: #a3a8a1; --c1: #2f7d5b; --c2: #3b6fb0; --c3: #b8782a; --c4: #8a4f9e; --c5: #b04a5a; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e9ebe8; --soft: #a2aaa4; --paper: #161917; --line: #2c312d; --faint: #1f2420; --bad: #d4694d;
  --c0: #747b75; --c1: #45a97d; --c2: #6c9bd6; --c3: #d79a4c; --c4: #b583c7; --c5: #d67787; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; padding: 0 1.25rem; max-width: 62rem; }}
h1 {{ font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }}
h1 + p {{ color: var(--soft); margin: .25rem 0 2rem; overflow-wrap: anywhere; }}
section {{ border-top: 1px solid var(--line); padding: .9rem 0 1.1rem; }}
h2 {{ font-size: 1rem; font-weight: 600; margin: 0 0 .6rem; }}
h3 {{ font-size: .85rem; font-weight: 500; color: var(--soft); margin: .8rem 0 .1rem; }}
small, .note, details, .legend {{ font-weight: 400; color: var(--soft); font-size: .82rem; }}
.note {{ margin: .5rem 0 0; }}
b {{ font-weight: 650; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; font-weight: 500; padding: .25rem .8rem .25rem 0; }}
td {{ text-align: right; padding: .25rem 0 .25rem .8rem; white-space: nowrap; }}
.wide {{ overflow-x: auto; }}
.figures tr:first-child td {{ white-space: normal; vertical-align: bottom; color: var(--soft); font-size: .82rem; line-height: 1.2; }}
.figures tr + tr {{ border-top: 1px solid var(--line); }}
.figures th {{ position: sticky; left: 0; background: var(--paper); white-space: nowrap; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .6rem 0; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
summary {{ cursor: pointer; margin-top: .5rem; }}
.forest th {{ width: 26%; }} .forest td:last-child {{ width: 13rem; }}
.plot {{ padding: .25rem 0; }}
.axis {{ position: relative; height: 1rem; }} .axis i {{ position: absolute; }}
.zero {{ top: -.3rem; bottom: -.3rem; border-left: 1px dashed var(--soft); }}
.span {{ top: calc(50% - 1px); height: 2px; background: var(--c1); }}
.dot {{ top: calc(50% - 4px); width: 8px; height: 8px; margin-left: -4px; border-radius: 50%; background: var(--c1); }}
.categories th {{ width: 26%; overflow-wrap: anywhere; line-height: 1.25; }} .categories td:last-child {{ width: 3.6rem; }} .categories small {{ display: block; }}
.categories tr + tr > * {{ border-top: 1px solid var(--line); }}
.lane {{ position: relative; height: 14px; margin: 2px 0; background: var(--faint); border-radius: 2px; }}
.bar {{ height: 100%; border-radius: 2px; min-width: 1px; }}
.whisker {{ position: absolute; top: 4px; height: 6px; border: solid var(--ink); border-width: 0 1px; background: linear-gradient(var(--ink), var(--ink)) center / 100% 1px no-repeat; opacity: .75; }}
.lanes {{ font-size: .78rem; }} .lanes div {{ height: 14px; margin: 2px 0; line-height: 14px; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0 0 .4rem; }} .legend i {{ display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem; vertical-align: -1px; }}
.c0 {{ background: var(--c0); }} .c1 {{ background: var(--c1); }} .c2 {{ background: var(--c2); }} .c3 {{ background: var(--c3); }} .c4 {{ background: var(--c4); }} .c5 {{ background: var(--c5); }}
.curves {{ display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 8fr); gap: 1rem 1.6rem; align-items: start; }}
.small {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .7rem 1rem; }}
svg {{ display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; overflow: visible; }}
svg text {{ fill: var(--soft); }} .grid {{ stroke: var(--line); fill: none; }}
.line {{ fill: none; stroke-width: 2; stroke-linejoin: round; vector-effect: non-scaling-stroke; }}
.s0 {{ stroke: var(--c0); }} .s1 {{ stroke: var(--c1); }} .s2 {{ stroke: var(--c2); }} .s3 {{ stroke: var(--c3); }} .s4 {{ stroke: var(--c4); }} .s5 {{ stroke: var(--c5); }}
.matrix {{ width: auto; }} .matrix td {{ text-align: center; min-width: 2.1rem; padding: .2rem; border: 1px solid var(--line); }}
.matrix .own {{ background: color-mix(in srgb, var(--c1) calc(var(--share) * 70%), transparent); }}
.matrix .other {{ background: color-mix(in srgb, var(--bad) calc(var(--share) * 100%), transparent); }}
.turn {{ height: 7.5rem; vertical-align: bottom; padding: 0 0 .3rem; }} .turn span {{ writing-mode: vertical-rl; transform: rotate(180deg); }}
.strip {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: .8rem; }}
figure {{ margin: 0; }}
img, .gone {{ width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; display: block; background: var(--line); }}
.gone {{ display: grid; place-items: center; font-size: .8rem; color: var(--soft); }}
figcaption {{ font-size: .78rem; color: var(--soft); margin-top: .25rem; overflow-wrap: anywhere; }} figcaption b {{ color: var(--ink); font-weight: 500; }}
li {{ overflow-wrap: anywhere; }}
@media (max-width: 560px) {{ body {{ padding: 0 .9rem; margin: 1.2rem auto; }} .strip {{ grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); }} .curves {{ grid-template-columns: 1fr; }} .small {{ grid-template-columns: repeat(auto-fill, minmax(5.5rem, 1fr)); }} .figures th {{ white-space: normal; min-width: 7rem; }}
  .forest tr, .categories tr {{ display: grid; grid-template-columns: 1fr auto; }} .forest th, .forest td:last-child, .categories th {{ width: auto; }} .forest .plot {{ grid-row: 2; grid-column: 1 / -1; }} .forest small, .categories small {{ display: inline; }}
  .categories th {{ grid-column: 1 / -1; }} .categories tr > td {{ border: 0 !important; }} .forest tr {{ padding-bottom: .3rem; }} .zero {{ top: 0; bottom: 0; }} }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{body}
</html>
"""
