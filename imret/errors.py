"""The errors imret raises for things that can go wrong outside the program.

    ImretError
    ├── ImageError         a picture cannot be used; the message is the reason
    ├── ModelError         a model cannot be found, read or loaded
    │   ├── ModelMismatch  a collection was made by another encoder
    │   └── ModelUnknown   a collection names a model that this user has not chosen
    ├── StoreError         the store refused or failed an operation
    │   ├── StoreUnavailable   nothing answers at the address, or it stopped answering
    │   ├── StoreLocked        another process holds the embedded store
    │   ├── ChangedMeanwhile   another program changed a collection that this one was at work on
    │   └── StoreDamaged       files of a collection are lost or broken
    └── DataError          a folder, category, caption or file is not what was asked for

A programming mistake stays ValueError or TypeError. The library raises; it never prints or exits.
A message says what failed, the value, the cause if known, and the next command.
"""

from __future__ import annotations

from collections.abc import Iterable


class ImretError(Exception):
    """Base of every error that a user, not a programmer, can mend.

    Attributes:
        public: The message for those who only ask a server of imret's: without what is inside, such as the
            address of a store. Empty where the message itself may be told.
    """

    def __init__(self, *args: object, public: str = "") -> None:
        super().__init__(*args)
        self.public = public


class ImageError(ImretError):
    """A picture cannot be used: truncated, empty, too large, or not an image."""


class ModelError(ImretError):
    """A model name, folder or checkpoint cannot be found, read or loaded."""


class ModelMismatch(ModelError):
    """A collection was made by another encoder than the one in use."""


class ModelUnknown(ModelError):
    """A model that only a collection names, and that this user has not chosen, was not loaded."""


class StoreError(ImretError):
    """The store refused an operation, or failed it for a reason that a retry will not mend."""


class StoreUnavailable(StoreError):
    """No store answers at the address, or it stopped answering."""


class StoreLocked(StoreError):
    """Another process holds the embedded store."""


class ChangedMeanwhile(StoreError):
    """Another program changed the collection, or replaced what was live of it, while this one was at work."""


class StoreDamaged(StoreError):
    """Files of a collection in an embedded store are lost or broken; the message says what ends that.

    Attributes:
        model: The collection's encoder, None where that is lost, too.
        sources: The folders that it was filled from, as far as that is known.
    """

    def __init__(
        self, *args: object, public: str = "", model: str | None = None, sources: tuple[str, ...] = ()
    ) -> None:
        super().__init__(*args, public=public)
        self.model = model
        self.sources = sources


class DataError(ImretError):
    """A folder, a category, a caption or a file is not what was asked for."""


def summary(error: BaseException) -> str:
    """Return an error's message on one line, without its last full stop; of a long one the first words.

    Only the first line that says something: libraries append hints and stack traces to it. The name of its
    class where it says nothing.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = " ".join(lines[0].split())
    if len(line) > 300:
        words = line[:299].rpartition(" ")[0] or line[:299]
        return f"{words.rstrip('. ')} …"[:300]
    return line.rstrip(". ")


def counted(n: int, what: str = "picture", many: str = "") -> str:
    """Return a number with what it counts: "1 picture", "1,200 pictures".

    Args:
        n: The number.
        what: One of it.
        many: Several of it, where that is not `what` with an s.
    """
    return f"{n:,} {what if n == 1 else many or what + 's'}"


def some_of(names: Iterable[str], most: int = 20, between: str = ", ") -> str:
    """Return names for a message: "a, b, c and 99,997 more", each of them 100 characters at most.

    Args:
        names: In the order in which they are worth naming.
        most: How many are named.
        between: What stands between them.
    """
    listed = list(names)
    shown = between.join(name if len(name) <= 100 else f"{name[:99]}…" for name in listed[:most])
    return f"{shown} and {len(listed) - most:,} more" if len(listed) > most else shown


# Of the names that exist and of one that does not, what is compared for the nearest spelling: of a hundred
# thousand, to compare each with what was typed takes seconds; the first are the likeliest.
_COMPARED_NAMES, _COMPARED_LENGTH = 2_000, 100


def meant_and_listed(name: str, existing: Iterable[str]) -> tuple[str, list[str]]:
    """Return the question what was meant by a name that does not exist, and those that do, nearest first.

    The case of letters does not matter.

    Args:
        name: As it was typed.
        existing: The likeliest first.

    Returns:
        " Did you mean 'fungi'?", or "" where nothing is near; and the names, those that are not near sorted.
    """
    import difflib

    names = list(dict.fromkeys(existing))
    folded: dict[str, list[str]] = {}
    for one in names[:_COMPARED_NAMES]:
        folded.setdefault(one.casefold(), []).append(one)
    typed = name[:_COMPARED_LENGTH].casefold()
    matches = difflib.get_close_matches(typed, folded, n=max(len(folded), 1), cutoff=0.6)
    near = [one for match in matches for one in folded[match]]
    others = set(names).difference(near)
    meant = f" Did you mean {some_of(near[:1])!r}?" if near else ""
    return meant, [*near, *sorted(others)]


def no_such_collection(name: str, existing: Iterable[str], where: str, otherwise: str) -> str:
    """Return the message for a collection that is not there: what was meant, and those there are.

    Args:
        name: As it was typed.
        existing: Those of the store.
        where: The store, such as "in '/photos/db'"; "" for those who must not know.
        otherwise: What is said of a store that has none.
    """
    meant, listed = meant_and_listed(name, existing)
    at = f" {where}" if where else ""
    there = f"There are: {some_of(listed)}" if listed else otherwise
    return f"no collection {name!r}{at}.{meant} {there}."
