"""What the sub-commands share on the command line: the options for a store, a collection and a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imret.cli.numbers import Whole
from imret.defaults import DEFAULT_COLLECTION, DEFAULT_MODEL
from imret.errors import counted, some_of
from imret.escape import escape_control
from imret.output.console import announce
from imret.output.formats import FORMATS
from imret.settings import MAX_PIXELS, set_max_pixels

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder

F = TypeVar("F", bound=Callable[..., Any])


db_option = click.option(
    "--db",
    envvar="IMRET_DB",
    metavar="ADDRESS",
    help="Store: a folder (embedded) or a URL (Qdrant server).  [env IMRET_DB; default: the one that "
    "has the collection, of a Qdrant at localhost:6333 and the embedded store of this user]",
)
collection_option = click.option(
    "--collection",
    default=DEFAULT_COLLECTION,
    show_default=True,
    metavar="NAME",
    help="Collection of the store.",
)


def collection_choice(meaning: str, *, multiple: bool = False) -> Callable[[F], F]:
    """Return the --collection option of a command that has no default one; the argument is its help."""
    return click.option("--collection", metavar="NAME", multiple=multiple, help=meaning)


exclude_option = click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Leave out files or folders, as .gitignore does: raw/, '*.tmp.jpg', /2019; may be repeated.",
)


def _check_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    kind, colon, number = value.partition(":")
    # xpu, and what torch may come to have, is no kind to advertise, and works where torch has it.
    is_one = kind.isascii() and kind.isalpha() and (number.isdecimal() if colon else True)
    if is_one and (kind in ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia")):
        return value
    raise click.BadParameter(
        f"{value[:50]!r} is no device. There are cpu, cuda, cuda:0 (the first of several), mps and auto.",
        context,
        parameter,
    )


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    callback=_check_device,
    help="What to compute on: auto, cpu, cuda, cuda:1 (the second of several) or mps.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto is bf16 where the hardware computes in it, else fp32.",
)
arch_option = click.option(
    "--arch", metavar="ARCH", help="open_clip architecture of --model, where that is a bare checkpoint file."
)


def _limit_pixels(context: click.Context, _: click.Parameter, value: int | None) -> None:
    if value is None:
        return
    # Pictures are decoded in many places, and in processes of their own: what is set for one run holds there.
    context.call_on_close(set_max_pixels(value))
    if value > MAX_PIXELS:
        from imret.images.decode import lift_pillow_limit

        lift_pillow_limit(value)


max_pixels_option = click.option(
    "--max-pixels",
    type=Whole(1),
    expose_value=False,
    callback=_limit_pixels,
    metavar="N",
    help="Refuse pictures that would be decoded to more; large JPEGs are decoded at a fraction.  "
    f"[env IMRET_MAX_PIXELS; default: {MAX_PIXELS}]",
)


def ask_at_terminal() -> Callable[[str], bool] | None:
    """Return what asks a yes-or-no question, "no" by default; None where nobody sits at a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: click.confirm(escape_control(question), default=False, err=True)


def format_option(meaning: str) -> Callable[[F], F]:
    """Return the --format option of a table that can be had as JSON; the argument says what JSON is there."""
    return click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help=meaning,
    )


def model_option(purpose: str) -> Callable[[F], F]:
    """Return the --model option; `{default}` in the purpose becomes the default model's name."""
    return click.option(
        "--model",
        metavar="MODEL",
        help=purpose.format(default=DEFAULT_MODEL)
        + " small, base, large, huge, multilingual or biology (see imret models), ARCH/TAG as in open_clip, "
        "hf-hub:ORG/REPO, a model folder, or a checkpoint file with --arch.",
    )


def output_options(command: F) -> F:
    """Add the options of `deliver` to a command."""
    for option in reversed(
        (
            click.option(
                "--format",
                "output",
                type=click.Choice(FORMATS),
                default="table",
                show_default=True,
                help="json: one object per line; paths: for pipes.",
            ),
            click.option("-0", "--null", is_flag=True, help="End paths with NUL, for xargs -0."),
            click.option("--payload", is_flag=True, help="With json: everything stored beside each picture."),
            click.option(
                "--preview/--no-preview",
                default=False,
                help="Show thumbnails, in a terminal; IMRET_PREVIEW chooses how.",
            ),
            click.option(
                "--html", metavar="FILE", help="Write a contact sheet: one page with all thumbnails."
            ),
            click.option(
                "--copy-to",
                metavar="DIR",
                help="Copy the pictures there, named by rank: 001_owl.jpg. Nothing is overwritten.",
            ),
            click.option(
                "--open",
                "open_them",
                is_flag=True,
                help="Show the pictures: with the command in IMRET_VIEWER, else one in the system's viewer, "
                "several on a page in the browser (that of --html, if given).",
            ),
        )
    ):
        command = option(command)
    return command


@contextmanager
def progress_bar(
    description: str, total: int | None
) -> Iterator[tuple[Callable[[int], Any], Callable[[str], None]]]:
    """Draw progress where there is a terminal; yields what to call with images, and at a stage."""
    from tqdm import tqdm

    with tqdm(desc=description, total=total, unit=" images", disable=not sys.stderr.isatty()) as bar:
        begun = {"index"}  # it has no progress of its own

        def begin(stage: str) -> None:
            if stage not in begun:
                bar.reset(total)
            begun.add(stage)
            bar.set_description(stage)

        yield bar.update, begin


def category_names(
    encoder: QueryEncoder,
    given: dict[str, tuple[str, ...]],
    stored: dict[str, tuple[str, ...]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return what categories are called, and announce where that does not come from the file that was given.

    Args:
        encoder: The model.
        given: In that file.
        stored: With the collection; it comes after the file, and before what the model was tuned with.
    """
    from imret.retrieval import prompts

    own = {key: called for key, called in (stored or {}).items() if key not in given}
    if own:
        announce(f"asking by the names stored with the collection: {shown_names(own)} (--names overrides)")
    names, recorded = prompts.resolve_names(encoder, {**own, **given})
    if recorded:
        shown = shown_names(recorded)
        announce(f"asking by the names that the model was tuned with: {shown} (--names overrides)")
    return names


def shown_names(names: Mapping[str, Sequence[str]]) -> str:
    """Return names as a line shows them: "aves = bird", five at most."""
    shown = ", ".join(f"{key} = {called[0]}" for key, called in list(names.items())[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def warn_of_strangers(names: Mapping[str, Sequence[str]], categories: Iterable[str]) -> None:
    """Tell of names that --names gives to what is no category here, such as a misspelt one."""
    from imret.datasets.names_csv import name_key

    categories = sorted(categories)
    strangers = sorted(names.keys() - set(map(name_key, categories)))
    if strangers:
        announce(
            f"Warning: --names names {counted(len(strangers), 'category', 'categories')} without pictures, "
            f"the first {strangers[0]!r}; there are {some_of(categories, 10)}"
        )
