"""Memory is kept between steps where the C library lets us, and the most that was held is told."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from finetune.memory import peak_memory_mib
from tests import ROOT

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's mallopt")

FAULTS = """
import resource, sys
import torch
from finetune.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory() is True
before = 0
for number in range(22):
    if number == 12:  # until the cache of small pieces is full, glibc wedges one behind each block
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 << 20, dtype=torch.uint8).fill_(number)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@on_glibc
def test_kept_memory_is_used_again_without_a_page_fault() -> None:
    faults = {}
    for how in ("usual", "kept"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        faults[how] = int(done.stdout)
    assert faults["kept"] < 1000
    assert faults["usual"] > 2 * faults["kept"] + 100  # huge pages may leave 32 faults a block


PEAK = """
import sys
import numpy as np
import torch
from finetune.memory import peak_memory_mib
before = peak_memory_mib(torch.device("cpu"))
held = np.ones(200 << 20, dtype=np.uint8)
during = peak_memory_mib(torch.device("cpu"))
del held
print(before, during, peak_memory_mib(torch.device("cpu")))
"""


def test_the_peak_of_a_cpu_is_the_most_that_the_process_was() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    before, during, after = (int(word) for word in done.stdout.split())
    assert 20 < before < 4000
    assert 195 <= during - before < 260
    # Not less once the memory is freed, but for what Linux counts roughly: each processor adds up its own.
    assert after >= during - 2


def test_the_peak_is_told_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> str:
        raise FileNotFoundError

    own = peak_memory_mib(torch.device("cpu"))
    monkeypatch.setattr("finetune.memory.Path.read_text", gone)
    assert peak_memory_mib(torch.device("cpu")) >= own * 0.9


def test_a_device_that_does_not_say_has_no_peak() -> None:
    assert peak_memory_mib(torch.device("mps")) == 0
