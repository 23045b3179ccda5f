"""Models that are not here: what is said before a download, and within seconds where there can be none."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from imret.models.choices import CHOICES
from imret.models.resolve import resolve_model
from tests import ROOT
from tests.fakes.hub import Hub, put_into_cache, running_hub

WEIGHTS = "open_clip_model.safetensors"

RESOLVE = """
import sys
from imret.errors import ModelError
from imret.models.download import advice_for
from imret.models.resolve import resolve_model
for name in sys.argv[1:]:
    try:
        files = resolve_model(name, notify=lambda message: print("notice:", message), advice=advice_for())
        print("found:", files.model_id, files.fingerprint)
    except ModelError as error:
        print("error:", error)
print("torch" if "torch" in sys.modules else "no torch")
"""


@pytest.fixture
def hub(random_model: Path) -> Iterator[Hub]:
    with running_hub(Hub(random_model)) as running:
        yield running


def resolve_elsewhere(*names: str, **environment: str) -> tuple[str, float]:
    """Resolve in another process: see `run_elsewhere`."""
    return run_elsewhere(RESOLVE, *names, **environment)


def run_elsewhere(code: str, *arguments: str, **environment: str) -> tuple[str, float]:
    """Run Python in another process, for huggingface_hub reads its environment when it is imported.

    Returns:
        All that it printed, and how many seconds it took.
    """
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **quiet, **environment},
    )
    return done.stdout, time.monotonic() - started


def test_a_hub_model_is_downloaded_once_and_then_needs_no_network(
    hub: Hub, random_model: Path, tmp_path: Path
) -> None:
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.address}
    fingerprint = resolve_model(random_model).fingerprint
    first = resolve_elsewhere("hf-hub:org/repo", **home)[0].splitlines()
    size = (random_model / WEIGHTS).stat().st_size / 1e6
    assert first[0] == f"notice: Downloading hf-hub:org/repo: {size:.1f} MB to {tmp_path}/hf/hub, once"
    assert first[1] == f"found: hf-hub:org/repo {fingerprint}"
    assert any("GET" in request and WEIGHTS in request for request in hub.requests)
    hub.requests.clear()
    again = resolve_elsewhere("hf-hub:org/repo", "hf-hub:org/other", HF_HUB_OFFLINE="1", **home)[0]
    assert again.splitlines()[0] == first[1]
    assert hub.requests == []
    # What is not in the cache: the error says so, where it looked, and how to go on.
    assert "error: Cannot get model 'hf-hub:org/other': HF_HUB_OFFLINE is set" in again
    assert str(tmp_path / "hf" / "hub") in again
    assert "HF_HOME" in again
    assert "--model PATH" in again


def test_before_a_download_its_size_its_time_and_the_smaller_choice_are_told(
    hub: Hub, tmp_path: Path
) -> None:
    hub.linked_size = 3_944_000_000
    told, _ = resolve_elsewhere(
        "huge", HF_HOME=str(tmp_path), HF_ENDPOINT=hub.address, HF_HUB_DISABLE_XET="1"
    )
    assert re.match(
        rf"notice: Downloading ViT-H-14/laion2b_s32b_b79k: 3\.9 GB to {tmp_path}/hub, once; on this machine "
        r"about [\d.,]+ pictures/s: 1,000 take about \d+ (second|minute|hour|day)s?\. "
        r"Smaller: --model base \(0\.6 GB, about [\d.,]+ pictures/s\)\n",
        told,
    )


def no_dns(tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": "http://no-such-host.invalid"}


def nobody_listens(tmp_path: Path) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"HF_ENDPOINT": f"http://127.0.0.1:{free.getsockname()[1]}"}


@pytest.mark.parametrize("without", [no_dns, nobody_listens])
@pytest.mark.parametrize("model", ["huge", "hf-hub:org/repo"])
def test_without_a_network_one_message_comes_within_seconds_with_how_to_bring_the_model_here(
    without: object, model: str, tmp_path: Path
) -> None:
    assert callable(without)
    told, seconds = resolve_elsewhere(model, HF_HOME=str(tmp_path / "hf"), **without(tmp_path))
    assert told.startswith("error: Cannot get model '")
    assert told.endswith("\nno torch\n")
    lines = told.splitlines()[:-1]
    assert "cannot be reached" in lines[0]
    assert "Retrying" not in told
    assert len(lines) == 6
    cache = tmp_path / "hf" / "hub"
    assert any(f"tar -C {cache} -xf model.tar" in line for line in lines)
    assert any("hf download " in line and WEIGHTS in line for line in lines)
    assert seconds < 10  # with a busy machine beside it; of a person's, one


@pytest.mark.parametrize("by_proxy", [False, True])
def test_a_network_that_swallows_what_it_is_sent_is_given_up_on_within_seconds(
    by_proxy: bool, tmp_path: Path
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)  # and never accepts
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        way = {"HTTPS_PROXY": address, "NO_PROXY": ""} if by_proxy else {"HF_ENDPOINT": address}
        told, seconds = resolve_elsewhere("small", HF_HOME=str(tmp_path / "hf"), **way)
    assert "answer" in told.splitlines()[0]
    assert "hf download" in told
    assert seconds < 15


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "RepoNotFound", "has no repository org/repo, or only for those who show a token (HF_TOKEN)"),
        (401, "", "has no repository org/repo, or only for those who show a token (HF_TOKEN)"),
        (401, "GatedRepo", "its authors let in only who has asked them"),
        (403, "", "its authors let in only who has asked them"),
        (503, "", "is out of order or too busy (it answers 503)"),
        (429, "", "is out of order or too busy (it answers 429)"),
    ],
)
def test_what_the_hub_refuses_is_told_in_words_and_at_once(
    hub: Hub, status: int, code: str, says: str, tmp_path: Path
) -> None:
    hub.status, hub.code = status, code
    told, seconds = resolve_elsewhere("hf-hub:org/repo", HF_HOME=str(tmp_path), HF_ENDPOINT=hub.address)
    assert told.startswith("error: Cannot get model 'hf-hub:org/repo': ")
    assert says in told.splitlines()[0]
    assert len(hub.requests) == 1
    assert seconds < 10


def test_a_repository_in_another_layout_is_told_so(hub: Hub, random_model: Path, tmp_path: Path) -> None:
    hub.folder = tmp_path / "other"
    hub.folder.mkdir()
    told, _ = resolve_elsewhere("hf-hub:org/repo", HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT=hub.address)
    assert "has no file open_clip_config.json, so it is not one in open_clip's layout" in told


@pytest.fixture
def large_model(random_model: Path, tmp_path: Path) -> Path:
    """A model whose weights are more than huggingface_hub writes at a time, which is 10 MB."""
    folder = tmp_path / "large"
    shutil.copytree(random_model, folder)
    tensors = load_file(random_model / WEIGHTS)
    save_file({**tensors, "padding": torch.zeros(6_000_000)}, folder / WEIGHTS)
    return folder


def test_a_download_that_is_cut_off_is_gone_on_from(hub: Hub, large_model: Path, tmp_path: Path) -> None:
    hub.folder, hub.cut_after = large_model, [15_000_000]
    told, _ = resolve_elsewhere("hf-hub:org/repo", HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT=hub.address)
    assert told.splitlines()[1] == f"found: hf-hub:org/repo {resolve_model(large_model).fingerprint}"
    assert hub.ranges == ["bytes=10485760-"]


def test_a_download_that_nothing_can_go_on_from_is_told_and_begins_again(
    hub: Hub, large_model: Path, tmp_path: Path
) -> None:
    hub.folder, hub.cut_after = large_model, [15_000_000, *[0] * 20]
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.address}
    told, _ = resolve_elsewhere("hf-hub:org/repo", **home)
    assert "error: The download of model 'hf-hub:org/repo' broke off: " in told
    assert "run the same command when the network is better" in told
    assert "Retrying" not in told
    hub.cut_after = []
    again, _ = resolve_elsewhere("hf-hub:org/repo", **home)
    assert f"found: hf-hub:org/repo {resolve_model(large_model).fingerprint}" in again


def test_a_disk_that_is_too_full_is_told_before_anything_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.linked_size = 10**15
    told, _ = resolve_elsewhere("large", HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT=hub.address)
    free = shutil.disk_usage(tmp_path).free
    assert told.startswith(
        f"error: Cannot download model '{CHOICES['large'].model}': it takes 1000000.0 GB in "
        f"'{tmp_path}/hf/hub', where "
    )
    assert f"{free / 1e9:.0f}"[:-1] in told
    assert "HF_HOME=" in told
    assert "Smaller: --model base (0.6 GB)" in told
    assert not any(request.startswith("GET") for request in hub.requests)


def test_the_commands_of_the_message_bring_a_model_from_another_machine(
    random_model: Path, tmp_path: Path
) -> None:
    there, here = tmp_path / "there" / "hub", tmp_path / "here" / "hub"
    put_into_cache(there, CHOICES["small"].repo, random_model)
    told, _ = resolve_elsewhere("small", HF_HOME=str(here.parent), HF_HUB_OFFLINE="1")
    lines = dict(re.findall(r"^  (there|here):  +(\S.*)$", told, re.MULTILINE))
    assert lines["there"].startswith("tar -C ~/.cache/huggingface/hub -cf model.tar ")
    lines["there"] = lines["there"].replace("~/.cache/huggingface/hub", str(there))
    for side in ("there", "here"):
        subprocess.run(lines[side], shell=True, check=True, cwd=tmp_path)
    told, _ = resolve_elsewhere("small", HF_HOME=str(here.parent), HF_HUB_OFFLINE="1")
    assert told.startswith(f"found: {CHOICES['small'].model} ")


LOAD_TOKENIZER = """
import sys
from imret.errors import ModelError
from imret.models.tokenizer import load_tokenizer
from open_clip import get_model_config
arch = "ViT-B-16-SigLIP-i18n-256"
try:
    tokenizer = load_tokenizer(arch, get_model_config(arch)["text_cfg"], model_id="multilingual")
    print("tokens:", tuple(tokenizer(["a mushroom"]).shape))
except ModelError as error:
    print("error:", error)
"""


def test_a_tokenizer_of_the_hub_is_read_from_the_cache_and_told_of_within_seconds_without_a_network(
    tmp_path: Path,
) -> None:
    pytest.importorskip("transformers")
    from tests.fakes.model_families import unigram_tokenizer

    home = {"HF_HOME": str(tmp_path / "hf"), **nobody_listens(tmp_path)}
    told, seconds = run_elsewhere(LOAD_TOKENIZER, **home)
    assert told.startswith("error: Cannot get model 'multilingual': ")
    repo = CHOICES["multilingual"].repo
    assert f"hf download {repo} tokenizer_config.json tokenizer.json special_tokens_map.json\n" in told
    assert seconds < 30  # most of it is importing open_clip
    unigram_tokenizer().save_pretrained(tmp_path / "tokenizer")
    put_into_cache(tmp_path / "hf" / "hub", CHOICES["multilingual"].repo, tmp_path / "tokenizer")
    told, seconds = run_elsewhere(LOAD_TOKENIZER, **home)
    assert told == "tokens: (1, 64)\n"
    assert seconds < 30
