"""How a collection is laid out: shards and replicas, what is held in memory, how vectors are compressed.

What a user may say of it, what holds where nothing is said, and which payload fields are used how. Knows no
engine: `imret.store.server.creation` and `imret.store.embedded.engine_config` put it into the words of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from imret.errors import DataError, StoreError
from imret.store.types import OVERSAMPLING

Quantize: TypeAlias = Literal["int8", "bits4", "bits1", "binary"]
Memory: TypeAlias = Literal["cold", "cached", "pinned"]
QUANTIZE: tuple[str, ...] = get_args(Quantize)
MEMORY: tuple[str, ...] = get_args(Memory)

# Candidates for each hit that are compared again as float32. What has fewer bits needs more of them, and
# finds less all the same (benchmarks/index_quantization.py).
_CANDIDATES = {"int8": OVERSAMPLING, "bits4": OVERSAMPLING, "bits1": 16.0, "binary": 16.0}

# Payload fields by their use. What a search filters by is looked up for each point that a walk comes to, so
# it is held in memory, and the graph gets links between the points of one value. All other fields are looked
# up now and then (a path, a hash: one value a point): they stay on disk until they are read, without links.
# A category is asked for most: what it is looked up in cannot be let go. Both so, they would take more than a
# tenth of what an index of every field took (benchmarks/index_placement.py).
LINKED = ("category", "source")
IN_MEMORY: dict[str, Memory] = {"category": "pinned", "source": "cached"}

SEGMENT_MB = 5_000  # of vectors, on a server: larger ones are not merged any further
# What holds where nothing is said: the originals, which only the best candidates are read of, stay on disk;
# what is compared at every step of a walk does not. An embedded engine holds nothing that cannot be let go.
DEFAULTS: dict[str, dict[str, Any]] = {
    "server": {"quantize": "int8", "originals": "cold", "quantized": "pinned", "segment_mb": SEGMENT_MB},
    "embedded": {"quantize": "int8", "originals": "cold", "quantized": "cached"},
}
_SERVER_ONLY = ("shards", "replicas", "write_consistency", "segment_mb")
FIXED = ("shards", "replicas")  # cannot be changed once a collection is made


@dataclass(frozen=True)
class Creation:
    """What is asked of a collection when it is made, or what one is like; None for what is left open.

    Attributes:
        shards: Parts that a server's collection is cut into, over the nodes of its cluster.
        replicas: Nodes that hold each of them.
        write_consistency: Of those, how many must have stored a point before it counts as stored.
        segment_mb: Megabytes of vectors up to which a server merges segments, each of which has a graph.
        quantize: How vectors are compressed to be compared: to bytes, to 4 bits or 1 bit by TurboQuant, or
            to their signs.
        originals: Whether the vectors as they are stay on disk until they are read, or are read ahead.
        quantized: The same of the compressed ones; "pinned" are held in memory, whatever else wants it.

    Raises:
        ValueError: If a number is less than 1, a word is none of these, or more replicas than there are
            must have stored a point.
    """

    shards: int | None = None
    replicas: int | None = None
    write_consistency: int | None = None
    segment_mb: int | None = None
    quantize: Quantize | None = None
    originals: Memory | None = None
    quantized: Memory | None = None

    def __post_init__(self) -> None:
        for name in _SERVER_ONLY:
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} is at least 1, not {number}")
        for name, words in (("quantize", QUANTIZE), ("originals", MEMORY[:2]), ("quantized", MEMORY)):
            word = getattr(self, name)
            if word is not None and word not in words:
                raise ValueError(f"{name} is one of {', '.join(words)}, not {word!r}")
        if self.write_consistency and self.write_consistency > (self.replicas or self.write_consistency):
            raise ValueError(
                f"write_consistency ({self.write_consistency}) is at most replicas ({self.replicas})"
            )

    @property
    def asked(self) -> dict[str, Any]:
        """What is not left open, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def over(self, other: Creation | dict[str, Any]) -> Creation:
        """Return this, and what it leaves open as the other has it."""
        both = {**(other.asked if isinstance(other, Creation) else other), **self.asked}
        if self.write_consistency is None and {"write_consistency", "replicas"} <= both.keys():
            both["write_consistency"] = min(both["write_consistency"], both["replicas"])
        return Creation(**both)

    def only(self, names: Iterable[str]) -> Creation:
        """Return this without what has another name."""
        return Creation(**{name: getattr(self, name) for name in names})

    def __str__(self) -> str:
        return ", ".join(spelt(name, value) for name, value in self.asked.items())


def inherited(replaced: Creation) -> Creation:
    """Return what a version takes over from the one that it is to replace, where nothing else is asked.

    A number of 1 is left to the server, whose default may have become another.
    """
    left = [name for name in _SERVER_ONLY[:3] if getattr(replaced, name) == 1]
    return replaced.only(name for name in replaced.asked if name not in left)


def spelt(name: str, value: object) -> str:
    """Return one choice for people: "12 shards", "int8", "originals cold"."""
    if name == "quantize":
        return str(value)
    if name == "segment_mb":
        return f"segments of {value:,} MB"
    if name in ("shards", "replicas"):
        return f"{value} {name if value != 1 else name[:-1]}"
    return f"{name.replace('_', ' ')} {value}"


def candidates(creation: Creation) -> float:
    """Return how many compressed vectors for each hit are compared again as float32."""
    return _CANDIDATES.get(creation.quantize or "int8", OVERSAMPLING)


def option(name: str) -> str:
    """Return the option of the command line by which something is said."""
    return f"--{name.replace('_', '-')}"


def check_embedded(creation: Creation, address: str) -> None:
    """Refuse what an embedded store has not.

    Raises:
        StoreError: If something is asked that only a server has.
    """
    given = [option(name) for name in creation.asked if name in _SERVER_ONLY]
    if given:
        raise StoreError(
            f"{' and '.join(given)} cannot apply to the embedded store {address!r}: it is one shard on this "
            "machine. Leave out, or name a Qdrant server: --db http://localhost:6333"
        )


def check_same(asked: Creation, existing: Creation, name: str, address: str) -> None:
    """Refuse what a collection that exists is not like.

    Raises:
        DataError: If something is asked that it has otherwise; the message says what changes it.
    """
    have = existing.asked
    other = {key: value for key, value in asked.asked.items() if have.get(key) != value}
    if not other:
        return
    wanted = ", ".join(spelt(key, value) for key, value in other.items())
    has = ", ".join(spelt(key, have[key]) if key in have else f"no {key} of its own" for key in other)
    fixed = [key for key in other if key in FIXED]
    changing = " ".join(f"{option(key)} {value}" for key, value in other.items() if key not in fixed)
    advice = "Leave that out to go on with it as it is."
    if fixed:
        anew = " ".join(f"{option(key)} {value}" for key, value in other.items())
        advice += (
            f"\nFor other {' and '.join(fixed)} it is made anew: imret collections export {name} FILE --db "
            f"{address}, then imret collections import FILE --replace {anew} --db {address}"
        )
    else:
        advice += f"\nTo change it: imret collections optimize {name} --to-current {changing} --db {address}"
    raise DataError(f"collection {name!r} exists with {has}, not {wanted}. {advice}")


def check_changeable(asked: Creation) -> None:
    """Refuse what cannot be changed of a collection that exists.

    Raises:
        DataError: If that is asked.
    """
    fixed = [option(name) for name in asked.asked if name in FIXED]
    if fixed:
        raise DataError(
            f"{' and '.join(fixed)} cannot be changed once a collection is made. Export it, and import it "
            "with --replace."
        )
