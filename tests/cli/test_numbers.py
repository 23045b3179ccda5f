"""Every number on the command line is refused with a sentence where nobody could compute with it."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from imret.cli.main import cli
from imret.cli.numbers import MAX_COUNT, Real, Whole
from imret.cli.reference import commands


def numeric_options() -> Iterator[tuple[list[str], click.Parameter]]:
    for path, command, _ in commands():
        for parameter in command.params:
            is_plain = parameter.type.name.startswith(("int", "float"))  # click's own
            if is_plain or isinstance(parameter.type, (Whole, Real)):
                yield path.split(), parameter


def test_every_numeric_option_is_of_the_types_that_refuse_what_is_no_number() -> None:
    found = list(numeric_options())
    assert len(found) > 30
    for path, parameter in found:
        assert isinstance(parameter.type, (Whole, Real)), (path, parameter.name)


@pytest.mark.parametrize(
    "text", ["1e20", "9" * 20, "9" * 5000, "nan", "inf", "-1e20", "1.5", "", "-inf", "٣x"]
)
def test_a_number_that_is_none_or_too_large_is_told_in_one_sentence(text: str) -> None:
    for path, parameter in numeric_options():
        if isinstance(parameter.type, Real) and text in ("1.5", "1e20", "9" * 20):
            continue  # it may be right
        option = parameter.opts[0]
        given = f"{option}={text}" if option.startswith("--") else text
        result = CliRunner().invoke(cli, [*path[1:], given])
        said = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert result.exit_code == 2, (path, option, result.output)
        assert len(said) == 1
        assert len(said[0]) < 300
        assert option in said[0], said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1e20", "'1e20' is not a whole number."),
        ("9" * 20, f"{'9' * 20} is not in the range 1<=x<={MAX_COUNT}."),
        ("9" * 5000, f"{'9' * 30}... is not in the range 1<=x<={MAX_COUNT}."),
        ("0", "0 is not in the range x>=1."),
    ],
)
def test_what_is_said_of_a_limit(text: str, says: str) -> None:
    assert says in CliRunner().invoke(cli, ["search", "owl", "--limit", text]).output


def test_numbers_within_the_range_are_taken() -> None:
    assert Whole(1).convert("1000000000", None, None) == MAX_COUNT
    assert Whole(0).convert(" +7 ", None, None) == 7
    assert Real(-1, 1).convert("-0.5", None, None) == -0.5
