"""Numbers on the command line: whole or not, within a range, and small enough to be computed with."""

from __future__ import annotations

import math
from typing import Any

import click

MAX_COUNT = 1_000_000_000
MAX_SEED = 2**63 - 1


class Whole(click.IntRange):
    """A whole number from `low` to `high`; help shows the bounds that are not the usual one."""

    name = "n"  # what stands for it in help, in capitals

    def __init__(self, low: int, high: int = MAX_COUNT) -> None:
        super().__init__(low, high)
        self._high = high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType.convert`."""
        text = str(value).strip()
        if not text.removeprefix("-").removeprefix("+").isdecimal():
            self.fail(f"{text[:50]!r} is not a whole number.", param, ctx)
        if len(text) > 30 or int(text) > self._high:  # of thousands of digits Python makes no number
            shown = text if len(text) <= 30 else f"{text[:30]}..."
            self.fail(f"{shown} is not in the range {self.min}<=x<={self.max}.", param, ctx)
        return super().convert(value, param, ctx)

    def _describe_range(self) -> str:
        return f"x>={self.min}" if self.max in (MAX_COUNT, MAX_SEED) else super()._describe_range()


class Real(click.FloatRange):
    """A finite number within bounds, which are those of `click.FloatRange`."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType.convert`."""
        try:
            is_finite = math.isfinite(float(value))
        except ValueError:
            is_finite = True  # what is no number, click says better
        if not is_finite:
            self.fail(f"{str(value)[:50]!r} is not a finite number.", param, ctx)
        return super().convert(value, param, ctx)
