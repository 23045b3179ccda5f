"""A contact sheet: search results as one self-contained HTML file, thumbnails and all.

Hides thumbnails, layout and escaping. It fetches nothing and runs no script, so it opens anywhere.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from imret.errors import ImageError
from imret.images import load_image
from imret.payload import printable
from imret.retrieval import Hit

THUMBNAIL_PIXELS = 240  # longer side; shown at half of it, so that it is sharp on a dense screen


@dataclass(frozen=True)
class Strip:
    """One search on the sheet.

    Attributes:
        title: The query as it was asked.
        note: What else to say about it: its filter, its score; may be empty.
        hits: What it found, best first.
        right: For each hit, whether it answers the query; None where that is not known.
    """

    title: str
    note: str
    hits: Sequence[Hit]
    right: Sequence[bool] | None = None


def write_sheet(file: str | os.PathLike[str], title: str, summary: str, strips: Sequence[Strip]) -> Path:
    """Write searches and their hits as one HTML file.

    Args:
        file: Where to; replaced as a whole if it exists.
        title: Heading of the page.
        summary: A line below it.
        strips: The searches, in order.

    Returns:
        The absolute path of the file.

    Raises:
        OSError: If it cannot be written.
    """
    pictures = list({hit.path: None for strip in strips for hit in strip.hits})
    with ThreadPoolExecutor() as pool:
        thumbnails = dict(zip(pictures, pool.map(thumbnail, pictures), strict=True))
    body = "\n".join(_strip(strip, thumbnails) for strip in strips)
    page = _PAGE.format(title=html.escape(title), summary=html.escape(summary), body=body)
    target = Path(file).resolve()
    part = target.with_name(f".{target.name}.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, target)
    return target


def _strip(strip: Strip, thumbnails: Mapping[str, str | None]) -> str:
    figures = "\n".join(
        _figure(hit, None if strip.right is None else strip.right[index], thumbnails[hit.path])
        for index, hit in enumerate(strip.hits)
    )
    note = f" <small>{html.escape(strip.note)}</small>" if strip.note else ""
    heading = f"<h2>{html.escape(strip.title)}{note}</h2>\n" if strip.title or note else ""
    return f"<section>\n{heading}<div class=strip>\n{figures}\n</div>\n</section>"


def _figure(hit: Hit, right: bool | None, picture: str | None) -> str:
    name = html.escape(printable(hit.path), quote=True)
    image = (
        f'<img src="{picture}" alt="{name}">' if picture else "<div class=gone>cannot be read any more</div>"
    )
    mark = "" if right is None else f'<b class="{"yes" if right else "no"}">{"✓" if right else "✗"}</b> '
    more = f" +{hit.folded:,}" if hit.folded else ""
    caption = f"{mark}{hit.rank}. {hit.score:.3f}{more}<br>{html.escape(hit.category or '')}"
    link = html.escape(Path(hit.path).as_uri(), quote=True)
    return f'<figure title="{name}"><a href="{link}">{image}</a><figcaption>{caption}</figcaption></figure>'


def thumbnail(path: str | os.PathLike[str]) -> str | None:
    """Return a picture as the data URI of a small JPEG, or None if it cannot be read."""
    try:
        image = load_image(path)
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2420; --soft: #66706a; --paper: #fbfaf7; --line: #e3e1da; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e9ebe8; --soft: #a2aaa4; --paper: #161917; --line: #2c312d; }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; padding: 0 1.25rem; max-width: 68rem; }}
h1 {{ font-size: 1.5rem; margin: 0; }}
h1 + p {{ color: var(--soft); margin: .25rem 0 2rem; }}
section {{ border-top: 1px solid var(--line); padding: .9rem 0 1.1rem; }}
h2 {{ font-size: 1rem; font-weight: 600; margin: 0 0 .6rem; }}
small {{ font-weight: 400; color: var(--soft); margin-left: .5rem; }}
.strip {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: .7rem; }}
figure {{ margin: 0; }}
img, .gone {{ width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; display: block; background: var(--line); }}
.gone {{ font-size: .8rem; color: var(--soft); display: grid; place-items: center; text-align: center; }}
figcaption {{ font-size: .8rem; color: var(--soft); margin-top: .25rem; font-variant-numeric: tabular-nums; }}
.yes {{ color: #2e8b57; }} .no {{ color: #c2553a; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{body}
</html>
"""
