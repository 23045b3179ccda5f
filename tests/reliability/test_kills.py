"""kill -9 at random moments of every command that opens a store: nothing is lost, nothing is there twice.

After each kill the store is compared with what the command may have done by then, and the same command is
typed again: it ends what it began.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import parquet

from tests.reliability.oracle import (
    OTHERS,
    PHOTOS,
    Command,
    Delete,
    Forget,
    Import,
    Ingest,
    Read,
    Rename,
    RenameSource,
    exactly,
)
from tests.reliability.processes import Ended, Job, Processes
from tests.reliability.scene import (
    Library,
    Scene,
    an_address,
    check_answers,
    check_ended_well,
    describe,
    is_one_of,
    job,
    run_alone,
    stored_after,
)

ALPS, COAST, GARDEN = range(3)
SERVED_S = 1.5  # how long a server runs at most, which ends by no other way


def renamed(scene: Scene) -> Command:
    """Move a folder."""
    old = scene.folders[ALPS]
    new = f"{old}-2026"
    os.rename(old, new)
    return RenameSource(old, new)


def pruned(scene: Scene) -> Command:
    """Take pictures out of a folder."""
    scene.remove_picture(scene.folders[ALPS])
    scene.remove_picture(scene.folders[COAST])
    return Ingest(scene.folders, scene.library.models[0], scene.disk(), prune=True)


def killed_export(scene: Scene) -> str:
    """The file that a killed export writes."""
    return str(scene.folder.parent / "killed.parquet")


# By name how a command comes about in a scene where two of three folders were ingested with the first model
# and then exported.
COMMANDS: dict[str, Callable[[Scene, Import], Command]] = {
    "ingest": lambda scene, _: Ingest(scene.folders, scene.library.models[0], scene.disk()),
    "ingest --prune": lambda scene, _: pruned(scene),
    "ingest --rebuild": lambda scene, _: Ingest(
        scene.folders, scene.library.models[1], scene.disk(), rebuild=True
    ),
    "import": lambda _, file: Import(file.file, file.content, "", OTHERS),
    "import --replace": lambda _, file: Import(file.file, file.content, "--replace"),
    "import --merge": lambda _, file: Import(file.file, file.content, "--merge"),
    "delete": lambda *_: Delete(),
    "rename": lambda *_: Rename(),
    "sources forget": lambda scene, _: Forget(scene.folders[COAST]),
    "sources rename": lambda scene, _: renamed(scene),
    "optimize": lambda *_: Read(["collections", "optimize"]),
    "export": lambda scene, _: Read(["collections", "export", killed_export(scene), "--overwrite"]),
    "search": lambda *_: Read(["search", "a picture", "--unique"]),
    "check": lambda *_: Read(["collections", "check"]),
    "serve": lambda *_: Read(["serve", "--port", "0"]),
}


def prepared(scene: Scene, processes: Processes) -> Import:
    """Ingest two folders, export them, and change the disk a little."""
    first_two = scene.folders[: COAST + 1]
    run_alone(scene, processes, Ingest(first_two, scene.library.models[0], scene.disk()))
    file = str(scene.folder.parent / "exported.parquet")
    (ended,) = processes.run(Job(["collections", "export", PHOTOS, file, "--db", scene.db]))
    assert ended.code == 0, ended.err
    content = exactly(*scene.stored()[PHOTOS])
    for folder in first_two:
        scene.add_picture(folder)
    run_alone(scene, processes, Ingest(first_two[:1], scene.library.models[0], scene.disk()))
    return Import(file, content)


def kill_once(
    name: str, seed: int, engine: str, folder: Path, library: Library, processes: Processes
) -> tuple[Ended, bool]:
    """Kill a command once, at a moment that its seed draws; end what it began.

    How long it takes is found out in a store of its own.

    Returns:
        How it ended, and whether what it does was done all the same.
    """
    rng = random.Random(seed)
    takes_s = SERVED_S
    if name != "serve":
        with an_address(engine, folder / "undisturbed") as db:
            scene = Scene(made(folder / "undisturbed" / "photos"), library, db, random.Random(seed))
            command = COMMANDS[name](scene, prepared(scene, processes))
            (ended,) = processes.run(job(command, db))
            assert ended.code == 0, ended.err
            takes_s = ended.seconds
    with an_address(engine, folder) as db:
        scene = Scene(made(folder / "photos"), library, db, rng)
        file = prepared(scene, processes)
        command = COMMANDS[name](scene, file)
        world = scene.world()
        killed = job(command, db, kill_s=rng.uniform(0.0, takes_s), kill=rng.choice(["program", "all"]))
        (ended,) = processes.run(killed)
        check_ended_well(ended)
        story = f"{' '.join(killed.arguments)} killed at {killed.kill_s:.3f} s: {ended.code}\n{ended.err}"
        found = stored_after(scene, story)
        worlds = command.cut_short(world) if ended.code else command.done(world)
        assert is_one_of(found, worlds), f"{story}\nbefore: {describe(world)}\nfound: {describe(found)}"
        is_done = bool(ended.code) and is_one_of(found, command.done(world))
        if name == "export" and os.path.exists(killed_export(scene)):
            assert len(list_ids(killed_export(scene))) == len(found[PHOTOS][1]), f"{story}\nhalf a file"
        if name != "serve":
            end_it(scene, processes, command, story, may_refuse=is_done or not ended.code)
        check_answers(scene, processes)
        return ended, is_done


def made(folder: Path) -> Path:
    """Return a folder, which is made."""
    folder.mkdir(parents=True)
    return folder


def list_ids(file: str) -> list[str]:
    """Return the ids in an exported file; reads all of it."""
    return [str(id_) for id_ in parquet.read_table(file).column("id").to_pylist()]


def end_it(scene: Scene, processes: Processes, command: Command, story: str, *, may_refuse: bool) -> None:
    """Type a command again: it does what is left, or says that nothing is."""
    world = scene.world()
    (again,) = processes.run(job(command, scene.db))
    check_ended_well(again)
    found, worlds = scene.stored(), command.done(world)
    story = f"{story}\nand again: {again.code}\n{again.err}\nfound: {describe(found)}"
    if again.code:
        assert may_refuse, story
        assert is_one_of(found, [world]), story
    else:
        assert is_one_of(found, worlds), story


@pytest.mark.parametrize("name", ["ingest --rebuild", "import --replace", "delete", "sources rename"])
def test_a_killed_command_typed_again_ends_what_it_began(
    name: str, tmp_path: Path, library: Library, processes: Processes
) -> None:
    kill_once(name, 0, "embedded", tmp_path, library, processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "rounds"),
    [
        *[pytest.param("embedded", range(at, at + 2), id=f"embedded, from {at}") for at in range(1, 11, 2)],
        *[pytest.param("server", range(at, at + 2), id=f"server, from {at}") for at in range(1, 5, 2)],
    ],
)
def test_kills_of_every_command_lose_nothing(
    engine: str,
    rounds: range,
    tmp_path: Path,
    library: Library,
    processes: Processes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally: Counter[str] = Counter()
    failed: dict[str, AssertionError] = {}
    for seed in rounds:
        for name in COMMANDS:
            folder = tmp_path / f"{name.replace(' ', '')}{seed}"
            try:
                ended, is_done = kill_once(name, seed, engine, folder, library, processes)
            except AssertionError as error:
                failed[f"{name}, seed {seed}"] = error
            else:
                tally["killed"] += ended.code == -9
                tally["ended before"] += ended.code != -9
                tally["of those killed, had done it"] += is_done and name not in ("search", "check", "serve")
    with capsys.disabled():
        print(f"\n{engine}: {dict(tally)}; diverged: {sorted(failed)}")
    assert tally["killed"] >= tally["ended before"], "the kills came too late to mean anything"
    if failed:
        raise AssertionError(f"diverged: {sorted(failed)}") from next(iter(failed.values()))
