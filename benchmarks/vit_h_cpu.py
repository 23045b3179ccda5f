"""ViT-H/14 on a CPU: imret beside stock open_clip, with the same weights in the same run.

    python benchmarks/vit_h_cpu.py [--model FOLDER] [--rounds 5] [--batch 8] [--results FILE]

Image encode, text encode at 9 tokens, and a first search in a process of its own (`imret search` beside the
search of benchmarks/stock.py), model in the page cache. Without --model, 986 M random weights are written to
a temporary folder (4 GB) and deleted at the end. Both contenders take turns; processor time is given beside
wall time, because others may use the machine. Needs 9 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from machine import cores

HERE = Path(__file__).resolve().parent
GFLOP = 334.6  # of one picture through the image tower, two for each weight and position; attention included
QUERY = "a red mushroom in the wet grass"  # 9 tokens with begin and end

# What `imret search` does, with its share of the time; the imports come first here, and are the same. What
# the store does while others work is in no share.
SHARES = """
import json, sys, time
begun = time.perf_counter()
import imret.cli.main, imret.cli.search, imret.retrieval.search, imret.retrieval.query_vector
import imret.models.lazy_encoder, imret.models.fast.text_numpy, imret.store.embedded.store
spent = {"import": time.perf_counter() - begun}
def timed(name, where, key):
    inner = getattr(where, key)
    def outer(*args, **options):
        start = time.perf_counter()
        try:
            return inner(*args, **options)
        finally:
            spent[name] = spent.get(name, 0) + time.perf_counter() - start
    setattr(where, key, outer)
timed("load", imret.models.fast.text_numpy, "open_text_tower")
timed("encode", imret.models.fast.text_numpy.NumpyTextTower, "encode_texts")
start = time.perf_counter()
try:
    imret.cli.main.main()
finally:
    spent["search"] = time.perf_counter() - start - spent["load"] - spent["encode"]
    assert "torch" not in sys.modules, "the text was encoded by torch, and not by what is timed here"
    print(json.dumps(spent), file=sys.stderr)
"""


def main() -> None:
    """Measure and print, as a page of Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a model folder of ViT-H/14")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="pictures at once")
    parser.add_argument("--results", type=Path, help="write the page there, too")
    parser.add_argument("--encode-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.encode_only:
        print(json.dumps(encode(str(arguments.model), arguments.rounds, arguments.batch)))
        return
    sys.path.insert(0, str(HERE.parent))
    from tests.fakes.models import write_full_size
    from tests.fakes.pictures import draw_picture

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = arguments.model
        if model is None:
            (work / "model").mkdir()
            model = write_full_size(work / "model")
        for seed in range(4):
            draw_picture(work / "photos" / "fungi" / f"{seed}.jpg", seed=seed, size=(500, 375))
        page = report(model.resolve(), work, arguments.rounds, arguments.batch)
    print(page)
    if arguments.results is not None:
        arguments.results.write_text(page + "\n")


def report(model: Path, work: Path, rounds: int, batch: int) -> str:
    """Run all parts and return the page."""
    own = ["--encode-only", "--model", str(model), "--rounds", str(rounds), "--batch", str(batch)]
    done = subprocess.run([sys.executable, __file__, *own], stdout=subprocess.PIPE, text=True, check=True)
    taken = json.loads(done.stdout)
    searched = searches(model, work, rounds)
    import torch

    rows = [
        ratio(f"image encode, batch of {batch}", "pictures/s", taken["image"], 3, per=batch),
        ratio("text encode, 9 tokens, warm", "ms", taken["text"], 5),
        ratio("the same in fp32", "ms", {**taken["text"], "imret": taken["text"]["imret fp32"]}, 5),
        ratio("cold search, whole processes", "s", searched, 6),
    ]
    shares = [
        f"| {name} | "
        + " | ".join(
            f"{shown(searched['shares'][name], key)}" for key in ("import", "load", "encode", "search")
        )
        + " |"
        for name in ("imret", "stock")
    ]
    peak = taken["peak"]

    def reached(who: str, dtype: str) -> float:
        return GFLOP * batch / statistics.median(wall for wall, _ in taken["image"][who]) / peak[dtype]

    cosines = ", ".join(f"{name} {value:.6f}" for name, value in taken["cosines"].items())
    return "\n".join(
        [
            "# ViT-H/14 on a CPU",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, {cores()}, Python {platform.python_version()}, "
            f"torch {torch.__version__}, {taken['threads']} threads, {taken['precision']} beside fp32; 986 M "
            f"random weights. `python benchmarks/vit_h_cpu.py --rounds {rounds} --batch {batch}`. Medians of "
            f"{rounds} rounds in which both take turns, least and most; load average {taken['load']:.1f} at "
            f"the end of the encodes, {os.getloadavg()[0]:.1f} at the end of the searches.",
            "",
            "| | unit | stock open_clip, fp32 | imret | ratio, wall | ratio, processor time | goal |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Least cosine of imret to stock: {cosines}.",
            "",
            f"The floor: a product of the MLP's shapes alone reaches {peak['float32']:.0f} GFLOP/s in fp32 "
            f"and {peak['bfloat16']:.0f} in bf16, a ratio of {peak['bfloat16'] / peak['float32']:.1f}. At "
            f"{GFLOP} GFLOP a picture the stock script is at {reached('stock', 'float32'):.0%} of the first, "
            f"imret at {reached('imret', 'bfloat16'):.0%} of the second.",
            "",
            f"Shares of a cold search for {QUERY!r}, seconds:",
            "",
            "| | import | load | encode | search and the rest |",
            "|---|---|---|---|---|",
            *shares,
        ]
    )


def ratio(name: str, unit: str, times: dict[str, list[list[float]]], goal: float, *, per: int = 0) -> str:
    """Return a row of the table; times are [wall, processor] of each round."""
    cells, medians = [], []
    for who in ("stock", "imret"):
        walls = [wall for wall, _ in times[who]]
        medians.append([statistics.median(column) for column in zip(*times[who], strict=True)])
        values = sorted(per / wall if per else wall * (1000 if unit == "ms" else 1) for wall in walls)
        cells.append(f"{statistics.median(values):.3g} ({values[0]:.3g} to {values[-1]:.3g})")
    wall, worked = (stock / ours for stock, ours in zip(*medians, strict=True))
    return f"| {name} | {unit} | {' | '.join(cells)} | {wall:.1f} | {worked:.1f} | {goal} |"


def shown(runs: list[dict[str, float]], key: str) -> str:
    """Return the median of one share."""
    return f"{statistics.median(run[key] for run in runs):.2f}"


def clocked(run: Callable[[], Any]) -> list[float]:
    """Return [wall, processor] seconds of this process."""
    start, worked = time.perf_counter(), time.process_time()
    run()
    return [time.perf_counter() - start, time.process_time() - worked]


def encode(model: str, rounds: int, batch: int) -> dict[str, Any]:
    """Measure both towers in this process, stock and imret in turns."""
    import numpy as np
    import stock
    import torch

    from imret.models.encoder import Encoder

    plain, _, tokenizer = stock.load(model)
    encoder, exact = Encoder(model, device="cpu"), Encoder(model, device="cpu", precision="fp32")
    shape = (batch, *encoder.preprocess.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean, std = (np.array(values, np.float32) for values in (encoder.preprocess.mean, encoder.preprocess.std))
    inputs = torch.from_numpy((pixels / np.float32(255) - mean) / std).permute(0, 3, 1, 2).contiguous()
    contenders: dict[str, dict[str, Callable[[], Any]]] = {
        "text": {
            "stock": lambda: stock.encode_text(plain, tokenizer, QUERY)[None],
            "imret": lambda: encoder.encode_texts([QUERY]),
            "imret fp32": lambda: exact.encode_texts([QUERY]),
        },
        "image": {
            "stock": lambda: next(stock.encoded(plain, [(inputs, [""])]))[0],
            "imret": lambda: encoder.encode_pixels(pixels, batch_size=batch),
        },
    }
    taken: dict[str, Any] = {
        "cosines": {},
        "threads": torch.get_num_threads(),
        "precision": encoder.precision,
    }
    for kind, runs in contenders.items():
        rows = {who: run() for who, run in runs.items()}  # also warms up: loads, and compiles kernels
        for who in rows:
            if who != "stock":
                taken["cosines"][f"{kind} ({who})"] = float((rows[who] * rows["stock"]).sum(axis=1).min())
        taken[kind] = {who: [] for who in runs}
        for _ in range(rounds):
            for who, run in runs.items():
                for _ in range(4 if kind == "text" else 1):
                    taken[kind][who].append(clocked(run))
    return {**taken, "peak": peak_gflops(batch, rounds), "load": os.getloadavg()[0]}


def peak_gflops(batch: int, rounds: int) -> dict[str, float]:
    """Return the GFLOP/s, medians, of the first product of ViT-H/14's MLP alone, by data type."""
    import torch

    rows, width, inner = 257 * batch, 1280, 5120
    speeds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(4 * rounds):
        for name, values in speeds.items():
            dtype = getattr(torch, name)
            x, weight = torch.ones(rows, width, dtype=dtype), torch.ones(inner, width, dtype=dtype)
            with torch.inference_mode():
                wall, _ = clocked(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight))
            values.append(2e-9 * rows * width * inner / wall)
    return {name: statistics.median(values) for name, values in speeds.items()}


def searches(model: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Measure whole processes that search for a new text, stock and imret in turns."""
    env = {**os.environ, "IMRET_HOME": str(work / "home"), "IMRET_QUERY_CACHE": "off"}
    imret = [sys.executable, "-m", "imret"]
    stock = [sys.executable, str(HERE / "stock.py")]
    imret_db, stock_db = ["--db", str(work / "imret")], ["--db", str(work / "stock")]
    subprocess.run(
        [*imret, "ingest", str(work / "photos"), "--model", str(model), *imret_db], check=True, env=env
    )
    subprocess.run([*stock, "ingest", str(model), str(work / "photos"), *stock_db], check=True, env=env)
    commands = {
        "stock": [*stock, "search", str(model), QUERY, *stock_db],
        "imret": [*imret, "search", QUERY, *imret_db],
        "shares": [sys.executable, "-c", SHARES, "search", QUERY, *imret_db],
    }
    taken: dict[str, Any] = {"stock": [], "imret": [], "shares": {"stock": [], "imret": []}}
    for number in range(-1, rounds):  # the first brings files into memory
        for who, command in commands.items():
            start, before = time.perf_counter(), os.times()
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
            wall, after = time.perf_counter() - start, os.times()
            if number < 0:
                continue
            worked = sum(after[2:4]) - sum(before[2:4])
            if who != "shares":
                taken[who].append([wall, worked])
            if who != "imret":
                spent = json.loads(done.stderr.splitlines()[-1])
                taken["shares"]["stock" if who == "stock" else "imret"].append(spent)
    return taken


if __name__ == "__main__":
    main()
