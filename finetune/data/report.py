"""The report before training: a table of categories, and what is wrong with the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune.data.captions import category_captions
from finetune.data.duplicates import Duplicates, Leak
from finetune.data.pixels import Noted
from finetune.data.records import Record
from finetune.data.token_lengths import TokenLengths
from imret.datasets.scan import Skipped
from imret.errors import some_of
from imret.escape import escape_control
from imret.retrieval.prompts import common_names

# Of long lists a person is shown the first few.
_SHOWN = 3
_SHOWN_SKIPPED = 10
_WIDEST = 40


@dataclass(frozen=True)
class Report:
    """What a run trains on, validates with and leaves out.

    Attributes:
        train: Pictures to train on.
        validation: Pictures to validate with.
        names: What categories are called, where a file says so.
        skipped: Pictures that cannot be read.
        noted: What is to be known of pictures that can: that a part is missing, or was guessed.
        duplicates: Pictures that occur more than once.
        leaks: Pictures left out as duplicates of validation or test pictures.
        test: How many pictures a manifest sets aside for a test; they were not opened.
        against: How many pictures of a test folder were compared; None without one.
        lengths: Texts that are too long.
        lost: Categories of which no picture is left.
    """

    train: Sequence[Record]
    validation: Sequence[Record]
    names: Mapping[str, Sequence[str]] | None
    skipped: list[Skipped]
    noted: list[Noted]
    duplicates: Duplicates
    leaks: list[Leak]
    test: int
    against: int | None
    lengths: TokenLengths
    lost: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return what training.json says under `data`."""
        counts = Counter(record.category for record in self.train)
        held_out = Counter(record.category for record in self.validation)
        every = (*self.train, *self.validation)
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "captioned": sum(bool(record.captions) for record in every),
            "categories": {
                category: {
                    "called": common_names(category, self.names)[0],
                    "names": list(common_names(category, self.names)),
                    "train": counts[category],
                    "validation": held_out[category],
                }
                for category in sorted(counts | held_out)
            },
            "skipped": [asdict(skip) for skip in self.skipped],
            "noted": [asdict(one) for one in self.noted],
            "copies": asdict(self.duplicates),
            "leaks": [asdict(leak) for leak in self.leaks],
            "lost": self.lost,
            "test": self.test,
            "against": self.against,
            "species": len({record.taxon.key for record in every if record.taxon}),
            "lengths": {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(self.lengths).items()
            },
        }

    def text(self) -> str:
        """Return the table and the sentences below it, for a terminal."""
        return "\n".join([*self._table(), *map(escape_control, self._sentences())])

    def _table(self) -> list[str]:
        by_category: dict[str, Record] = {}
        for record in (*self.train, *self.validation):
            by_category.setdefault(record.category, record)
        counts = Counter(record.category for record in self.train)
        held_out = Counter(record.category for record in self.validation)
        rows = [("category", "called", "train", "validation", "a caption", "first file")]
        for category, first in sorted(by_category.items()):
            (named,) = category_captions([category], draw=0, names=self.names)
            rows.append(
                (
                    category,
                    common_names(category, self.names)[0],
                    f"{counts[category]:,}",
                    f"{held_out[category]:,}",
                    first.captions[0] if first.captions else named,
                    first.path,
                )
            )
        rows.append(("total", "", f"{counts.total():,}", f"{held_out.total():,}", "", ""))
        cells = [[_short(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return [
            "  ".join(
                cell.rjust(width) if i in (2, 3) else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]

    def _sentences(self) -> list[str]:
        duplicates = self.duplicates
        sentences = [
            f"{len(self.skipped):,} unreadable, {len(duplicates.exact):,} identical files, "
            f"{len(duplicates.near):,} near copies, {len(duplicates.conflicts):,} label conflicts, "
            f"{len(self.leaks):,} leaks left out of training"
            + ("" if self.against is None else f" ({self.against:,} test pictures compared)")
        ]
        for what, told in (
            ("skipped", [f"{skip.path}: {skip.reason}" for skip in self.skipped]),
            ("noted of", [f"{one.path}: {one.note}" for one in self.noted]),
        ):
            sentences += [f"{what} {one}" for one in told[:_SHOWN_SKIPPED]]
            if len(told) > _SHOWN_SKIPPED:
                sentences.append(f"and {what} {len(told) - _SHOWN_SKIPPED:,} more")
        for what, groups in (
            ("the same file", duplicates.exact),
            ("look alike, kept on one side of validation", duplicates.near),
            ("one picture in several categories; correct its label", duplicates.conflicts),
        ):
            sentences += [f"{what}: {_listed(paths)}" for paths in groups[:_SHOWN]]
        sentences += [
            f"left out of training: {leak.path} is like {leak.like}" for leak in self.leaks[:_SHOWN]
        ]
        if self.lost:
            sentences.append(f"no picture is left of {_listed(self.lost)}: it is not learned")
        held_out = {record.category for record in self.validation}
        if held_out and (without := sorted({record.category for record in self.train} - held_out)):
            sentences.append(f"no validation picture of {_listed(without)}: it has too few that differ")
        of_name: dict[str, list[str]] = {}
        for category in sorted({record.category for record in (*self.train, *self.validation)}):
            of_name.setdefault(common_names(category, self.names)[0].lower(), []).append(category)
        sentences += [
            f"{_listed(categories)} are all called {name!r}, and no query can tell them apart: name them in "
            "--names, or put them together"
            for name, categories in of_name.items()
            if len(categories) > 1
        ]
        if len(held_out) == 1:
            sentences.append(
                f"only {_listed(sorted(held_out))} has validation pictures, which rank perfectly among "
                "themselves: validation says nothing, and chooses no blend"
            )
        if self.test:
            sentences.append(f"{self.test:,} pictures are meant for a test and left alone")
        if kinds := self.lengths.species_kinds:
            n = len({record.taxon.key for record in self.train if record.taxon})
            sentences.append(f"{n:,} species, told by texts that are {', '.join(kinds)}")
        return sentences + self.lengths.sentences()


def _short(text: str) -> str:
    shown = escape_control(text)
    return shown if len(shown) <= _WIDEST else shown[: _WIDEST - 1] + "\u2026"


def _listed(names: Sequence[str]) -> str:
    return some_of(names, _SHOWN)
