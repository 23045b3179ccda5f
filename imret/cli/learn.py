"""`imret learn`: the command around `imret.concepts.learn`."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imret.cli.help import MODEL, SectionedCommand, examples
from imret.cli.numbers import Whole
from imret.cli.options import (
    arch_option,
    ask_at_terminal,
    category_names,
    collection_choice,
    db_option,
    device_option,
    exclude_option,
    format_option,
    max_pixels_option,
    model_option,
    precision_option,
    progress_bar,
    warn_of_strangers,
)
from imret.defaults import DEFAULT_COLLECTION
from imret.errors import DataError, counted, some_of
from imret.escape import escape_control
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.concepts.examples import Example
    from imret.concepts.learn import Lesson, Taught
    from imret.models.encoder import QueryEncoder
    from imret.store import Collection, Store

_SECTIONS = {
    "Where it is kept": ("--collection", "--db", "--output"),
    "Model": MODEL,
}


@dataclass(frozen=True)
class _Source:
    """What is to be learnt from, as it was typed.

    Attributes:
        paths: A folder of categories, or the files and folders that show `name`; none for the categories of
            the collection.
        name: What they all show; None where each folder is a category.
        synonyms: What `name` also goes by.
        others: Folders of pictures that show none of it.
        names: What categories are called, from --names.
        exclude: Patterns of what is left out.
    """

    paths: tuple[str, ...]
    name: str | None
    synonyms: tuple[str, ...]
    others: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    exclude: tuple[str, ...]


@click.command(
    "learn",
    cls=SectionedCommand,
    sections=_SECTIONS,
    short_help="Teach names by pictures of them.",
    epilog=examples(
        "imret learn data/train",
        "imret learn --name 'my dog' holiday/ --collection photos",
        "imret learn --collection photos",
        "imret learn data/train --output models/nature --others holiday/",
        "imret learn --name 'oyster mushroom' --synonym 'Pleurotus ostreatus' holiday/fungi",
    ),
)
@click.argument("source", nargs=-1, metavar="[SOURCE]...")
@click.option("--name", metavar="NAME", help="What all the pictures show; SOURCE are then files or folders.")
@click.option(
    "--synonym", "synonyms", multiple=True, metavar="NAME", help="What NAME also goes by; may be repeated."
)
@click.option(
    "--others",
    multiple=True,
    metavar="FOLDER",
    help="Pictures of other things, which names are told from, too; may be repeated.  [default: those of the "
    "collection that are of no category that is learnt]",
)
@click.option(
    "--names",
    "names_file",
    metavar="FILE",
    help="CSV file (category,name) of what categories are called.  [default: what is stored with the "
    "collection or the model]",
)
@click.option(
    "--views",
    type=Whole(1, 3),
    default=3,
    show_default=True,
    help="See each picture that has to be embedded so many ways: as it is, mirrored, without its edges.",
)
@click.option(
    "--per-category",
    type=Whole(1),
    default=2_000,
    show_default=True,
    help="Take no more pictures of a category, where they are a collection's.",
)
@exclude_option
@collection_choice(f"Collection that is to know them.  [default: {DEFAULT_COLLECTION}, without --output]")
@db_option
@click.option(
    "--output", "folder", metavar="FOLDER", help="Model folder that is to know them, with any collection."
)
@model_option("Model to embed with.  [default: the collection's, or that of --output]")
@arch_option
@max_pixels_option
@device_option
@precision_option
@format_option("json: one object, for programs.")
def command(
    source: tuple[str, ...],
    name: str | None,
    synonyms: tuple[str, ...],
    others: tuple[str, ...],
    names_file: str | None,
    exclude: tuple[str, ...],
    collection: str | None,
    db: str | None,
    folder: str | None,
    views: int,
    per_category: int,
    output: str,
    **encoding: Any,
) -> None:
    """Teach names by pictures.

    SOURCE is a folder with one sub-folder per category or, with --name, pictures of one thing. Without
    SOURCE the categories of the collection are learnt, from the pictures it holds.

    Nothing is trained: the model's weights stay, collections need no new ingest, and a query that holds no
    learnt name finds what it found. What is learnt is judged on pictures that it was learnt without, beside
    the text alone; where the text is the better, it is kept. "bird" then asks by what was learnt, and "a bird
    on the water" is moved towards it.
    """
    from imret.concepts.learn import check_names, keep_in_collection, keep_in_folder
    from imret.datasets.names_csv import read_names
    from imret.retrieval.concepts import check_name

    name = None if name is None else check_name(name)
    synonyms = tuple(map(check_name, synonyms))
    given = _Source(source, name, synonyms, others, read_names(names_file) if names_file else {}, exclude)
    _check_usage(given, collection, folder)
    files = _Files.of(given)
    check_names([*(files.labelled or ())])
    started = time.monotonic()
    with _target(collection, db, folder, encoding) as target:
        lesson, n_embedded = _learn(given, files, target, views, per_category)
        if target.collection is None:
            assert folder is not None
            changes = keep_in_folder(folder, lesson.concepts)
            kept_in = folder
        else:
            changes = keep_in_collection(target.store, target.collection.name, lesson.concepts)
            kept_in = f"collection {target.collection.name}"
        where = _where(target, collection, db)
    seconds = time.monotonic() - started
    for note in (*lesson.notes, *changes):
        announce(f"note: {escape_control(note)}")
    if output == "json":
        notes = [*lesson.notes, *changes]
        print(json.dumps({**_as_json(lesson, n_embedded, seconds), "notes": notes}, ensure_ascii=False))
        return
    _print(lesson)
    n_images = sum(row.images for row in lesson.rows)
    announce(
        f"learnt {counted(len(lesson.rows), 'name')} from {counted(n_images)} ({n_embedded:,} embedded) in "
        f"{seconds:.1f} s; kept in {escape_control(kept_in)}"
    )
    announce(f"ask: imret search {shlex.quote(lesson.rows[0].name)}{where}")


def _check_usage(given: _Source, collection: str | None, folder: str | None) -> None:
    if collection is not None and folder is not None:
        raise click.UsageError("--collection and --output are two places to keep it. Give one of them.")
    if given.name is None and given.synonyms:
        raise click.UsageError("--synonym is what --name also goes by, which is not given.")
    if given.name is not None and not given.paths:
        raise click.UsageError(f"Missing pictures of {given.name[:60]!r}: give files or folders.")
    if given.name is None and len(given.paths) > 1:
        raise click.UsageError(
            "several SOURCEs are pictures of one thing: say which with --name. Otherwise give one folder "
            "with a sub-folder per category."
        )
    if given.name is not None and folder is not None and not given.others:
        raise click.UsageError(
            f"Missing pictures that {given.name[:60]!r} is told from: --others FOLDER; a collection has some."
        )
    if not given.paths and folder is not None:
        raise click.UsageError("Missing argument 'SOURCE': a model folder has no pictures to learn from.")


# ---- Pictures ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    """Picture files by what they show; None for the categories of the collection.

    Attributes:
        labelled: Paths by folder's name, or by --name.
        others: Paths of what shows none of it.
    """

    labelled: Mapping[str, Sequence[str]] | None
    others: Sequence[str]

    @classmethod
    def of(cls, given: _Source) -> _Files:
        """Find them, before a model is looked for, which may be a download.

        Raises:
            DataError: If there are none.
        """
        others = [file for folder in given.others for file in _pictures_in(folder, given.exclude)]
        if not given.paths:
            return cls(None, others)
        if given.name is not None:
            files = [file for path in given.paths for file in _pictures_in(path, given.exclude)]
            return cls({given.name: list(dict.fromkeys(files))}, others)
        from imret.datasets.labelled import read_labelled

        folder = read_labelled(given.paths[0], given.exclude)
        by_category: dict[str, list[str]] = {}
        for picture in folder.pictures:
            by_category.setdefault(picture.category or "", []).append(picture.file_in(folder.folder))
        _tell_skipped({os.path.join(folder.folder, one.path): one.reason for one in folder.skipped})
        return cls(by_category, others)


def _pictures_in(path: str, exclude: Sequence[str]) -> list[str]:
    """Return the picture files of a folder, or the one that is given.

    Raises:
        DataError: If there is none.
    """
    from imret.datasets.exclusion import Exclusion
    from imret.datasets.scan import Picture, but_left_out, walk

    if not os.path.exists(path):
        raise DataError(f"{path!r} does not exist. Give picture files, or a folder of them.")
    if not os.path.isdir(path):
        return [path]
    exclusion = Exclusion(path, exclude)
    found = sorted(one.file_in(path) for one in walk(path, exclusion) if isinstance(one, Picture))
    if not found:
        raise DataError(f"{path!r} holds no pictures{but_left_out(path, exclusion)}.")
    return found


def _tell_skipped(skipped: Mapping[str, str]) -> None:
    for path, reason in skipped.items():
        announce(f"{escape_control(path)}: {escape_control(reason)}")


# ---- Where it is kept ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Target:
    """What is taught: a collection of a store, or a model folder; and the encoder that it has."""

    store: Store
    collection: Collection | None
    encoder: QueryEncoder
    names: Mapping[str, tuple[str, ...]]  # stored with the collection


@contextmanager
def _target(
    collection: str | None, db: str | None, folder: str | None, encoding: dict[str, Any]
) -> Iterator[_Target]:
    from imret.models.lazy_encoder import LazyEncoder
    from imret.retrieval.category_names import stored_names
    from imret.retrieval.collection_encoder import check_same_encoder, collection_encoder
    from imret.store import open_store

    if folder is not None:
        if not Path(folder).is_dir():
            raise DataError(
                f"{folder!r} is no model folder: imret finetune writes one. To teach a collection instead: "
                f"--collection {DEFAULT_COLLECTION}"
            )
        model = encoding.pop("model") or folder
        encoder = LazyEncoder(model, notify=announce, **encoding)
        if encoder.files.weights.parent.resolve() != Path(folder).resolve():
            raise DataError(
                f"--model is {model!r} and --output {folder!r}: what is learnt with one model says nothing "
                "to another. Leave --model out."
            )
        yield _Target(None, None, encoder, {})  # type: ignore[arg-type]
        return
    name = collection or DEFAULT_COLLECTION
    with open_store(db, create=False, share="if possible", collection=name) as store:
        if store.reason:
            announce(store.reason)
        found = collection_encoder(
            store, name, notify=announce, ask=ask_at_terminal(), existing=True, **encoding
        )
        with closing(store.open(name)) as opened:
            check_same_encoder(opened, found, store=store)
            yield _Target(store, opened, found, stored_names(store, name, notify=announce))


def _where(target: _Target, collection: str | None, db: str | None) -> str:
    """Return the options that name the place again."""
    where = f" --collection {target.collection.name}" if target.collection and collection else ""
    if target.collection is None:
        return " --collection COLLECTION, one that this model filled"
    return where + (f" --db {shlex.quote(target.store.address)}" if db is not None else "")


# ---- Learning ------------------------------------------------------------------------------------------


def _learn(
    given: _Source, files: _Files, target: _Target, views: int, per_category: int
) -> tuple[Lesson, int]:
    """Return what is learnt, and how many pictures were embedded for it."""
    from imret.concepts.examples import embed_files, examples_by_category, other_examples
    from imret.concepts.learn import learn

    encoder, opened = target.encoder, target.collection
    announce(f"model {encoder.model_id}")
    paths = [file for same in (files.labelled or {}).values() for file in same]
    paths = list(dict.fromkeys([*paths, *files.others]))
    with progress_bar("embed", len(paths) or None) as (on_pictures, _):
        found = embed_files(paths, encoder, collection=opened, views=views, on_picture=lambda: on_pictures(1))
    _tell_skipped(found.skipped)
    if files.labelled is not None:
        by_name: Mapping[str, Sequence[Example]] = {
            name: [found.examples[file] for file in same if file in found.examples]
            for name, same in files.labelled.items()
        }
        source = ", ".join(os.path.abspath(path) for path in given.paths[:3])
    else:
        assert opened is not None
        by_name = examples_by_category(opened, per_category)
        source = f"collection {opened.name}"
        if not by_name:
            raise DataError(
                f"the pictures of collection {opened.name!r} have no categories. Say what some show: "
                "imret learn --name NAME PICTURES"
            )
    taught = _taught(given, by_name, target)
    others = [found.examples[file] for file in files.others if file in found.examples]
    if not given.others and opened is not None:
        own = [example.sha256 for one in taught for example in one.examples]
        known = [name for one in taught for name in (one.name, *one.names)]
        others = other_examples(opened, but=own, called=known, names={**target.names, **given.names})
        if others:
            announce(f"told from {counted(len(others), 'other picture')} of the collection, too")
    lesson = learn(encoder, taught, others=others, source=source)
    return lesson, len(found.examples) - found.n_stored


def _taught(given: _Source, by_name: Mapping[str, Sequence[Example]], target: _Target) -> list[Taught]:
    """Return what is to be learnt, with all that it goes by; what cannot be read at all is left out."""
    from imret.concepts.learn import Taught
    from imret.retrieval.prompts import common_names

    if given.name is not None:
        return [Taught(given.name, given.synonyms, by_name[given.name])]
    called = category_names(target.encoder, dict(given.names), dict(target.names))
    if given.names:
        warn_of_strangers(given.names, by_name)
    lacking = [name for name, some in by_name.items() if not some]
    if lacking:
        announce(f"note: no picture of {some_of(lacking, 5)} can be read; not learnt")
    taught = []
    for category, some in by_name.items():
        if some:
            first, *more = common_names(category, called)
            taught.append(Taught(first, (*more, " ".join(category.replace("_", " ").split())), some))
    return taught


# ---- What is said --------------------------------------------------------------------------------------


def _print(lesson: Lesson) -> None:
    """Print what each name is worth, on pictures that were held out."""
    width = max(len("mean"), *(len(escape_control(row.name)) for row in lesson.rows))
    print(f"{'name':<{width}}  images   text  learnt  difference, 95 %")
    for row in lesson.rows:
        name = escape_control(row.name)
        if row.text is None or row.learnt is None or row.gain is None:
            print(f"{name:<{width}}  {row.images:>6,}      -       -  nothing held out")
            continue
        change = f"{row.learnt - row.text:+.3f} [{row.gain[0]:+.3f}, {row.gain[1]:+.3f}]"
        kept = "text kept" if row.text_kept else change
        print(f"{name:<{width}}  {row.images:>6,}  {row.text:.3f}   {row.learnt:.3f}  {kept}")
    if lesson.text is not None and lesson.learnt is not None and lesson.gain is not None:
        change = f"{lesson.learnt - lesson.text:+.3f} [{lesson.gain[0]:+.3f}, {lesson.gain[1]:+.3f}]"
        print(f"{'mean':<{width}}          {lesson.text:.3f}   {lesson.learnt:.3f}  {change}")
        announce(
            "average precision over pictures that were held out in turn, a fifth at a time; "
            f"shrinkage {lesson.shrinkage:g}"
        )
    for calibration in lesson.concepts.calibrations:
        announce(
            f"classify: expected calibration error {calibration.error_before:.3f} by the texts, "
            f"{calibration.error:.3f} by what was learnt"
        )


def _as_json(lesson: Lesson, n_embedded: int, seconds: float) -> dict[str, Any]:
    calibration = next(iter(lesson.concepts.calibrations), None)
    return {
        "names": [asdict(row) for row in lesson.rows],
        "text": lesson.text,
        "learnt": lesson.learnt,
        "gain": lesson.gain,
        "shrinkage": lesson.shrinkage,
        "calibration_error": None
        if calibration is None
        else {"texts": calibration.error_before, "learnt": calibration.error},
        "embedded": n_embedded,
        "seconds": round(seconds, 2),
    }
