"""How many actors a cluster has room for, and what each gets: worked out before a run, from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imret.errors import DataError, counted


@dataclass(frozen=True)
class Shape:
    """How many actors there are, and what each has of its node.

    Attributes:
        actors: How many.
        cpus: Cores of each.
        gpus: GPUs of each, or a part of one.
    """

    actors: int
    cpus: int
    gpus: float


def shape_of(nodes: Sequence[Mapping[str, float]], actors: int | None, gpus_per_actor: float | None) -> Shape:
    """Return how many actors run on nodes, and what each gets.

    By default one for each GPU, with a fair share of the node's cores; without GPUs one for each node, with
    the cores of the smallest.

    Args:
        nodes: What each has: "CPU", "GPU".
        actors: How many; None for as many as there is room for.
        gpus_per_actor: GPUs of each; None for one where there are some.

    Raises:
        DataError: If there is no room.
    """
    cpus, gpus = total(nodes, "CPU"), total(nodes, "GPU")
    has = f"the cluster has {counted(len(nodes), 'node')} with {cpus:g} CPUs and {gpus:g} GPUs"
    each = (1.0 if gpus else 0.0) if gpus_per_actor is None else gpus_per_actor
    wanted = 1 if actors is None else actors
    if each > 0:
        slots = [int(node.get("GPU", 0.0) / each + 1e-9) for node in nodes]
        room = sum(slots)
        shares = [int(node.get("CPU", 0.0)) // n for node, n in zip(nodes, slots, strict=True) if n]
        share = min(shares, default=0)
    else:
        shares = [int(node.get("CPU", 0.0)) for node in nodes if node.get("CPU", 0.0) >= 1]
        share = min(shares, default=0)
        while actors is not None and share > 1 and sum(n // share for n in shares) < actors:
            share -= 1
        room = sum(n // share for n in shares) if share else 0
    if room < wanted or share < 1:
        what = f"{counted(wanted, 'actor')} with " + (f"{each:g} GPUs and " if each else "") + "a CPU each"
        raise DataError(f"there is no room for {what}: {has}. Ask for less: --actors, --gpus-per-actor")
    return Shape(room if actors is None else actors, share, each)


def total(nodes: Sequence[Mapping[str, float]], what: str) -> float:
    """Return how much of a resource nodes have together."""
    return sum(node.get(what, 0.0) for node in nodes)


def of_each(shape: Shape) -> str:
    """Return in words what an actor has."""
    return f"{counted(shape.cpus, 'CPU')}" + (f" and {shape.gpus:g} GPUs" if shape.gpus else "")
