"""Fixtures that more than one test file leans on."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests import SHARED_DATA
from tests.fakes.models import share_known_models, write_full_size, write_random_model

# A shell that starts the tests in the background has them ignore Ctrl-C, nohup the end of the terminal; what
# they start would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _home_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep fixtures that several tests share away from the user's own store, cache and settings."""
    home = tmp_path_factory.mktemp("imret-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMRET_HOME", str(home))
        yield


@pytest.fixture(autouse=True)
def _own_imret_home(
    _home_of_the_session: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give every test a store, cache and settings of its own, of a user who chose the fixtures' models."""
    home = share_known_models(tmp_path_factory.mktemp("imret-home"))
    monkeypatch.setenv("IMRET_HOME", str(home))
    for name in ("IMRET_DB", "IMRET_SERVER", "QDRANT_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos and small real models beside the checkout; absent on most machines."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real photos and models of ../shared/data, which are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real CLIP with random weights, small enough for milliseconds, in open_clip's folder layout."""
    return write_random_model(tmp_path_factory.mktemp("models") / "random", seed=0)


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The default architecture at full size, ViT-H/14, with 986 M random weights; 4 GB on disk."""
    folder = write_full_size(tmp_path_factory.mktemp("full-size"))
    yield folder
    (
        folder / "open_clip_model.safetensors"
    ).unlink()  # pytest keeps the folders of three runs; not 4 GB of each


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """End the programs that a failed test left running, so that no later test is blamed for them."""
    started: list[subprocess.Popen[Any]] = []
    begin = subprocess.Popen.__init__

    def noted(self: subprocess.Popen[Any], *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        started.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", noted)
        try:
            yield
        except BaseException:
            for process in started:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout, process.stderr):
                    if pipe is not None:
                        with suppress(OSError):  # what was not written yet has no reader any more
                            pipe.close()
            raise
