"""Switches of an embedded store while another program, in a process of its own, fills a version."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from imret.store.embedded import layout
from imret.store.embedded.locks import LiveMeanwhile
from imret.store.embedded.store import EdgeStore
from tests import ROOT
from tests.fakes.edge_points import MODEL, OTHER_MODEL, store_points

FILLER = """
import sys
from imret.store.embedded.store import EdgeStore
from tests.fakes.edge_points import OTHER_MODEL, store_points
with EdgeStore(sys.argv[1]) as store:
    opened = store.open_version("photos", OTHER_MODEL)
    print("open", flush=True)
    sys.stdin.readline()
"""


def test_a_switch_leaves_a_version_that_another_program_fills(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db", lock_timeout_s=20) as store:
        store_points(store, range(3))
        filler = subprocess.Popen(
            [sys.executable, "-c", FILLER, str(tmp_path / "db")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        try:
            assert filler.stdout is not None
            assert filler.stdout.readline() == b"open\n"
            with closing(store.create_staging("photos", MODEL)) as beside:
                pass
            store.promote("photos", MODEL, version=beside.version)
            assert store.staged_versions("photos") == [OTHER_MODEL]
        finally:
            filler.communicate(b"\n")
        assert store.staged_versions("photos") == [OTHER_MODEL], "it is there to be resumed"
        store.promote("photos", MODEL)
        assert store.staged_versions("photos") == []


def test_a_version_that_became_live_while_its_lock_was_waited_for_is_not_emptied(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(3))
        live = store.version("photos")
        assert live is not None
        # As `create_staging` does it where the version was none that is live when it looked.
        with pytest.raises(LiveMeanwhile):
            store._open("photos", tmp_path / "db" / "photos" / live, MODEL, empty=True)
        with closing(store.open("photos")) as reader:
            assert reader.count() == 3


def test_the_note_of_the_live_version_of_an_older_imret_is_read(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(3))
        version = store.version("photos")
        layout.write_json(tmp_path / "db" / "photos" / "live.json", {"live": version, "retired": []})
        begun = store.state("photos")
        assert (begun.version, begun.switch, begun.ended) == (version, "", "")
        store.finish("photos", begun)
        assert store.state("photos").ended != ""
        assert store.promote("photos", MODEL, expected=store.state("photos")).version == version
