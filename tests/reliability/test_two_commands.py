"""Two commands at once on one collection, a killed one among them: what is there is what both said.

Random sequences of changes and commands; after each pair the store is compared with what the two, one after
the other, may leave (`tests.reliability.oracle`).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
    World,
    allowed,
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
    describe_disk,
    is_one_of,
    job,
    run_alone,
    stored_after,
)

PAIRS = 3  # of commands in a sequence
KILLED = 0.2  # of the pairs lose one of the two half way
LATER_S = 0.5  # the second of two starts up to this much after the first


@dataclass
class Exported:
    """A file that `imret collections export` wrote, and what is in it."""

    file: str
    content: tuple[str, dict[tuple[str, str], str]] | None = None


def draw_command(scene: Scene, world: World, exported: Exported) -> Command:
    """Return a command that somebody may type."""
    rng, disk = scene.rng, scene.disk()
    name = rng.choice([PHOTOS] * 9 + [OTHERS]) if OTHERS in world else PHOTOS
    current = world[name].model if name in world else rng.choice(scene.library.models)
    other = next(model for model in scene.library.models if model != current)
    folders = scene.folders
    known = sorted(set(folders) & world[name].folders(certain=True)) if name in world else folders
    commands: list[tuple[int, Command]] = [
        (4, Ingest([rng.choice(folders)], current, disk, collection=name)),
        (2, Ingest(folders, current, disk, collection=name)),
        (2, Ingest(folders, current, disk, prune=True, collection=name)),
        (2, Ingest([rng.choice(folders)], other, disk, collection=name)),
        (5, Ingest(known or folders, other, disk, rebuild=True, prune=rng.random() < 0.7, collection=name)),
        (1, Ingest(folders, other, disk, rebuild=True, collection=name)),
        (1, Delete(name)),
        (1, Rename(PHOTOS, OTHERS) if rng.random() < 0.6 else Rename(OTHERS, PHOTOS)),
        (1, Forget(rng.choice(folders), name)),
        (1, Read(["collections", "optimize"], name)),
        (1, Read(["search", "a picture", "--limit", "1"], name)),
    ]
    if exported.content is not None:
        content = exactly(*exported.content)
        commands += [(1, Import(exported.file, content, how, name)) for how in ("", "--replace", "--merge")]
    weights, drawn = zip(*commands, strict=True)
    (one,) = rng.choices(drawn, weights)
    return one


def run_pair(scene: Scene, processes: Processes, exported: Exported, tally: Counter[str]) -> None:
    """Change something on disk, run two commands at once, and compare."""
    for _ in range(scene.rng.randint(0, 3)):
        scene.change()
    world = scene.world()
    commands = [draw_command(scene, world, exported) for _ in range(2)]
    jobs = [
        job(commands[0], scene.db),
        job(commands[1], scene.db, after_s=scene.rng.choice([0.0, scene.rng.uniform(0, LATER_S)])),
    ]
    if scene.rng.random() < KILLED:
        victim = scene.rng.randrange(2)
        jobs[victim] = job(
            commands[victim],
            scene.db,
            after_s=jobs[victim].after_s,
            kill_s=scene.rng.uniform(0, 2.0),
            kill=scene.rng.choice(["program", "all"]),
        )
    first, second = processes.run(*jobs)
    count(tally, first, second)
    check_ended_well(first)
    check_ended_well(second)
    story = "\n".join(
        f"{' '.join(one.job.arguments)} (after {one.job.after_s:.2f} s): {one.code}\n{one.err}"
        for one in (first, second)
    )
    found = stored_after(scene, story)
    worlds = allowed(world, commands[0], first.code == 0, commands[1], second.code == 0)
    assert is_one_of(found, worlds), (
        f"{story}\non disk:\n    {describe_disk(scene.disk())}\nbefore:\n    {describe(world)}\n"
        f"found:\n    {describe(found)}\nallowed:\n    " + "\n  or\n    ".join(map(describe, worlds))
    )


def count(tally: Counter[str], first: Ended, second: Ended) -> None:
    """Note how two commands ended."""
    codes = sorted((first.code, second.code))
    tally["pairs"] += 1
    tally["with one killed"] += -9 in codes
    tally["both done"] += codes == [0, 0]
    tally["one done, one refused"] += codes == [0, 1]
    tally["both refused"] += codes == [1, 1]


def run_sequence(
    seed: int, engine: str, folder: Path, library: Library, processes: Processes, tally: Counter[str]
) -> None:
    """Run one sequence, which its seed decides but for who is faster."""
    rng = random.Random(seed)
    with an_address(engine, folder) as db:
        (folder / "photos").mkdir(parents=True)
        scene = Scene(folder / "photos", library, db, rng)
        exported = Exported(str(folder / "exported.parquet"))
        if rng.random() < 0.6:
            some = rng.sample(scene.folders, rng.randint(1, 3))
            run_alone(scene, processes, Ingest(some, rng.choice(library.models), scene.disk()))
            if rng.random() < 0.6:
                (ended,) = processes.run(Job(["collections", "export", PHOTOS, exported.file, "--db", db]))
                assert ended.code == 0, ended.err
                exported.content = scene.stored()[PHOTOS]
        for _ in range(PAIRS):
            run_pair(scene, processes, exported, tally)
        check_answers(scene, processes)
    tally["sequences"] += 1


def blocks(engine: str, first: int, n_blocks: int, size: int) -> list[Any]:
    """Return the seeds of many sequences, in blocks: some of them can be run alone."""
    starts = range(first, first + n_blocks * size, size)
    return [
        pytest.param(engine, range(at, at + size), marks=pytest.mark.slow, id=f"{engine}, from seed {at}")
        for at in starts
    ]


@pytest.mark.parametrize(
    ("engine", "seeds"),
    [
        pytest.param("embedded", range(3), id="embedded"),
        pytest.param("server", range(1000, 1002), id="server"),
        *blocks("embedded", 3, 16, 25),
        *blocks("server", 1002, 4, 25),
    ],
)
def test_of_two_commands_at_once_each_that_is_done_has_done_all_of_it(
    engine: str,
    seeds: range,
    tmp_path: Path,
    library: Library,
    processes: Processes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally: Counter[str] = Counter()
    failed = {}
    for seed in seeds:
        try:
            run_sequence(seed, engine, tmp_path / str(seed), library, processes, tally)
        except AssertionError as error:
            failed[seed] = error
    with capsys.disabled():
        print(f"\n{engine}: {dict(tally)}; diverged: {sorted(failed)}")
    if failed:
        raise AssertionError(f"diverged with seeds {sorted(failed)}") from next(iter(failed.values()))
