"""The help of every command as one Markdown page: `python -m imret.cli.reference > docs/cli.md`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import click

from imret.cli.main import cli

_WIDTH = 100  # columns of the help, whatever terminal the page is made in

_HEAD = """\
# imret: the command line

Made by `python -m imret.cli.reference > docs/cli.md` from the help of the commands; a test compares the two.
What the commands mean is in [search](search.md), [ingest](ingest.md), [fine-tuning](finetuning.md),
[evaluation](evaluation.md) and [serve](serve.md); variables of the environment and exit codes are in
[settings](settings.md).
"""


def commands(context: click.Context | None = None) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yield every command below a group, groups before their commands, in the order of the help.

    Args:
        context: Of the group; by default of `imret` itself.

    Yields:
        What is typed ("imret collections export"), the command, and a context that gives its help.
    """
    context = context or click.Context(cli, info_name="imret", terminal_width=_WIDTH, **cli.context_settings)
    yield context.command_path, context.command, context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None, name
            yield from commands(click.Context(command, info_name=name, parent=context))


def reference() -> str:
    """Return the page."""
    parts = [_HEAD]
    for typed, command, context in commands():
        level = "##" if typed.count(" ") < 2 else "###"
        parts.append(f"{level} {typed}\n\n{textwrap.indent(command.get_help(context), '    ')}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
