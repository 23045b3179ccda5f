"""Commands of imret as real processes, several at a time, killed at chosen moments.

Imports once, then forks a process for each command: each is a real process with a real `kill -9`, without
paying for the import of torch a thousand times. Nothing has run in the parent, so the fork is clean.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tests import ROOT

_DRIVER = """
import json, os, signal, subprocess, sys, time
import torch, open_clip, pyarrow.parquet, tqdm, qdrant_client
import imret.cli.collections, imret.cli.search, imret.cli.sources, imret.models.encoder, imret.output.deliver
import imret.retrieval.search, imret.store.parquet, imret.store.server.store, ingest.cli, ingest.pipeline
from imret.cli.main import main

torch.set_num_threads(1)


def run(arguments, out, after_s):
    os.setsid()
    streams = [os.open(os.devnull, os.O_RDONLY)]
    streams += [os.open(out + end, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for end in (".out", ".err")]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    time.sleep(after_s)
    sys.argv = ["imret", *arguments]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
    os._exit(0)


def descendants(pid):
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
    parents = [tuple(map(int, line.split())) for line in table.splitlines()]
    found = [pid]
    for one in found:
        found += [child for child, parent in parents if parent == one]
    return found


def kill(pid, whom):
    for one in descendants(pid) if whom == "all" else [pid]:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            pass


for line in sys.stdin:
    jobs = json.loads(line)
    started = time.monotonic()
    for job in jobs:
        job["pid"] = os.fork()
        if not job["pid"]:
            run(job["arguments"], job["out"], job["after_s"])
    running = list(jobs)
    while running:
        passed = time.monotonic() - started
        for job in list(running):
            pid, status = os.waitpid(job["pid"], os.WNOHANG)
            if pid:
                job["code"], job["seconds"] = os.waitstatus_to_exitcode(status), passed - job["after_s"]
                running.remove(job)
            elif job["kill_s"] is not None and passed >= job["after_s"] + job["kill_s"]:
                kill(job["pid"], job["kill"])
                job["kill_s"] = None
            elif passed >= job["after_s"] + job["timeout_s"]:
                kill(job["pid"], "all")
                job["timeout_s"] = float("inf")
                job["timed_out"] = True
        time.sleep(0.002)
    answer = [[job["code"], job["seconds"], job.get("timed_out", False)] for job in jobs]
    print(json.dumps(answer), file=sys.__stdout__, flush=True)
"""


@dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes:
        arguments: What is typed after `imret`.
        after_s: When it starts, from the start of all.
        kill_s: How long after its start it is killed with SIGKILL; None for not at all.
        kill: The command alone, as an impatient user or the kernel does; or all of its processes at once, as
            a machine that stops does.
        timeout_s: After this long it hangs: it is killed, and so reported.
    """

    arguments: Sequence[str]
    after_s: float = 0.0
    kill_s: float | None = None
    kill: Literal["program", "all"] = "program"
    timeout_s: float = 120.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        job: It.
        code: Its exit code; -9 where it was killed.
        seconds: How long it took.
        hung: Whether it ran into its time limit.
        out: What it wrote to standard output.
        err: What it wrote to standard error.
    """

    job: Job
    code: int
    seconds: float
    hung: bool
    out: str
    err: str


class Processes:
    """Runs commands; a context manager, for its helper process.

    Args:
        folder: For what the commands print.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._driver = subprocess.Popen(
            [sys.executable, "-c", _DRIVER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
            env={**os.environ, "IMRET_HOME": str(folder / "home"), "COLUMNS": "200"},
        )  # fmt: skip

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._driver.kill()
        self._driver.communicate()

    def run(self, *jobs: Job) -> list[Ended]:
        """Run commands at the same time; returns when all have ended."""
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        outs = [str(self._folder / f"job{number}") for number in range(len(jobs))]
        asked = [{**asdict(job), "out": out} for job, out in zip(jobs, outs, strict=True)]
        self._driver.stdin.write(json.dumps(asked) + "\n")
        self._driver.stdin.flush()
        answers = json.loads(self._driver.stdout.readline())
        return [
            Ended(job, code, seconds, hung, Path(out + ".out").read_text(), Path(out + ".err").read_text())
            for job, out, (code, seconds, hung) in zip(jobs, outs, answers, strict=True)
        ]
