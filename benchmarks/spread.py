"""What Ray costs an ingest, how it grows with actors, and what a second run of unchanged shards asks for.

    python benchmarks/spread.py [--pictures 10000] [--rounds 3] [--results FILE.md]

Linux. All of it on this machine, into a Qdrant that is this repository's fake: in memory, over HTTP, in a
process of its own. Figures are ratios:

- cost: processor seconds of `imret ingest SHARDS --ray local` over those of `imret ingest SHARDS`, whole
  processes with all that they start (Ray's own, too), in turns, at a quarter of the pictures and at all of
  them; the two sizes also give what one more picture costs without what only the start does.
- growth: pictures a second of 2, 4 and 8 actors over those of 1, where the encoder is replaced by a sleep, so
  that what is measured is who waits for whom and not the cores of this machine. Counted while all actors have
  work.
- second run: requests, and bytes sent with them, for 1,000 shards that the ledger knows, whose files hold
  nothing but zeros now: a shard that is opened fails.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
from machine import cores
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from imret.settings import __version__  # noqa: E402
from imret.store import open_store  # noqa: E402
from imret.store.ledger import UnitLine  # noqa: E402
from ingest.shards import ShardSource  # noqa: E402
from tests.fakes.models import write_random_model  # noqa: E402
from tests.fakes.qdrant_over_http import QdrantOverHTTP  # noqa: E402

IMRET = (sys.executable, "-m", "imret")
SHARDS = 8
ACTORS = (1, 2, 4, 8)
SLEEP_S = 0.1  # of the encoder, for each picture
UNIT, UNITS_EACH = 8, 12  # of the growth: pictures of a unit, units for each actor
UNCHANGED = 1_000
_LOOK_S = 0.1

# Put first into PYTHONPATH: in Ray's workers a picture is encoded by waiting.
SLEEPY = f"""
import sys
if any("default_worker" in word for word in sys.orig_argv):
    import time
    import numpy as np
    from imret.models.lazy_encoder import LazyEncoder

    def encode_pixels(self, pixels, *, batch_size=32):
        time.sleep({SLEEP_S} * len(pixels))
        rows = np.random.default_rng().normal(size=(len(pixels), self.dim)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    LazyEncoder.encode_pixels = encode_pixels
    LazyEncoder.load_image_tower = lambda self: None
    LazyEncoder.device, LazyEncoder.calls_at_once = "cpu", 1
"""


@dataclass
class Cost:
    """Processor seconds of whole runs, by way ("alone", "ray") and number of pictures."""

    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def ratios(self, n: int) -> list[float]:
        """Return what Ray costs at so many pictures, by round."""
        return [r / a for r, a in zip(self.seconds["ray", n], self.seconds["alone", n], strict=True)]

    def ratios_of_one_more(self, few: int, n: int) -> list[float]:
        """Return what it costs by picture, without what the start of a run does."""
        more = {way: np.subtract(self.seconds[way, n], self.seconds[way, few]) for way in ("alone", "ray")}
        return list(map(float, more["ray"] / more["alone"]))


class Events:
    """When units begin and end, by what the ledger is asked and told."""

    def __init__(self) -> None:
        self._asked: list[float] = []
        self._told: list[float] = []

    def note(self, method: str, path: str) -> None:
        """Take note of a request."""
        if path.endswith(".units/points"):
            (self._asked if method == "POST" else self._told).append(time.perf_counter())

    def rate(self, actors: int) -> float:
        """Return pictures a second while all actors had work: from when each has begun to the last begin."""
        begins = self._asked[1:]  # the first look is the driver's, at all units
        start, end = begins[actors - 1], begins[-1]
        told = sum(start < at <= end for at in self._told)
        return UNIT * (told - sum(start < at <= end for at in begins)) / (end - start)


def write_shards(folder: Path, n_shards: int, n: int) -> Path:
    """Write n drawn JPEGs of 25 kB or so, no two alike, into tar files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for shard in range(n_shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for i in range(n // n_shards):
                coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                out = io.BytesIO()
                Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC).save(
                    out, "JPEG", quality=92
                )
                member = tarfile.TarInfo(f"{shard:05}{i:04}.jpg")
                member.size = out.tell()
                out.seek(0)
                tar.addfile(member, out)
    return folder


def serve() -> None:
    """Be the Qdrant of a measurement, in a process of its own."""
    with QdrantOverHTTP() as qdrant:
        print(qdrant.url, flush=True)
        sys.stdin.read()


def measure_cost(work: Path, n: int, rounds: int) -> Cost:
    """Return what both ways take at two sizes, in turns."""
    model = write_random_model(work / "model", seed=0)
    cost = Cost()
    folders = {size: write_shards(work / f"shards-{size}", SHARDS, size) for size in (n // 4, n)}
    env = {**os.environ, "IMRET_HOME": str(work / "home"), "PYTHONPATH": str(ROOT)}
    for _ in range(rounds):
        for size, folder in folders.items():
            for way, options in (("alone", []), ("ray", ["--ray", "local"])):
                code = "import spread; spread.serve()"
                path = {**env, "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])}
                server = subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-c", code],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=path,
                )
                assert server.stdout is not None
                url = server.stdout.readline().strip()
                asked = ["--db", url, "--model", str(model), "--device", "cpu", *options]
                seconds = worked([*IMRET, "ingest", str(folder), *asked], env)
                server.kill()
                server.wait()
                cost.seconds.setdefault((way, size), []).append(seconds)
                print(f"{way} {size}: {seconds:.1f} s of processor time", file=sys.stderr)
    return cost


def worked(command: list[str], env: dict[str, str]) -> float:
    """Run a command; return the processor seconds of it and all that it started, however far removed.

    They are known by a mark in their environment, and looked at some times a second until none is left: Ray
    has its processes reaped by the kernel, which then adds what they took to nobody's account.
    """
    mark = f"IMRET_BENCHMARK={secrets.token_hex(8)}"
    name, _, value = mark.partition("=")
    seconds: dict[int, float] = {}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**env, name: value}
    ) as process:
        known: dict[int, bool] = {}
        while _look(mark.encode(), known, seconds) or process.poll() is None:
            time.sleep(_LOOK_S)
        assert process.stderr is not None
        if process.returncode:
            raise SystemExit(process.stderr.read())
    return sum(seconds.values())


def _look(mark: bytes, known: dict[int, bool], seconds: dict[int, float]) -> bool:
    """Note the seconds of each marked process up to now; return whether there is one."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    n_alive = 0
    for pid in pids:
        try:
            if pid not in known:
                known[pid] = mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if known[pid]:
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                seconds[pid] = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
                n_alive += stat[0] != "Z"
        except OSError:  # it has just ended
            continue
    return n_alive > 0


def measure_growth(work: Path, rounds: int) -> dict[int, list[float]]:
    """Return pictures a second by number of actors."""
    import ray

    from imret.models.lazy_encoder import LazyEncoder
    from ingest.pipeline import ingest
    from ingest.spread import Spreading
    from ingest.units import ByUnits

    hook = work / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(SLEEPY)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(hook), str(ROOT)])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    encoder = LazyEncoder(str(work / "model"), device="cpu", precision="fp32")
    running = {"device": "cpu", "precision": "fp32", "check_content": False}
    running |= {"batch_size": 8, "workers": 1, "max_pixels": None}
    rates: dict[int, list[float]] = {}
    ray.init(address="local", num_cpus=max(ACTORS), include_dashboard=False, log_to_driver=False)
    for actors in ACTORS * rounds:
        shards = work / f"slept-{actors}"
        if not shards.exists():
            write_shards(shards, UNITS_EACH * actors, UNITS_EACH * actors * UNIT)
        with QdrantOverHTTP() as qdrant, open_store(qdrant.url) as store:
            events = Events()
            qdrant.fail = events.note
            with Spreading(store, "local", actors=actors, **running) as spreading:
                report = ingest(
                    store,
                    [ShardSource(str(shards))],
                    encoder=encoder,
                    by_units=ByUnits(store, hands=spreading),
                )
            assert report.added == UNITS_EACH * actors * UNIT, report.as_dict()
            rates.setdefault(actors, []).append(events.rate(actors))
            print(f"{actors} actors: {rates[actors][-1]:.1f} pictures/s", file=sys.stderr)
    ray.shutdown()
    return rates


def measure_second_run(work: Path) -> tuple[int, int]:
    """Return the requests of a run over shards that the ledger knows, and the bytes sent with them."""
    from imret.models.lazy_encoder import LazyEncoder
    from ingest.pipeline import ingest

    shards = work / "unchanged"
    shards.mkdir()
    write_shards(work / "one", 1, 1)
    (work / "one" / "00000.tar").rename(shards / "00000.tar")
    encoder = LazyEncoder(str(work / "model"), device="cpu", precision="fp32")
    source = ShardSource(str(shards))
    with QdrantOverHTTP() as qdrant, open_store(qdrant.url) as store:
        ingest(store, [source], encoder=encoder)
        for i in range(UNCHANGED):
            (shards / f"{i:05}.tar").write_bytes(bytes(10_240))
        with closing(store.open("photos")) as opened:
            ledger = store.ledger("photos", opened.version)
        done = [
            UnitLine(str(shards), unit.name, unit.digest, imret=__version__, attempted=unit.digest)
            for unit in source.units()
        ]
        ledger.put(done)
        qdrant.requests.clear()
        sent: list[int] = []
        qdrant.fail = lambda method, path: sent.append(qdrant.length)
        report = ingest(store, [source], encoder=encoder)
        assert report.units == {"done before": UNCHANGED}, report.units
        assert not report.skipped
        assert not report.failed_units
        return len(qdrant.requests), sum(sent)


def spread_of(values: list[float]) -> str:
    """Return the median, and the least and the most."""
    if len(values) == 1:
        return f"{values[0]:.2f} (one round)"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report_of(n: int, cost: Cost, rates: dict[int, list[float]], second: tuple[int, int]) -> str:
    """Return the figures as Markdown."""
    few = n // 4
    lines = [
        f"# Spread over Ray: {date.today()}",
        "",
        f"{cores()}, Python {platform.python_version()}; median (least to most) of the rounds.",
        "",
        "| question | figure |",
        "|---|---|",
        f"| processor time with `--ray local` over without, {n:,} pictures | {spread_of(cost.ratios(n))} |",
        f"| the same, {few:,} pictures | {spread_of(cost.ratios(few))} |",
        f"| the same for one more picture | {spread_of(cost.ratios_of_one_more(few, n))} |",
    ]
    for actors in ACTORS[1:]:
        growth = [many / one for many, one in zip(rates[actors], rates[1], strict=True)]
        lines.append(f"| pictures a second, {actors} actors over 1, sleeping encoder | {spread_of(growth)} |")
    requests, sent = second
    lines += [
        f"| requests of a second run over {UNCHANGED:,} unchanged shards | {requests}, {sent:,} bytes sent |",
        "| shards opened by it | 0 |",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cost = measure_cost(work, options.pictures, options.rounds)
        second = measure_second_run(work)
        rates = measure_growth(work, 1)
    report = report_of(options.pictures, cost, rates, second)
    print(report)
    if options.results is not None:
        options.results.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
