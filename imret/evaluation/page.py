"""An evaluation as one self-contained HTML file: tables, bars, confusion, and the worst failures to look at.

It fetches nothing and runs no script. Names of files and categories come from strangers and are escaped.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imret.sheet import thumbnail

_METRICS = (
    ("map", "mAP", "mean over categories of the average precision of asking for them in words"),
    ("r_precision", "R-precision", "precision among as many pictures as there are right ones"),
    ("p@1", "P@1", "whether the first picture is right"),
    ("p@10", "P@10", "share of right ones among the first ten"),
    ("ndcg@10", "nDCG@10", "the same, with earlier ranks counting more"),
    ("hit_rate@10", "hit rate@10", "whether any of the first ten is right"),
)


def write_page(file: str | os.PathLike[str], report: Mapping[str, Any]) -> Path:
    """Write a report of `evaluate` as HTML.

    Args:
        file: Where to; replaced as a whole if it exists.
        report: What `evaluate` returned.

    Returns:
        The absolute path of the file.

    Raises:
        OSError: If it cannot be written.
    """
    data, models = report["data"], report["models"]
    title = f"{models[-1]['model_id']} on {data['source']}"
    made = report["made"]
    body = [
        _headline(report),
        _categories(models, data),
        _confusion(models[-1]["zero_shot"]),
        _baselines(report["baselines"]),
        _gallery(models[-1]["worst"], Path(data["source"])),
        _skipped(data["skipped"]),
    ]
    page = _PAGE.format(
        title=html.escape(title),
        summary=f"{data['images']:,} pictures in {len(data['categories'])} categories. "
        f"imret {html.escape(made['imret'])}, {html.escape(made['date'])}, {html.escape(made['device'])} in "
        f"{html.escape(made['precision'])}, {made['seconds']} s.",
        body="\n".join(part for part in body if part),
    )
    target = Path(file).resolve()
    part_file = target.with_name(f".{target.name}.part")
    part_file.write_text(page, encoding="utf-8", errors="backslashreplace")
    os.replace(part_file, target)
    return target


def _headline(report: Mapping[str, Any]) -> str:
    models = report["models"]
    compared = len(models) > 1
    rows = []
    for key, name, meaning in _METRICS:
        rows.append((f"text to image {name}", meaning, [m["text_to_image"]["macro"][key] for m in models]))
    rows.append(
        (
            "image to image mAP",
            "every picture asks for its category among the others",
            [m["image_to_image"]["map"] for m in models],
        )
    )
    rows.append(
        (
            "zero-shot top-1",
            "share of pictures whose nearest category is their own",
            [m["zero_shot"]["top1"] for m in models],
        )
    )
    if models[-1]["retention"]:
        values = [m["retention"]["hit_rate@10"] for m in models]
        rows.append(
            ("retention hit rate@10", "how often a caption finds its picture in the first ten", values)
        )
    intervals = {row["metric"]: row["interval"] for row in report["differences"]}
    known = {"text to image mAP": "text_to_image_map", "zero-shot top-1": "zero_shot_top1"}
    lines = []
    for name, meaning, values in rows:
        cells = "".join(f"<td>{value:.3f}</td>" for value in values)
        if compared:
            low_high = intervals.get(known.get(name, ""))
            between = f" <small>[{low_high[0]:+.3f}, {low_high[1]:+.3f}]</small>" if low_high else ""
            cells += f"<td>{values[1] - values[0]:+.3f}{between}</td>"
        lines.append(f"<tr><th>{html.escape(name)} <small>{html.escape(meaning)}</small></th>{cells}</tr>")
    heads = "".join(f"<td>{html.escape(m['name'])}</td>" for m in models) + (
        "<td>difference</td>" if compared else ""
    )
    names = "".join(
        f"<p><small>{html.escape(m['name'])}: {html.escape(m['model_id'])} ({m['fingerprint'][:8]})</small></p>"
        for m in models
    )
    note = "<p><small>In brackets: paired bootstrap, 95 %, over pictures.</small></p>" if compared else ""
    return f"<section><h2>Figures</h2><table><tr><th></th>{heads}</tr>{''.join(lines)}</table>{names}{note}</section>"


def _categories(models: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> str:
    rows = []
    for category, about in data["categories"].items():
        bars = "".join(
            f'<div class="bar {m["name"]}" style="width:{100 * m["text_to_image"]["per_category"][category]["ap"]:.1f}%">'
            f"<span>{m['text_to_image']['per_category'][category]['ap']:.3f}</span></div>"
            for m in models
        )
        rows.append(
            f"<tr><th>{html.escape(category)} <small>{html.escape(about['called'])}, {about['images']:,}</small></th>"
            f"<td class=bars>{bars}</td></tr>"
        )
    key = " <small>grey: baseline</small>" if len(models) > 1 else ""
    return f"<section><h2>Average precision by category{key}</h2><table>{''.join(rows)}</table></section>"


def _confusion(zero_shot: Mapping[str, Any]) -> str:
    labels = [html.escape(label) for label in zero_shot["labels"]]
    head = "".join(f"<th class=turn><span>{label}</span></th>" for label in labels)
    rows = []
    for i, (label, counts) in enumerate(zip(labels, zero_shot["confusion"], strict=True)):
        total = max(1, sum(counts))
        cells = "".join(
            f'<td class="{"own" if i == j else "other"}" style="--share:{count / total:.3f}">{count or ""}</td>'
            for j, count in enumerate(counts)
        )
        rows.append(f"<tr><th>{label}</th>{cells}</tr>")
    return (
        "<section><h2>Zero-shot confusion <small>row: what it is, column: what it is taken for</small></h2>"
        f"<div class=wide><table class=matrix><tr><th></th>{head}</tr>{''.join(rows)}</table></div></section>"
    )


def _baselines(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(
        f"<tr><th>{html.escape(row['name'])}</th>"
        + (
            f"<td colspan=2><small>{html.escape(row['why_absent'])}</small></td>"
            if row["map"] is None
            else f"<td>{row['map']:.3f}</td><td>{row['top1']:.3f}</td>"
        )
        + "</tr>"
        for row in rows
    )
    return (
        "<section><h2>Without tuning <small>on embeddings of the first model</small></h2>"
        f"<table><tr><th></th><td>mAP</td><td>top-1</td></tr>{lines}</table></section>"
    )


def _gallery(worst: Sequence[Mapping[str, Any]], folder: Path) -> str:
    parts = []
    for kind, title in (
        ("missed", "Missed: own pictures that rank last"),
        ("intruder", "Intruders: strangers that rank first"),
    ):
        figures = []
        for entry in worst:
            if entry["kind"] != kind:
                continue
            picture = thumbnail(folder / entry["path"])
            image = f'<img src="{picture}" alt="">' if picture else "<div class=gone>cannot be read</div>"
            figures.append(
                f'<figure title="{html.escape(entry["path"], quote=True)}">{image}<figcaption>'
                f"asked {html.escape(entry['category'])}, rank {entry['rank']:,}<br>is "
                f"{html.escape(entry['true'])}, taken for {html.escape(entry['predicted'])}</figcaption></figure>"
            )
        if figures:
            parts.append(f"<section><h2>{title}</h2><div class=strip>{''.join(figures)}</div></section>")
    return "\n".join(parts)


def _skipped(skipped: Sequence[Mapping[str, str]]) -> str:
    if not skipped:
        return ""
    lines = "".join(f"<li>{html.escape(one['path'])}: {html.escape(one['reason'])}</li>" for one in skipped)
    return f"<section><h2>Left out</h2><ul>{lines}</ul></section>"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2420; --soft: #5f6963; --paper: #fbfaf7; --line: #e3e1da; --bar: #2f7d5b; --old: #b9bdb6; --bad: #c2553a; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e9ebe8; --soft: #a2aaa4; --paper: #161917; --line: #2c312d; --bar: #3f9d74; --old: #59605b; --bad: #d4694d; }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; padding: 0 1.25rem; max-width: 60rem; }}
h1 {{ font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }}
h1 + p {{ color: var(--soft); margin: .25rem 0 2rem; }}
section {{ border-top: 1px solid var(--line); padding: .9rem 0 1.1rem; }}
h2 {{ font-size: 1rem; font-weight: 600; margin: 0 0 .6rem; }}
small {{ font-weight: 400; color: var(--soft); }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; font-weight: 500; padding: .25rem .6rem .25rem 0; overflow-wrap: anywhere; }}
th small {{ display: block; }}
td {{ text-align: right; padding: .25rem 0 .25rem .6rem; white-space: nowrap; }}
.bars {{ width: 65%; }}
.bar {{ background: var(--bar); height: 1.15rem; margin: 1px 0; border-radius: 3px; min-width: 1px; }}
.bar.baseline {{ background: var(--old); }}
.bar span {{ font-size: .75rem; line-height: 1.15rem; padding: 0 .4rem; float: left; color: #000; mix-blend-mode: normal; background: color-mix(in srgb, var(--paper) 75%, transparent); color: var(--ink); border-radius: 3px; }}
.wide {{ overflow-x: auto; }}
.matrix {{ width: auto; }} .matrix td {{ text-align: center; min-width: 2rem; padding: .2rem; border: 1px solid var(--line); }}
.matrix .own {{ background: color-mix(in srgb, var(--bar) calc(var(--share) * 70%), transparent); }}
.matrix .other {{ background: color-mix(in srgb, var(--bad) calc(var(--share) * 100%), transparent); }}
.turn {{ height: 7.5rem; vertical-align: bottom; padding: 0; }} .turn span {{ writing-mode: vertical-rl; transform: rotate(180deg); }}
.strip {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: .8rem; }}
figure {{ margin: 0; }}
img, .gone {{ width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; display: block; background: var(--line); }}
figcaption {{ font-size: .75rem; color: var(--soft); margin-top: .25rem; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{body}
</html>
"""
