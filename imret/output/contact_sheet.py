"""A contact sheet: search results as one self-contained HTML file, thumbnails and all.

Hides thumbnails, layout and escaping. It fetches nothing and runs no script, so it opens anywhere.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from imret.errors import ImageError
from imret.escape import escape_control
from imret.files import write_atomically
from imret.images.thumbnails import LARGE_THUMBNAIL_PIXELS, THUMBNAIL_PIXELS, thumbnail
from imret.retrieval.results import Hit
from imret.sources.opened import Door, is_plain_file, own_door

_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Strip:
    """One search on the sheet.

    Attributes:
        title: The query as it was asked.
        note: What else to say about it: its filter, its score; may be empty.
        hits: What it found, best first.
        right: For each hit, whether it answers the query; None, for all or for one, where that is not known
            or there is nothing left to find. Hits that bear no mark beside others that do are shown paler.
        chapter: Stands as a heading above this search, where it begins a part of the page.
    """

    title: str
    note: str
    hits: Sequence[Hit]
    right: Sequence[bool | None] | None = None
    chapter: str = ""


def write_sheet(
    file: str | os.PathLike[str],
    title: str,
    summary: str,
    strips: Sequence[Strip],
    *,
    door: Door | None = None,
) -> Path:
    """Write searches and their hits as one HTML file.

    Args:
        file: Where to; replaced as a whole if it is a file that exists.
        title: Heading of the page.
        summary: A line below it.
        strips: The searches, in order.
        door: Opens the pictures; None for `own_door`.

    Returns:
        The absolute path of the file.

    Raises:
        OSError: If it cannot be written.
    """
    alone = len(strips) == 1
    pixels = LARGE_THUMBNAIL_PIXELS if alone else THUMBNAIL_PIXELS
    opener = door or own_door()
    hits = {hit.path: hit for strip in strips for hit in strip.hits}
    with ThreadPoolExecutor(_THREADS) as pool:
        images = pool.map(lambda hit: _thumbnail(opener, hit, pixels), hits.values())
        thumbnails = dict(zip(hits, images, strict=True))
    page = _PAGE.format(
        title=_text(title),
        summary=_text(summary),
        cell="150px" if alone else "112px",
        width="84rem" if alone else "68rem",
        body="\n".join(_strip(strip, thumbnails) for strip in strips),
    )
    write_atomically(file, page, in_place=True)
    return Path(os.path.abspath(file))


def _thumbnail(door: Door, hit: Hit, pixels: int) -> str | None:
    try:
        with door.open(hit.payload, hit.path) as file:
            return thumbnail(file, pixels)
    except ImageError:
        return None


def _strip(strip: Strip, thumbnails: Mapping[str, str | None]) -> str:
    figures = "\n".join(
        _figure(hit, None if strip.right is None else strip.right[index], thumbnails[hit.path])
        for index, hit in enumerate(strip.hits)
    )
    note = f" <small>{_text(strip.note)}</small>" if strip.note else ""
    heading = f"<h2>{_text(strip.title)}{note}</h2>\n" if strip.title or note else ""
    chapter = f"<p class=chapter>{_text(strip.chapter)}</p>\n" if strip.chapter else ""
    marked = " marked" if strip.right is not None else ""
    return f'{chapter}<section>\n{heading}<div class="strip{marked}">\n{figures}\n</div>\n</section>'


def _figure(hit: Hit, right: bool | None, picture: str | None) -> str:
    name = _text(hit.path)
    mark = "" if right is None else f'<b class="{"yes" if right else "no"}">{"✓" if right else "✗"}</b> '
    more = (
        f' <b class=more title="hidden duplicates of this one: {hit.folded:,}">+{hit.folded:,}</b>'
        if hit.folded
        else ""
    )
    if picture is None:
        image = "<div class=gone>cannot be read any more</div>"
    else:
        image = f'<img src="{picture}" alt="{name}" loading=lazy>'
        if is_plain_file(hit.payload):  # a browser opens no member of a tar, and no bucket
            image = f'<a href="{html.escape(Path(hit.path).as_uri(), quote=True)}">{image}</a>'
    category = f"<div>{_text(hit.category)}</div>" if hit.category else ""
    sure = "" if right is None else " class=sure"
    # bdi: a name in Hebrew or Arabic turns round only itself.
    return (
        f'<figure title="{name}"{sure}>{image}<figcaption>{mark}<b>{hit.rank}</b> {hit.score:.3f}{more}'
        f"{category}<div><bdi>{_text(os.path.basename(hit.path))}</bdi></div></figcaption></figure>"
    )


def _text(value: str) -> str:
    return html.escape(escape_control(value), quote=True)


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2420; --soft: #5f6963; --paper: #fbfaf7; --line: #e3e1da; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e9ebe8; --soft: #a2aaa4; --paper: #161917; --line: #2c312d; }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; padding: 0 1.25rem; max-width: {width}; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0; }}
h1 + p {{ color: var(--soft); margin: .25rem 0 1.5rem; }}
section {{ border-top: 1px solid var(--line); padding: .9rem 0 1.1rem; }}
h2 {{ font-size: 1rem; font-weight: 600; margin: 0 0 .6rem; }}
small {{ font-weight: 400; color: var(--soft); margin-left: .5rem; }}
.strip {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({cell}, 1fr)); gap: 1rem .8rem; }}
figure {{ margin: 0; min-width: 0; }}
a {{ display: block; border-radius: 6px; }}
a:focus-visible {{ outline: 3px solid var(--ink); outline-offset: 2px; }}
a:hover img {{ filter: brightness(1.08); }}
img, .gone {{ width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; display: block; background: var(--line); outline: 1px solid #8883; outline-offset: -1px; }}
.gone {{ font-size: .8rem; color: var(--soft); display: grid; place-items: center; text-align: center; padding: .5rem; box-sizing: border-box; }}
.marked figure:not(.sure) img {{ opacity: .45; }} .marked figure:hover img {{ opacity: 1; }}
.chapter {{ font-weight: 600; margin: 1.6rem 0 .9rem; }}
figcaption {{ font-size: .8rem; color: var(--soft); margin-top: .3rem; font-variant-numeric: tabular-nums; }}
figcaption b {{ font-weight: 600; color: var(--ink); }}
figcaption div {{ white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }}
figcaption .more {{ border: 1px solid var(--line); border-radius: 1em; padding: 0 .45em; margin-left: .3em; }}
figcaption .yes {{ color: #2e8b57; }} figcaption .no {{ color: #c2553a; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{body}
</html>
"""
