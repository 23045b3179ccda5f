"""The marks that programs at work on one Qdrant collection leave each other in its metadata.

Qdrant has no step that compares and then switches, so `Store`'s two rules take two steps each, crosswise:
who switches says so in the old version, then looks whether somebody has ended; who ends says so, then looks
whether somebody switches. Whichever comes second sees the other. Hides how often each is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from imret.errors import StoreError
from imret.store.server.connection import Connection
from imret.store.types import LiveState, new_mark

# What somebody who switches says is void, should it stand for so long: it takes a hundredth of that, and at
# most a third and the time of one request that the server takes late.
VOID_S = 50.0
# From so long ago on a version that was being filled is what a killed program left. By the clocks of
# different machines; one that was wrongly taken for that costs its program an error, no other anything.
_FILLING_S = 900.0
_SAY_FILLING_S = 60.0
_POLL_S = 0.1

STAGED = {"imret_staged": "1"}  # metadata of a collection from its making on


class Marks:
    """The marks of Qdrant collections, each a text, "" where it was never left.

    "switch" and "ended" are those of `LiveState`; "switching" says who is about to replace the version,
    "filling" when who last filled it, and "staged" that it is for whoever made it alone.

    Args:
        connection: To the server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._own = new_mark()

    def read(self, physical: str, mark: str) -> str:
        return self._all(physical).get(mark, "")

    def state(self, physical: str) -> LiveState:
        """Return the state of a collection whose live version this is."""
        marks = self._all(physical)
        return LiveState(physical, marks.get("switch", ""), marks.get("ended", ""))

    def write(self, physical: str, *, patience_s: float | None = None, **marks: str) -> None:
        # Each under a key of its own: what another writes at the same time stays.
        metadata = {f"imret_{mark}": value for mark, value in marks.items()}
        self._connection.request(
            "leave a mark",
            lambda: self._connection.client.update_collection(physical, metadata=metadata),
            patience_s=patience_s,
        )

    def begin_switch(self, physical: str, expected: LiveState) -> Callable[[], bool]:
        """Say that the live version is about to be replaced.

        Args:
            physical: The version.
            expected: The state that it must still be in.

        Returns:
            Whether it still may be, to be asked right before it is: nobody has ended meanwhile, nor switched,
            and nobody has stopped waiting.
        """
        mine, since = new_mark(), time.monotonic()
        self.write(physical, switching=mine)

        def may_switch() -> bool:
            marks = self._all(physical)
            is_mine = marks.get("switching") == mine
            if is_mine and marks.get("ended", "") == expected.ended and time.monotonic() - since < VOID_S / 3:
                return True
            if is_mine:
                self.end_switch(physical)
            return False

        return may_switch

    def end_switch(self, physical: str) -> None:
        """Say that it will not be replaced after all."""
        self.write(physical, switching="")

    def await_switch(self, physical: str, is_live: Callable[[], bool]) -> None:
        """Wait while somebody is about to replace a version, who may have died over it."""
        seen, since = "", 0.0
        while mark := self.read(physical, "switching"):
            if mark != seen:
                seen, since = mark, time.monotonic()
            elif time.monotonic() - since > VOID_S:
                self.end_switch(physical)
                return
            if not is_live():
                return
            time.sleep(_POLL_S)

    def is_filled_by_another(self, physical: str) -> bool:
        """Whether another program fills a version this moment, or did a short while ago."""
        when, _, who = self.read(physical, "filling").partition(" ")
        if not when.isdecimal() or who == self._own:
            return False
        return abs(time.time() - int(when)) < _FILLING_S

    def filling(self, physical: str) -> Filling:
        return Filling(self, physical, self._own)

    def _all(self, physical: str) -> dict[str, str]:
        info = self._connection.request(
            "describe a collection", lambda: self._connection.client.get_collection(physical)
        )
        metadata: dict[str, Any] = info.config.metadata or {}
        marks = ("switch", "ended", "switching", "filling", "staged")
        return {mark: str(metadata.get(f"imret_{mark}", "")) for mark in marks}


class Filling:
    """Says now and then that a version is being filled, so that no other program's switch removes it.

    Args:
        marks: Where it is said.
        physical: The version.
        who: This program.
    """

    def __init__(self, marks: Marks, physical: str, who: str) -> None:
        self._marks = marks
        self._physical = physical
        self._who = who
        self._said = 0.0
        self.say()

    def say(self) -> None:
        """Say so, unless it was said a moment ago."""
        if not self._said or time.monotonic() - self._said > _SAY_FILLING_S:
            self._said = time.monotonic()
            self._marks.write(self._physical, filling=f"{time.time():.0f} {self._who}")

    def end(self) -> None:
        """Say that it is not any more; if nobody listens, that shows with time."""
        with suppress(StoreError):
            if self._marks.read(self._physical, "filling").endswith(self._who):
                self._marks.write(self._physical, patience_s=0.0, filling="")
