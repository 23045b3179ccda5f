"""What a store may hold after commands: worked out from what they promise, without imret's code.

A command that says it is done has done all of it; one that failed or was killed may have done a part, if it
works picture by picture, or else all or nothing. So what may be there is not one state but some: each a
`Region`, where for every picture it is known which contents it may have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Names that nobody has on a server of theirs.
PHOTOS, OTHERS = "imret-test-photos", "imret-test-others"

# As little machinery as can be, and many small writes.
PLAIN = ("--workers", "1", "--device", "cpu", "--batch-size", "2")

Place = tuple[str, str]  # folder, path below it
Content = str  # its sha256
ABSENT = None
Choice = frozenset[Content | None]
NOTHING: Choice = frozenset({ABSENT})


@dataclass(frozen=True)
class Region:
    """What a collection may hold.

    Attributes:
        model: It is bound to.
        pictures: For each place what may be stored of it.
    """

    model: str
    pictures: Mapping[Place, Choice]

    def holds(self, model: str, pictures: Mapping[Place, Content]) -> bool:
        """Whether a collection is one of those that it stands for."""
        return model == self.model and all(
            pictures.get(place) in self.pictures.get(place, {ABSENT}) for place in {*pictures, *self.pictures}
        )

    def may_be_empty(self) -> bool:
        return all(ABSENT in choice for choice in self.pictures.values())

    def must_be_empty(self) -> bool:
        return all(choice == {ABSENT} for choice in self.pictures.values())

    def folders(self, *, certain: bool) -> set[str]:
        """The folders of which it holds pictures, or may."""
        return {
            place[0]
            for place, choice in self.pictures.items()
            if (ABSENT not in choice if certain else choice != {ABSENT})
        }


World = Mapping[str, Region]  # by name of the collection
Disk = Mapping[str, Mapping[str, Content]]  # folder, path below it


def exactly(model: str, pictures: Mapping[Place, Content]) -> Region:
    """Return what stands for one state."""
    return Region(model, {place: frozenset({content}) for place, content in pictures.items()})


def without(world: World, name: str) -> World:
    return {other: region for other, region in world.items() if other != name}


class Command:
    """What can be typed, and what that promises.

    A command is judged against a world: `done` gives the worlds that may be there when it said so, none if it
    had to refuse; `cut_short` those that may be there when it did not.

    Attributes:
        in_place: Whether it works picture by picture. Two such at once may each win some of the pictures that
            both are about.
    """

    @property
    def in_place(self) -> bool:
        return False

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def done(self, world: World) -> list[World]:
        raise NotImplementedError

    def cut_short(self, world: World) -> list[World]:
        """All or nothing, unless a command says otherwise."""
        return [world, *self.done(world)]


@dataclass(frozen=True)
class Ingest(Command):
    """`imret ingest FOLDER...`"""

    folders: Sequence[str]
    model: str
    disk: Disk
    prune: bool = False
    rebuild: bool = False
    collection: str = PHOTOS

    @property
    def in_place(self) -> bool:
        return not self.rebuild

    def arguments(self) -> list[str]:
        flags = [*["--prune"] * self.prune, *["--rebuild"] * self.rebuild]
        options = ["--model", self.model, "--collection", self.collection, "--precision", "fp32"]
        return ["ingest", *self.folders, *options, *PLAIN, *flags]

    def _on_disk(self) -> dict[Place, Content]:
        return {
            (folder, path): content for folder in self.folders for path, content in self.disk[folder].items()
        }

    def done(self, world: World) -> list[World]:
        if not all(self.disk.get(folder) for folder in self.folders):
            return []
        there, found = world.get(self.collection), self._on_disk()
        new = {place: frozenset({content}) for place, content in found.items()}
        ends: list[Mapping[Place, Choice]] = []
        if there is None:
            ends.append(new)
        elif there.model == self.model:
            ends.append({**self._kept(there, found), **new})
        else:
            if there.may_be_empty():  # its model binds nothing
                ends.append(new)
            if self.rebuild and there.folders(certain=True) <= set(self.folders):
                ends.append({**self._kept_of_rebuild(there, found), **new})
        return [{**world, self.collection: Region(self.model, pictures)} for pictures in ends]

    def _kept(self, there: Region, found: Mapping[Place, Content]) -> dict[Place, Choice]:
        return {
            place: choice
            for place, choice in there.pictures.items()
            if not (self.prune and place[0] in self.folders and place not in found)
        }

    def _kept_of_rebuild(self, there: Region, found: Mapping[Place, Content]) -> Mapping[Place, Choice]:
        """Return what has no file any more: without --prune an earlier rebuild must have embedded it."""
        if self.prune:
            return {}
        return {place: choice for place, choice in there.pictures.items() if place not in found}

    def cut_short(self, world: World) -> list[World]:
        there = world.get(self.collection)
        if there is not None and there.model != self.model and not there.may_be_empty():
            return super().cut_short(world)
        before: Mapping[Place, Choice] = {}
        if there is not None and there.model == self.model:
            before = there.pictures
        ends = [world]
        for end in self.done(world):
            after = end[self.collection].pictures
            ends.append({**world, self.collection: Region(self.model, _either(before, after))})
        return [*ends, *self.done(world)]


@dataclass(frozen=True)
class Import(Command):
    """`imret collections import FILE`, of a file whose content is known."""

    file: str
    content: Region
    how: str = ""  # or "--replace", "--merge"
    collection: str = PHOTOS

    @property
    def in_place(self) -> bool:
        return self.how == "--merge"

    def arguments(self) -> list[str]:
        return ["collections", "import", self.file, "--collection", self.collection, *self.how.split()]

    def done(self, world: World) -> list[World]:
        there = world.get(self.collection)
        if there is None or self.how == "--replace":
            return [{**world, self.collection: self.content}]
        if self.how != "--merge" or there.model != self.content.model:
            return []
        merged = {**there.pictures, **self.content.pictures}
        return [{**world, self.collection: Region(there.model, merged)}]

    def cut_short(self, world: World) -> list[World]:
        there = world.get(self.collection)
        ends = super().cut_short(world)
        if there is not None and self.how == "--merge" and there.model == self.content.model:
            merged = {**there.pictures, **self.content.pictures}
            ends.append({**world, self.collection: Region(there.model, _either(there.pictures, merged))})
        return ends


@dataclass(frozen=True)
class Delete(Command):
    """`imret collections delete NAME`"""

    collection: str = PHOTOS

    def arguments(self) -> list[str]:
        return ["collections", "delete", self.collection, "--yes"]

    def done(self, world: World) -> list[World]:
        return [without(world, self.collection)] if self.collection in world else []


@dataclass(frozen=True)
class Rename(Command):
    """`imret collections rename OLD NEW`"""

    old: str = PHOTOS
    new: str = OTHERS

    def arguments(self) -> list[str]:
        return ["collections", "rename", self.old, self.new]

    def done(self, world: World) -> list[World]:
        if self.old not in world or self.new in world:
            return []
        return [{**without(world, self.old), self.new: world[self.old]}]


@dataclass(frozen=True)
class Forget(Command):
    """`imret sources forget FOLDER`"""

    folder: str
    collection: str = PHOTOS

    @property
    def in_place(self) -> bool:
        return True

    def arguments(self) -> list[str]:
        return ["sources", "forget", self.folder, "--collection", self.collection, "--yes"]

    def done(self, world: World) -> list[World]:
        there = world.get(self.collection)
        if there is None or self.folder not in there.folders(certain=False):
            return []
        kept = {place: choice for place, choice in there.pictures.items() if place[0] != self.folder}
        return [{**world, self.collection: Region(there.model, kept)}]

    def cut_short(self, world: World) -> list[World]:
        there = world.get(self.collection)
        if there is None:
            return [world]
        left = {
            place: choice | ({ABSENT} if place[0] == self.folder else set())
            for place, choice in there.pictures.items()
        }
        return [world, {**world, self.collection: Region(there.model, left)}]


@dataclass(frozen=True)
class RenameSource(Command):
    """`imret sources rename OLD NEW`, of a folder that was moved."""

    old: str
    new: str
    collection: str = PHOTOS

    def arguments(self) -> list[str]:
        return ["sources", "rename", self.old, self.new, "--collection", self.collection]

    def done(self, world: World) -> list[World]:
        there = world.get(self.collection)
        if there is None or not {self.old, self.new} & there.folders(certain=False):
            return []
        moved = {
            (self.new if place[0] == self.old else place[0], place[1]): choice
            for place, choice in there.pictures.items()
        }
        return [{**world, self.collection: Region(there.model, moved)}]

    def cut_short(self, world: World) -> list[World]:
        """A picture may be at its old place, at its new one, or at both."""
        ends = [world]
        for end in self.done(world):
            both = _either(world[self.collection].pictures, end[self.collection].pictures)
            ends.append({**world, self.collection: Region(world[self.collection].model, both)})
        return ends


@dataclass(frozen=True)
class Read(Command):
    """A command that changes nothing."""

    typed: Sequence[str]
    collection: str = PHOTOS

    @property
    def in_place(self) -> bool:
        return True

    def arguments(self) -> list[str]:
        return [*self.typed, "--collection", self.collection]

    def done(self, world: World) -> list[World]:
        return [world] if self.collection in world else []


def allowed(world: World, first: Command, ok: bool, second: Command, also_ok: bool) -> list[World]:
    """Return what may be there after two commands at once: as if one had run after the other.

    Args:
        world: Before.
        first: A command.
        ok: Whether it said that it is done.
        second: The other.
        also_ok: Whether that one did.
    """
    one_first = _after(world, (first, ok), (second, also_ok))
    other_first = _after(world, (second, also_ok), (first, ok))
    mixed = []
    if first.in_place and second.in_place:
        mixed = [_mixed(one, other) for one in one_first for other in other_first if _alike(one, other)]
    return [*one_first, *other_first, *mixed]


def _after(world: World, *commands: tuple[Command, bool]) -> list[World]:
    worlds = [world]
    for command, ok in commands:
        worlds = [end for one in worlds for end in (command.done(one) if ok else command.cut_short(one))]
    return worlds


def _alike(one: World, other: World) -> bool:
    return one.keys() == other.keys() and all(one[name].model == other[name].model for name in one)


def _mixed(one: World, other: World) -> World:
    return {name: Region(one[name].model, _either(one[name].pictures, other[name].pictures)) for name in one}


def _either(one: Mapping[Place, Choice], other: Mapping[Place, Choice]) -> dict[Place, Choice]:
    """Return for each place what may be stored of it by the one account or the other."""
    return {place: one.get(place, NOTHING) | other.get(place, NOTHING) for place in {*one, *other}}
