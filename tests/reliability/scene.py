"""Folders of pictures, two models, and a store, for commands to be let loose on."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imret import ImretError, open_store
from imret.store.payload import path_of, source_of
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_over_http import QdrantOverHTTP
from tests.reliability.oracle import (
    OTHERS,
    PHOTOS,
    Choice,
    Command,
    Content,
    Disk,
    Place,
    Region,
    World,
    exactly,
)
from tests.reliability.processes import Ended, Job, Processes

N_PICTURES = 60
FOLDERS = ("alps", "coast", "garden")
Stored = dict[str, tuple[str, dict[Place, Content]]]  # by collection: its model, and what it holds
TOLERANCE = 1e-5  # between a picture's vectors of two batches


@dataclass
class Library:
    """Pictures to put into folders, and what each is as a vector.

    Attributes:
        files: By content.
        models: Folders of two models, of the same dimensions.
        vectors: By model and content, as an ingest that nobody disturbed stored them.
    """

    files: dict[Content, Path]
    models: Sequence[str]
    vectors: dict[tuple[str, Content], NDArray[np.float32]] = field(default_factory=dict)


def make_library(folder: Path, processes: Processes) -> Library:
    """Draw the pictures, and have each model embed them in peace."""
    files = {}
    for seed in range(N_PICTURES):
        file = draw_picture(folder / "drawn" / f"{seed}.png", seed=seed, size=(40, 32))
        files[hashlib.sha256(file.read_bytes()).hexdigest()] = file
    models = [str(write_random_model(folder / f"model{seed}", seed=seed, dim=16)) for seed in (1, 2)]
    library = Library(files, models)
    for number, model in enumerate(models):
        db = str(folder / f"undisturbed{number}")
        options = ["--precision", "fp32", "--device", "cpu", "--no-categories"]
        (ended,) = processes.run(
            Job(["ingest", str(folder / "drawn"), "--model", model, "--db", db, *options])
        )
        assert ended.code == 0, ended.err
        with open_store(db, create=False) as store, closing(store.open("photos")) as photos:
            for points in photos.scan(vectors=True):
                for point in points:
                    assert point.vector is not None
                    library.vectors[model, str(point.payload["sha256"])] = point.vector
    assert len(library.vectors) == 2 * N_PICTURES
    return library


class Scene:
    """One store, and the folders that it is filled from.

    Args:
        folder: For all of it.
        library: The pictures and models.
        db: Address of the store.
        rng: Draws everything.
    """

    def __init__(self, folder: Path, library: Library, db: str, rng: random.Random) -> None:
        self.folder = folder
        self.library = library
        self.db = db
        self.rng = rng
        self._unused = list(library.files)
        rng.shuffle(self._unused)
        for name in FOLDERS:
            for _ in range(rng.randint(3, 6)):
                self.add_picture(str(folder / name))

    @property
    def folders(self) -> list[str]:
        """Those that are there, with pictures in them."""
        return [str(path) for path in sorted(self.folder.iterdir()) if path.is_dir()]

    def add_picture(self, folder: str) -> None:
        """Put a picture into a folder that is nowhere else."""
        if self._unused:
            content = self._unused.pop()
            place = Path(folder) / f"category{self.rng.randint(0, 1)}" / f"{len(self._unused)}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.library.files[content], place)

    def change(self) -> None:
        """Add, renew or remove a picture; no folder loses all."""
        folder = self.rng.choice(self.folders)
        what = self.rng.choice(["add", "add", "renew", "remove"])
        if what == "add":
            self.add_picture(folder)
            return
        pictures = self.pictures(folder)
        if what == "renew" and self._unused:
            shutil.copyfile(self.library.files[self._unused.pop()], self.rng.choice(pictures))
        elif what == "remove":
            self.remove_picture(folder)

    def pictures(self, folder: str) -> list[Path]:
        """Return the pictures of a folder."""
        return sorted(Path(folder).rglob("*.png"))

    def remove_picture(self, folder: str) -> None:
        """Remove a picture; an empty folder would be one whose drive is away."""
        spare = [one for one in self.pictures(folder) if len(list(one.parent.iterdir())) > 1]
        if spare:
            self.rng.choice(spare).unlink()

    def disk(self) -> Disk:
        """Return what is in the folders now."""
        return {
            folder: {
                str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
                for file in Path(folder).rglob("*.png")
            }
            for folder in self.folders
        }

    def stored(self) -> Stored:
        """Return what the collections hold: by name their model and pictures.

        Each vector is looked at: it must be the one that the model makes of the picture.
        """
        found: Stored = {}
        with open_store(self.db) as store:
            for name in sorted({PHOTOS, OTHERS} & set(store.collections())):
                with closing(store.open(name)) as opened:
                    model = opened.identity.model
                    pictures: dict[Place, Content] = {}
                    for points in opened.scan(vectors=True):
                        for point in points:
                            place = source_of(point.payload), path_of(point.payload)
                            content = str(point.payload["sha256"])
                            assert place not in pictures, f"{place} is stored twice"
                            pictures[place] = content
                            expected = self.library.vectors[model, content]
                            assert point.vector is not None
                            np.testing.assert_allclose(point.vector, expected, atol=TOLERANCE)
                    assert opened.count() == len(pictures)
                found[name] = model, pictures
        return found

    def world(self) -> World:
        """Return the same as what an oracle begins with."""
        return {name: exactly(*content) for name, content in self.stored().items()}


def is_one_of(found: Stored, worlds: Sequence[World]) -> bool:
    """Whether what the collections hold is what one of some worlds says."""
    return any(
        found.keys() == world.keys() and all(world[name].holds(*content) for name, content in found.items())
        for world in worlds
    )


def describe(found: Stored | World) -> str:
    """Return what is in collections, short enough to be read in a failure."""
    lines = []
    for name, content in sorted(found.items()):
        region = content if isinstance(content, Region) else exactly(*content)
        shown = sorted(
            f"{Path(folder).name}/{path}={_short(choice)}"
            for (folder, path), choice in region.pictures.items()
        )
        lines.append(f"{name} of {Path(region.model).name}: {len(shown)}: {', '.join(shown)}")
    return "\n    ".join(lines) or "no collection"


def describe_disk(disk: Disk) -> str:
    """Return what files there are, as `describe` does."""
    return ", ".join(
        f"{Path(folder).name}/{path}={content[:4]}"
        for folder, files in sorted(disk.items())
        for path, content in sorted(files.items())
    )


def _short(choice: Choice) -> str:
    return "|".join(sorted("-" if one is None else one[:4] for one in choice))


def check_ended_well(ended: Ended) -> None:
    """Refuse a command that hung, crashed, or failed without a sentence."""
    typed = " ".join(ended.job.arguments)
    assert not ended.hung, f"{typed!r} hung:\n{ended.err}"
    for raw in ("Traceback", "404 Not Found", "panicked"):
        assert raw not in ended.err, f"{typed!r}:\n{ended.err}"
    if ended.code != -9:
        assert ended.code in (0, 1), f"{typed!r} ended with {ended.code}:\n{ended.err}"
        assert ended.code == 0 or "Error: " in ended.err, f"{typed!r} failed without a word:\n{ended.err}"


def job(
    command: Command,
    db: str,
    *,
    after_s: float = 0.0,
    kill_s: float | None = None,
    kill: Literal["program", "all"] = "program",
) -> Job:
    """Return a command as it is typed for a store."""
    return Job([*command.arguments(), "--db", db], after_s, kill_s, kill)


def run_alone(scene: Scene, processes: Processes, command: Command) -> None:
    """Run a command that has to do what it promises, or to refuse with a sentence."""
    world = scene.world()
    (ended,) = processes.run(job(command, scene.db))
    check_ended_well(ended)
    worlds, found = command.done(world), scene.stored()
    typed = " ".join(command.arguments())
    assert ended.code == (0 if worlds else 1), f"{typed}\n{ended.err}\nbefore: {describe(world)}"
    assert is_one_of(found, worlds or [world]), f"{typed}\n{ended.err}\nfound: {describe(found)}"


def stored_after(scene: Scene, story: str) -> Stored:
    """Return what a store holds after what a story tells; that it cannot be read is part of the story."""
    try:
        return scene.stored()
    except ImretError as error:
        raise AssertionError(f"{story}\n{error}") from error


def check_answers(scene: Scene, processes: Processes) -> None:
    """Search each collection for all that it holds."""
    for name, (_, pictures) in scene.stored().items():
        typed = ["search", "a picture", "--collection", name, "--limit", "1000", "--format", "json"]
        (ended,) = processes.run(Job([*typed, "--db", scene.db]))
        check_ended_well(ended)
        assert ended.code == 0, ended.err
        assert len(ended.out.splitlines()) == len(pictures), ended.err


@contextmanager
def an_address(engine: str, folder: Path) -> Iterator[str]:
    """Give the address of an empty store."""
    url = str(folder / "db") if engine == "embedded" else os.environ.get("IMRET_TEST_QDRANT_URL")
    with QdrantOverHTTP() if url is None else nullcontext() as fake:
        db = url if fake is None else fake.url
        assert db is not None
        with open_store(db) as store:
            store.drop(PHOTOS)
            store.drop(OTHERS)
        yield db
