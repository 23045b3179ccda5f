"""The pages beside the code, and what is in them: blocks, commands, links, names of files.

A block is what is indented by four spaces. `<!-- not run: REASON -->` on the line before one says that its
commands are parsed, and not run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imret.cli.help import examples_of
from imret.cli.reference import commands
from tests import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "docs" / "cli.md"  # made of the help of the commands; its examples are theirs

_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of a page, such as `imret search mushroom`.

    Attributes:
        page: Name of the page.
        line: Where its block begins; of the reference, the number of the example.
        words: The program and its arguments, without what comes after `>`.
        env: What is set before it on the line.
        output: File that its output is written to, if any.
        not_run: Why its block is not run, if the page says so.
    """

    page: str
    line: int
    words: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    output: str | None = None
    not_run: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


@dataclass(frozen=True)
class Block:
    """An indented block.

    Attributes:
        line: Of the page, where it begins.
        text: Without the indent.
        not_run: Why it is not run, if the page says so.
    """

    line: int
    text: str
    not_run: str | None

    @property
    def is_python(self) -> bool:
        return self.text.startswith(("import ", "from "))


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page; blank lines within one belong to it."""
    lines = page.read_text(encoding="utf-8").splitlines()
    n = 0
    while n < len(lines):
        if not lines[n].startswith("    ") or (n and lines[n - 1] and not _NOT_RUN.fullmatch(lines[n - 1])):
            n += 1
            continue
        end = n
        while end < len(lines) and (lines[end].startswith("    ") or not lines[end]):
            end += 1
        before = next((line for line in reversed(lines[:n]) if line), "")
        marker = _NOT_RUN.fullmatch(before)
        text = "\n".join(line[4:] for line in lines[n:end]).rstrip()
        yield Block(n + 1, text, marker[1] if marker else None)
        n = end


def typed(page: Path) -> Iterator[Command]:
    """Yield the commands of a page in order; those of the reference are the examples of the help."""
    if page == REFERENCE:
        examples = [example for _, command, _ in commands() for example in examples_of(command)]
        for n, example in enumerate(examples, start=1):
            yield from commands_of(example, page.name, n)
        return
    for block in blocks(page):
        if not block.is_python:
            yield from commands_of(block.text, page.name, block.line, block.not_run)


def commands_of(text: str, page: str, line: int, not_run: str | None = None) -> Iterator[Command]:
    """Yield the commands of a block: all its lines, or where some begin with $, those."""
    lines = text.replace("\\\n", " ").splitlines()
    if any(one.startswith("$ ") for one in lines):
        lines = [one.removeprefix("$ ") for one in lines if one.startswith("$ ")]
    for one in lines:
        shell = shlex.shlex(one.split("  #")[0], posix=True, punctuation_chars="&|;>")
        shell.whitespace_split = True
        shell.commenters = ""
        try:
            words = list(shell)
        except ValueError:  # prose or a drawing, with an apostrophe in it
            continue
        yield from _split(words, page, line, not_run)


def _split(words: list[str], page: str, line: int, not_run: str | None) -> Iterator[Command]:
    while words:
        end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";")), len(words))
        one, words = words[:end], words[end + 1 :]
        env = []
        while one and (assigned := _ASSIGNMENT.fullmatch(one[0])):
            env.append((assigned[1], assigned[2]))
            one = one[1:]
        output = None
        if ">" in one:
            output = one[one.index(">") + 1]
            one = one[: one.index(">")]
        if one:
            yield Command(page, line, tuple(one), tuple(env), output, not_run)
