"""The `imret` command: options, output, and errors turned into exit codes.

A thin skin: each command parses, calls one library function and formats. `ingest` and `finetune` bring
their own commands, loaded by name when they are typed; that is the one place where imret knows of them.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import sys
import traceback
import warnings
from typing import Any, NoReturn

import click

from imret.cli.help import SectionedGroup, examples
from imret.cli.options import collection_choice, db_option, format_option
from imret.cli.stopping import farewell, heed_signals, leave
from imret.errors import ImretError
from imret.output.console import announce, prepare_streams, silence_closed_stdout
from imret.settings import __version__, read_settings

_MODULES = {
    "ingest": "ingest.cli",
    "find": "ingest.find",
    "finetune": "finetune.cli",
    "evaluate": "imret.cli.evaluate",
    "benchmark": "imret.cli.benchmark",
    "search": "imret.cli.search",
    "similar": "imret.cli.search",
    "classify": "imret.cli.classify",
    "concepts": "imret.cli.concepts",
    "learn": "imret.cli.learn",
    "models": "imret.cli.models",
    "demo": "imret.cli.demo",
    "collections": "imret.cli.collections",
    "sources": "imret.cli.sources",
    "units": "ingest.list_units",
    "serve": "ingest.serve",
}


# As the help lists them: in the order of work, which is how a newcomer reads them.
_SECTIONS = {
    "Every day": ("find", "serve", "ingest", "search", "similar", "info"),
    "Models and labels": (
        "models",
        "demo",
        "learn",
        "concepts",
        "finetune",
        "evaluate",
        "benchmark",
        "classify",
    ),
    "Stores": ("collections", "sources", "units"),
}


class _Group(SectionedGroup):
    """A group whose larger sub-commands live in modules of their own, imported when first named."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        is_command = name.startswith("-") or self.get_command(ctx, name) is not None
        if is_command or ctx.resilient_parsing or not os.path.isdir(name):
            return super().resolve_command(ctx, args)
        near = self.nearest(ctx, name)
        if near and os.path.basename(name) == name:  # a slip must not begin an ingest
            folder = shlex.quote(f"./{name}")
            ctx.fail(
                f"no command {name[:100]!r}. Did you mean {near!r}? For the folder: imret {folder} WORDS"
            )
        return "find", self.get_command(ctx, "find"), args

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULES:
            module = importlib.import_module(_MODULES[cmd_name])
            command: click.Command = module.similar if cmd_name == "similar" else module.command
            return command
        return super().get_command(ctx, cmd_name)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*args, **options)  # which prints help and version
        except BrokenPipeError:
            silence_closed_stdout()
            raise click.exceptions.Exit(0) from None

    def invoke(self, ctx: click.Context) -> Any:
        # Not in `main`: click makes a broken pipe exit code 1 before it gets there. Flushed here, for Python
        # at its end complains of a reader that has gone (`| head`).
        try:
            try:
                returned = super().invoke(ctx)
            except click.exceptions.Exit:
                sys.stdout.flush()
                raise
            sys.stdout.flush()
            return returned
        except KeyboardInterrupt as stop:  # which click would tell as an empty line
            farewell(stop)
        except BrokenPipeError as error:
            if silence_closed_stdout():
                return 0
            raise RuntimeError(f"a process of imret's own has ended: {error}") from error


@click.group(
    cls=_Group,
    sections=_SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "imret ingest data/test",
        "imret search mushroom --category fungi",
        "imret similar data/test/fungi/0.jpg",
        "imret serve --open",
        "imret collections",
    ),
)
@click.version_option(__version__, "-V", "--version", message="imret %(version)s")
@click.option("--debug", is_flag=True, envvar="IMRET_DEBUG", help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Find pictures by meaning.

    imret turns folders of photos into a collection that answers words: fine-tune a CLIP model on your
    categories, ingest the pictures, search them. Results go to stdout, everything else to stderr.
    """


@cli.command(
    "info",
    short_help="Show what a store holds.",
    epilog=examples(
        "imret info",
        "imret info --collection photos",
        "imret info --format json",
        "imret info --db http://localhost:6333",
    ),
)
@db_option
@collection_choice("Show this one alone.  [default: all]")
@format_option("json: one object, for programs.")
def info_command(db: str | None, collection: str | None, output: str) -> None:
    """Show the store and its collections: model, pictures per category, index, size on disk."""
    from imret.cli.describe import describe, format_table
    from imret.store import open_store

    with open_store(db, create=False, share="if possible", collection=collection) as store:
        description = describe(store, collection)
        where = f" --db {shlex.quote(store.address)}" if db is not None else ""
    print(
        json.dumps(description, indent=2, ensure_ascii=False)
        if output == "json"
        else format_table(description, where)
    )


def main() -> NoReturn:
    """Run the command line; an ImretError is one clear message, a traceback shows only under --debug.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but something was skipped under --strict,
    130 stopped with Ctrl-C, 143 by SIGTERM, 129 by the end of its terminal.
    """
    heed_signals()
    prepare_streams()
    warnings.showwarning = _show_warning
    debug = "--debug" in sys.argv[1:2] or read_settings().debug
    try:
        leave(cli.main(prog_name="imret", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as stop:
        farewell(stop)
    except Exception as error:
        if debug:
            traceback.print_exc()
        message = str(error)
        if not isinstance(error, ImretError):
            message = f"{type(error).__name__}: {error}\nRun again as `imret --debug ...` for the traceback."
        announce("Error: " + message.replace("\n", "\n       "))
        sys.exit(1)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # What imret itself warns of concerns the user; what its libraries warn of concerns its authors.
    if issubclass(category, UserWarning) and getattr(category, "__module__", "").startswith("imret"):
        announce(f"Warning: {message}")


if __name__ == "__main__":
    main()
