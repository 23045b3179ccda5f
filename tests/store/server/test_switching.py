"""What a writer and a switch on one Qdrant server see of each other, at each moment between requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from imret.errors import ChangedMeanwhile
from imret.store import Identity
from imret.store.server import marks
from imret.store.server.store import ServerStore
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

MODEL = Identity("ViT-tiny", "a1" * 32, 8)
OTHER_MODEL = Identity("ViT-other", "b2" * 32, 8)


@pytest.fixture
def qdrant() -> Iterator[QdrantOverHTTP]:
    with QdrantOverHTTP() as server:
        yield server


@pytest.fixture
def stores(qdrant: QdrantOverHTTP) -> Iterator[tuple[ServerStore, ServerStore]]:
    """A collection with a live version, as two programs see it."""
    with ServerStore(qdrant.url) as one, ServerStore(qdrant.url) as other:
        one.open_version("photos", MODEL).close()
        one.promote("photos", MODEL)
        yield one, other


def is_alias_update(method: str, path: str) -> bool:
    return method == "POST" and path.split("?")[0] == "/collections/aliases"


def test_a_writer_that_ends_after_the_last_check_of_a_switch_waits_for_it_and_is_refused(
    qdrant: QdrantOverHTTP, stores: tuple[ServerStore, ServerStore]
) -> None:
    switcher, writer = stores
    begun = writer.state("photos")
    beside = switcher.open_version("photos", OTHER_MODEL)
    said: list[str] = []
    has_left_its_mark = threading.Event()

    def finish() -> None:
        try:
            writer.finish("photos", begun)
            said.append("done")
        except ChangedMeanwhile:
            said.append("refused")

    ending = threading.Thread(target=finish)

    def end_meanwhile(method: str, path: str) -> None:
        if is_alias_update(method, path):
            ending.start()
            assert has_left_its_mark.wait(20)
            assert not said
        elif ending.is_alive() and method == "GET":
            has_left_its_mark.set()

    qdrant.fail = end_meanwhile
    switcher.promote("photos", OTHER_MODEL, version=beside.version, expected=switcher.state("photos"))
    ending.join(20)
    assert said == ["refused"]


def test_a_switch_that_gave_up_or_died_holds_a_writer_up_for_a_moment_only(
    qdrant: QdrantOverHTTP, stores: tuple[ServerStore, ServerStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    switcher, writer = stores
    live = writer.state("photos")
    assert live.version is not None
    monkeypatch.setattr(marks, "VOID_S", 0.3)
    switcher._marks.begin_switch(live.version, live)  # and dies
    writer.finish("photos", live)
    assert switcher._marks.read(live.version, "switching") == ""
    monkeypatch.setattr(marks, "VOID_S", 30.0)
    may_switch = switcher._marks.begin_switch(live.version, writer.state("photos"))
    ending = threading.Thread(target=lambda: writer.finish("photos", live))
    ended = writer.state("photos").ended
    ending.start()
    while writer.state("photos").ended == ended:
        pass
    assert not may_switch()  # and so gives up
    ending.join(20)
    assert not ending.is_alive()


def test_of_two_switches_between_whose_looks_and_steps_the_other_comes_one_is_refused(
    qdrant: QdrantOverHTTP, stores: tuple[ServerStore, ServerStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores
    expected = one.state("photos")
    first, second = one.open_version("photos", OTHER_MODEL), other.create_staging("photos", MODEL)
    names = {first.version: "first", second.version: "second"}
    done: list[str] = []
    monkeypatch.setattr("imret.store.server.store.SETTLE_S", 1.0)

    def switch(store: ServerStore, version: str, identity: Identity) -> None:
        try:
            store.promote("photos", identity, version=version, expected=expected)
            done.append(names[version])
        except ChangedMeanwhile:
            pass

    late = threading.Thread(target=switch, args=(other, second.version, MODEL))

    def both_at_once(method: str, path: str) -> None:
        if is_alias_update(method, path) and threading.current_thread() is not late and not late.ident:
            late.start()  # checks the state while the first has all but switched

    qdrant.fail = both_at_once
    switch(one, first.version, OTHER_MODEL)
    late.join(30)
    version = one.version("photos")
    assert version is not None
    assert done == [names[version]]


def test_a_switch_leaves_a_version_that_another_program_fills(
    qdrant: QdrantOverHTTP, stores: tuple[ServerStore, ServerStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores
    filling = other.open_version("photos", OTHER_MODEL)
    beside = one.create_staging("photos", MODEL)
    one.promote("photos", MODEL, version=beside.version)
    assert filling.count() == 0
    assert one.staged_versions("photos") == [OTHER_MODEL]
    again = one.create_staging("photos", OTHER_MODEL)  # nor is its place taken
    assert again.version != filling.version
    again.close()
    filling.close()
    one.promote("photos", MODEL)
    assert one.staged_versions("photos") == []
    other.open_version("photos", OTHER_MODEL)  # and is killed
    monkeypatch.setattr(marks, "_FILLING_S", -1.0)
    one.promote("photos", MODEL)
    assert one.staged_versions("photos") == []
