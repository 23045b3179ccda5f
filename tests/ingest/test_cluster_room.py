"""How many actors fit into a cluster, worked out by hand."""

from __future__ import annotations

import pytest

from imret.errors import DataError
from ingest.cluster_room import Shape, shape_of

SMALL = {"CPU": 2.0}
LARGE = {"CPU": 64.0}
WITH_GPUS = {"CPU": 32.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "actors", "gpus", "expected"),
    [
        ([SMALL, SMALL], None, None, Shape(2, 2, 0.0)),
        ([SMALL, LARGE], None, None, Shape(33, 2, 0.0)),
        ([SMALL, SMALL], 3, None, Shape(3, 1, 0.0)),
        ([SMALL, SMALL], 1, None, Shape(1, 2, 0.0)),
        ([WITH_GPUS, WITH_GPUS], None, None, Shape(4, 16, 1.0)),
        ([WITH_GPUS, LARGE], None, None, Shape(2, 16, 1.0)),
        ([WITH_GPUS], None, 0.25, Shape(8, 4, 0.25)),
        ([WITH_GPUS, SMALL], 3, 0.0, Shape(3, 2, 0.0)),
        ([WITH_GPUS], 1, None, Shape(1, 16, 1.0)),
    ],
)
def test_actors_get_what_there_is(
    nodes: list[dict[str, float]], actors: int | None, gpus: float | None, expected: Shape
) -> None:
    assert shape_of(nodes, actors, gpus) == expected


@pytest.mark.parametrize(
    ("nodes", "actors", "gpus", "message"),
    [
        (
            [SMALL, SMALL],
            5,
            None,
            r"5 actors with a CPU each: the cluster has 2 nodes with 4 CPUs",
        ),
        ([SMALL], None, 1.0, r"1 actor with 1 GPUs and a CPU each"),
        ([WITH_GPUS], 3, None, r"3 actors with 1 GPUs"),
        ([{"CPU": 0.0}], None, None, r"1 actor with a CPU each"),
        ([{"CPU": 1.0, "GPU": 2.0}], None, None, r"1 actor with 1 GPUs and a CPU each"),
        ([], None, None, r"0 nodes"),
    ],
)
def test_where_there_is_no_room_the_error_says_what_there_is(
    nodes: list[dict[str, float]], actors: int | None, gpus: float | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        shape_of(nodes, actors, gpus)
