"""What an ingest says at its end, or a dry run of one: counts, what was left out, what wants doing next."""

from __future__ import annotations

import os
from collections.abc import Iterator

from imret.datasets.exclusion import originals_in
from imret.datasets.kinds import in_words
from imret.errors import counted
from imret.escape import escape_control, quoted
from imret.output.console import announce
from imret.sources.overlap import covers
from ingest.report import Report

_SHOWN = 10  # of each list
_TELLING_S = 5.0  # a rate over less says more of how a run begins and ends


def summarise(report: Report, report_file: str | None, *, check_content: bool, where: str) -> None:
    """Print a report for a person.

    Args:
        report: Of an ingest that has ended.
        report_file: Where all of it was written, if anywhere.
        check_content: Whether all contents were compared.
        where: Options that name the store and the collection, as a command that is advised needs them.
    """
    for line in _what_comes_first(report):
        announce(line)
    counts = ", ".join(
        f"{getattr(report, name):,} {name}"
        for name in ("added", "updated", "moved", "unchanged", "removed", "missing")
        if getattr(report, name) or name == "added"
    )
    announce(
        f"{report.collection}: {counts}, {report.n_skipped:,} skipped"
        f"{f', {report.n_noted:,} taken with a note' if report.noted else ''} "
        f"in {report.seconds:.1f} s{_speed(report)}"
    )
    for line in (*_what_was_left_out(report, where), *_what_is_listed(report, report_file)):
        announce(line)
    if report.other_content:
        advice = "" if check_content else "; --check-content compares all"
        announce(
            f"  {report.other_content:,} of {report.compared:,} files with size and time as before that were "
            f"compared had other content, which is renewed{advice}"
        )
    for line in (*_what_is_gone(report), *_what_failed(report)):
        announce(line)


def foretell(
    report: Report, report_file: str | None, *, where: str, model: str | None, rebuild: bool
) -> list[str]:
    """Return what a dry run tells a person, by line.

    Args:
        report: Of the dry run.
        report_file: As for `summarise`, and so is `where`.
        model: That was named.
        rebuild: Whether a run would embed everything again.
    """
    n_to_embed = report.total - len(report.skipped) if rebuild else report.added + report.updated
    counts = ", ".join(
        f"{n:,} {word}"
        for n, word in (
            (report.added, "new"),
            (report.updated, "changed"),
            (report.unchanged, "unchanged"),
            (report.removed, "to be removed"),
            (len(report.skipped), "skipped"),
        )
        if n or word == "new"
    )
    width = max(map(len, report.categories), default=0)
    lines = [f"{escape_control(name).ljust(width)}  {n:>7,}" for name, n in report.categories.items()]
    lines += [*_what_comes_first(report), f"{report.collection} in {report.store}: {counts}"]
    if n_to_embed:
        lines.append(f"  to embed: {counted(n_to_embed)}; which of them cannot be read shows only then")
    if report.added and (report.missing or report.removed):
        lines.append("  a new one with the content of one that is gone has moved: it keeps its vector")
    named = [] if model is None else [model, os.path.abspath(model)]
    if report.model and named and report.model not in named and not rebuild:
        lines.append(
            f"  the collection was made with {report.model}: if {model} is another model, the run is refused"
        )
    return [
        *lines,
        *_what_was_left_out(report, where),
        *_what_is_listed(report, report_file),
        *_what_is_gone(report),
        "dry run: nothing was written",
    ]


def _speed(report: Report) -> str:
    """Return how many were embedded, and from some seconds of that on how fast; nothing where none was."""
    if not report.encoded:
        return ""
    said = f"; {counted(report.encoded)} embedded"
    if report.encoding_s >= _TELLING_S:
        rate = f"{report.images_per_s:,.1f} a second"
        said += f" in {report.encoding_s:,.0f} s, {rate}, once the model was loaded"
    return said


def _what_comes_first(report: Report) -> Iterator[str]:
    for source, images in report.taken_over.items():
        around = next((folder for folder in report.sources if covers(folder, source)), None)
        what = "has moved" if around is None else f"is a part of {escape_control(around)} now"
        yield f"{escape_control(source)} {what}: {counted(images)}, with their vectors"
    for note in report.notes:
        yield f"note: {note}"


def _what_is_listed(report: Report, report_file: str | None) -> Iterator[str]:
    listed = f"all are in {report_file}" if report_file else "--report FILE lists all"
    for what, told in (("skipped", report.skipped), ("noted of", report.noted)):
        for entry in told[:_SHOWN]:
            yield f"  {what} {entry['path']}: {entry['reason' if what == 'skipped' else 'note']}"
        if len(told) > _SHOWN:
            yield f"  and {len(told) - _SHOWN:,} more; {listed}"


def _what_was_left_out(report: Report, where: str) -> Iterator[str]:
    if left_out := in_words(report.ignored):
        yield f"  left out: {left_out}"
    if report.misnamed:
        yield (
            f"  of these {quoted(report.misnamed[0])} holds a picture by its content, and others may: give "
            "such files a suffix that says so, such as .jpg"
        )
    for library in report.photo_libraries[:3]:
        if originals := originals_in(library):
            yield f"  for the originals of that library: imret ingest {quoted(originals)}{where}"


def _what_failed(report: Report) -> Iterator[str]:
    if report.units:
        yield f"  units: {', '.join(f'{n:,} {how}' for how, n in sorted(report.units.items()))}"
    for one in report.failed_units[:_SHOWN]:
        yield f"  failed {escape_control(one['unit'])}: {one['reason']}"
    if len(report.failed_units) > _SHOWN:
        yield f"  and {len(report.failed_units) - _SHOWN:,} more units"


def _what_is_gone(report: Report) -> Iterator[str]:
    for n, what in (
        (report.missing, "without a file any more"),
        (report.left_out, "left out now, by name"),
    ):
        if n:
            yield f"  {counted(n)} of the collection {what}; --prune removes {'it' if n == 1 else 'them'}"
    for one in report.out_of_reach[:_SHOWN]:
        yield f"  kept {counted(one.images)}: {escape_control(one.folder)} {one.reason}"
    if len(report.out_of_reach) > _SHOWN:
        yield f"  and those of {len(report.out_of_reach) - _SHOWN:,} more such folders"
    if report.out_of_reach:
        yield (
            "  is a drive not mounted, or a share away? What cannot be reached is never removed. "
            "If it is gone for good, remove the empty folder or the link, and run again with --prune"
        )
