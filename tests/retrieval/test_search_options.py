"""The parameters of a search: one list for the library, the command and the API; and what they refuse."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import click
import pytest

import imret
from imret.cli.main import cli
from imret.cli.search import command, similar
from imret.client.search import API_NAMES
from imret.retrieval.search_options import SearchOptions

DEFAULTS = {field.name: field.default for field in fields(SearchOptions)}


def test_the_library_takes_them_with_the_same_defaults() -> None:
    parameters = inspect.signature(imret.search).parameters
    others = {"store", "query", "encoder", "filter", "fetch"}
    assert {name: parameters[name].default for name in parameters if name not in others} == DEFAULTS


@pytest.mark.parametrize("command", [command, similar], ids=lambda command: command.name)
def test_the_command_has_an_option_for_each_with_the_same_default(command: click.Command) -> None:
    # Below `imret`, as it is used: click keeps the help option of the first context.
    below = click.Context(cli, **cli.context_settings)
    values = command.make_context(command.name, ["x"], parent=below).params
    for name, default in DEFAULTS.items():
        if name not in ("template", "concepts"):  # --no-template, --no-concepts, and none for pictures
            assert values[name] == default, name


def test_the_api_takes_them_with_the_same_defaults() -> None:
    schemas = pytest.importorskip("imret.web.schemas")
    taken = schemas.Conditions.model_fields
    assert set(taken) == {API_NAMES.get(name, name) for name in DEFAULTS} | {"counts"}
    for name, default in DEFAULTS.items():
        if name != "collection":  # the one that the server was given
            given = taken[API_NAMES.get(name, name)].get_default(call_default_factory=True)
            assert (given or None) == (default or None), name


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"per_group": 0}, "per_group must be at least 1, not 0"),
        ({"offset": -1}, "offset must be at least 0, not -1"),
        ({"min_score": 1.5}, r"min_score is a cosine, in \[-1, 1\], not 1\.5"),
        ({"min_score": float("nan")}, "min_score is a cosine"),
        ({"limit": 1e20}, r"limit must be a whole number, not 1e\+20"),
        ({"limit": 10**20}, "limit must be at most 1,000,000,000, not more"),
        ({"offset": 10**5000}, "offset must be at most 1,000,000,000, not more"),
        ({"per_group": float("inf")}, "per_group must be a whole number, not inf"),
        ({"limit": float("nan")}, "limit must be a whole number, not nan"),
        ({"sort": "size"}, "sort must be one of score, date, path, not 'size'"),
    ],
)
def test_what_is_out_of_range_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SearchOptions(**wrong)


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(TypeError, match="limt"):
        SearchOptions(limt=3)  # type: ignore[call-arg]
