"""What an ingest says at its end: counts, what was left out, and what may want doing next."""

from __future__ import annotations

from imret.datasets.exclusion import originals_in
from imret.datasets.kinds import in_words
from imret.errors import counted
from imret.escape import escape_control, quoted
from imret.output.console import announce
from imret.sources.overlap import covers
from ingest.report import Report

_SHOWN = 10  # of each list


def summarise(report: Report, report_file: str | None, *, check_content: bool, where: str) -> None:
    """Print a report for a person.

    Args:
        report: Of an ingest that has ended.
        report_file: Where all of it was written, if anywhere.
        check_content: Whether all contents were compared.
        where: Options that name the store and the collection, as a command that is advised needs them.
    """
    for source, images in report.taken_over.items():
        around = next((folder for folder in report.sources if covers(folder, source)), None)
        what = "has moved" if around is None else f"is a part of {escape_control(around)} now"
        announce(f"{escape_control(source)} {what}: {counted(images)}, with their vectors")
    for note in report.notes:
        announce(f"note: {note}")
    counts = ", ".join(
        f"{getattr(report, name):,} {name}"
        for name in ("added", "updated", "moved", "unchanged", "removed", "missing")
        if getattr(report, name) or name == "added"
    )
    announce(
        f"{report.collection}: {counts}, {len(report.skipped):,} skipped"
        f"{f', {report.n_noted:,} taken with a note' if report.noted else ''} "
        f"in {report.seconds:.1f} s ({report.images_per_s:.1f} images/s encoded)"
    )
    _say_what_was_left_out(report, where)
    listed = f"all are in {report_file}" if report_file else "--report FILE lists all"
    for what, told in (("skipped", report.skipped), ("noted of", report.noted)):
        for entry in told[:_SHOWN]:
            announce(f"  {what} {entry['path']}: {entry['reason' if what == 'skipped' else 'note']}")
        if len(told) > _SHOWN:
            announce(f"  and {len(told) - _SHOWN:,} more; {listed}")
    if report.other_content:
        advice = "" if check_content else "; --check-content compares all"
        announce(
            f"  {report.other_content:,} of {report.compared:,} files with size and time as before that were "
            f"compared had other content, which is renewed{advice}"
        )
    _say_what_is_gone(report)


def _say_what_was_left_out(report: Report, where: str) -> None:
    if left_out := in_words(report.ignored):
        announce(f"  left out: {left_out}")
    if report.misnamed:
        announce(
            f"  of these {quoted(report.misnamed[0])} holds a picture by its content, and others may: give "
            "such files a suffix that says so, such as .jpg"
        )
    for library in report.photo_libraries[:3]:
        if originals := originals_in(library):
            announce(f"  for the originals of that library: imret ingest {quoted(originals)}{where}")


def _say_what_is_gone(report: Report) -> None:
    for n, what in (
        (report.missing, "without a file any more"),
        (report.left_out, "left out now, by name"),
    ):
        if n:
            announce(f"  {counted(n)} of the collection {what}; --prune removes {'it' if n == 1 else 'them'}")
    for one in report.out_of_reach[:_SHOWN]:
        announce(f"  kept {counted(one.images)}: {escape_control(one.folder)} {one.reason}")
    if len(report.out_of_reach) > _SHOWN:
        announce(f"  and those of {len(report.out_of_reach) - _SHOWN:,} more such folders")
    if report.out_of_reach:
        announce(
            "  is a drive not mounted, or a share away? What cannot be reached is never removed. "
            "If it is gone for good, remove the empty folder or the link, and run again with --prune"
        )
