"""`imret collections optimize`: what it shows while an index is built, and how it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from imret.escape import escape_control
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.store import Collection, Creation, Stats
    from imret.store.types import Progress

SAY_EVERY_S = 30.0  # where no terminal shows a bar


def optimize(
    opened: Collection, *, timeout_s: float | None, creation: Creation | None, state: Callable[[Stats], str]
) -> None:
    """Build the index of a collection, with its progress, and tell how it was and is.

    Args:
        opened: The collection.
        timeout_s: How long that may take.
        creation: With `--to-current` what it shall be like, None without.
        state: Says what its index is like.

    Raises:
        click.exceptions.Exit: With 1, if the server has not built it all the same.
    """
    name = opened.name
    announce(f"{name}: {state(opened.stats())}; building the index ...")
    started = time.monotonic()
    if creation is not None:
        changed = opened.to_current(creation)
        said = "; ".join(map(escape_control, changed))
        announce(f"{name}: now {said}" if changed else f"{name}: laid out as collections are now")
    with _shown() as on_progress:
        opened.optimize(timeout_s, on_progress)
    after = opened.stats()
    announce(f"{name}: {state(after)}, after {time.monotonic() - started:.1f} s")
    if after.status == "exact scan":
        announce("  for so few vectors that is as fast as an index")
    if after.status in ("yellow", "grey"):
        raise click.exceptions.Exit(1)  # why was said


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """Yield what draws progress: a bar in a terminal, else a line now and then."""
    from tqdm import tqdm

    said = time.monotonic()
    with tqdm(desc="index", unit=" vectors", disable=not sys.stderr.isatty()) as bar:

        def show(progress: Progress) -> None:
            nonlocal said
            if not bar.disable:
                bar.total = progress.points
                bar.n = progress.indexed or 0
                bar.set_postfix_str(progress.why)  # and draws it
            elif time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                announce(f"  {progress.why}")

        yield show
