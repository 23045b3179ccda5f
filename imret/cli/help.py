"""How help is laid out: options and commands under headings, examples below, each on a line of its own.

click has one list of each; libraries that group them (cloup, click-option-group) do more than this needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import click

# A heading, and what stands under it: flags of options, names of commands.
Sections = Mapping[str, Sequence[str]]

# The options that many commands share.
STORE = ("--db", "--collection")
MODEL = ("--model", "--arch", "--device", "--precision", "--max-pixels")

_HEAD = "\b\nExamples:\n"  # after \b click leaves lines as they are


def examples(*commands: str) -> str:
    """Return commands as the epilog of a help."""
    return _HEAD + "\n".join(f"  {command}" for command in commands)


def examples_of(command: click.Command) -> list[str]:
    """Return the commands that the help of a command has as examples."""
    epilog = command.epilog or ""
    if epilog.startswith(_HEAD):
        return [line.strip() for line in epilog.removeprefix(_HEAD).splitlines()]
    return [epilog.removeprefix("Example:").strip()] if epilog else []


class SectionedCommand(click.Command):
    """A command whose options stand under headings.

    Args:
        sections: Flags by their heading. Options under none stand first, under "Options".
    """

    def __init__(self, *args: Any, sections: Sections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        heading_of = {flag: heading for heading, flags in self._sections.items() for flag in flags}
        written: dict[str, list[tuple[str, str]]] = {"Options": []}
        written |= {heading: [] for heading in self._sections}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                headings = (heading_of[flag] for flag in parameter.opts if flag in heading_of)
                written[next(headings, "Options")].append(record)
        for heading, records in written.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class SectionedGroup(click.Group):
    """A group whose commands stand under headings, in that order.

    Args:
        sections: Names of all commands by their heading.
    """

    def __init__(self, *args: Any, sections: Sections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in self._sections.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        limit = formatter.width - 6 - max(map(len, commands))
        for heading, names in self._sections.items():
            found = [(name, command) for name in names if (command := commands[name]) is not None]
            with formatter.section(heading):
                formatter.write_dl([(name, command.get_short_help_str(limit)) for name, command in found])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            near = self.nearest(ctx, name)
            meant = f" Did you mean {near!r}?" if near else ""
            ctx.fail(f"no command {name[:100]!r}.{meant}")
        return super().resolve_command(ctx, args)

    def nearest(self, ctx: click.Context, name: str) -> str | None:
        """Return the command whose name is like one that does not exist; None if none is."""
        # click compares with the commands that are loaded already; of imret's own most are not.
        near = difflib.get_close_matches(name.lower(), self.list_commands(ctx), n=1)
        return near[0] if near else None


class ListByDefault(SectionedGroup):
    """A group that lists when no sub-command is named, with the options of the list."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)
