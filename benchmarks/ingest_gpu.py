"""Ingest with ViT-H/14 on a GPU: from JPEG files on disk to searchable, beside the encode alone.

    python benchmarks/ingest_gpu.py [--files 20000] [--rounds 3] [--arch ViT-H-14] [--work build/ingest-gpu] \
        [--results FILE.md]

Draws JPEG files (smooth noise, 500 x 375 at quality 90) and writes a model of random weights, which changes
no time. Then: what a large matrix product reaches; encode-only, a loop over pictures that lie on the GPU in
the model's precision, by the tower that `imret ingest` uses and by stock open_clip under autocast; the ingest
of all files into an empty embedded store, model loaded, until all is indexed; benchmarks/stock.py on the same
files; and whole processes of `imret ingest` on a thousand of them. Files and model are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch
from finetune_throughput import device_name, matmul_rate, synchronize
from finetune_whole_run import draw, write_model
from machine import cores
from torch.utils.flop_counter import FlopCounterMode

from imret.encoder import Encoder
from imret.store import open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource

HERE = Path(__file__).resolve().parent
BATCH = 256
THOUSAND = 1000


def main() -> None:
    """Prepare, measure, and print as a page of Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arch", default="ViT-H-14")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--work", type=Path, default=Path("build/ingest-gpu"))
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    photos, model = given.work / "photos", given.work / "base"
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw, [(photos, number) for number in range(given.files)], chunksize=64))
    write_model(model, given.arch)
    few = given.work / "thousand"
    for file in sorted(photos.rglob("*.jpg"))[:: max(1, given.files // THOUSAND)][:THOUSAND]:
        link = few / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            os.link(file, link)
    # Before this process holds the device's memory. The first reads the weights once, for their fingerprint.
    processes = [cold(few, model, given.work) for _ in range(given.rounds + 1)]
    told(f"a thousand, whole processes: {processes}")
    stock = of_stock(photos, model, given.work)
    told(f"stock: {stock}")
    page = report(given, photos, model, processes, stock)
    print(page)
    if given.results is not None:
        given.results.write_text(page + "\n", encoding="utf-8")


def told(text: str) -> None:
    """Print at once: a machine that is lent may go back before the end."""
    print(text, flush=True)


def report(
    given: argparse.Namespace,
    photos: Path,
    model: Path,
    processes: list[float],
    stock: float,
) -> str:
    """Measure what one process does, and return the page."""
    encoder = Encoder(str(model.resolve()))
    device, batch = encoder.device, given.batch
    peak = matmul_rate(device)
    gflop, alone = encode_only(encoder, str(model), batch, given.rounds)
    told(f"encode-only: {alone}")
    whole = [ingested(photos, encoder, given.work, given.files) for _ in range(given.rounds)]
    told(f"ingest: {whole}")
    first, *warm = processes
    rate = {name: statistics.median(runs) for name, runs in alone.items()}
    share = {name: f"{rate[name] * gflop * 1e9 / peak:.0%}" for name in rate}
    done = statistics.median(whole)
    rows = [
        ("encode-only, imret", middle(alone["imret"]), f"{share['imret']} of the product's (goal 60 %)"),
        ("encode-only, stock", middle(alone["stock"]), f"{share['stock']}"),
        ("ingest, to the index", middle(whole), f"{done / rate['imret']:.0%} of encode-only (goal 80 %)"),
        ("ingest, stock script, without its start", f"{stock:.0f}", f"imret: {done / stock:.1f} times"),
    ]
    return "\n".join(
        [
            f"# Ingest with {given.arch} on a GPU",
            "",
            f"{date.today()}; one {device_name(device)}, {cores()}, Python {platform.python_version()}, "
            f"torch {torch.__version__}; {encoder.precision}, batches of {batch}; random weights, JPEG files "
            f"of smooth noise, 500 x 375. `python benchmarks/ingest_gpu.py --files {given.files} --rounds "
            f"{given.rounds}`; medians of the rounds, least and most. A large product runs at "
            f"{peak / 1e12:.0f} TFLOP/s; a picture takes {gflop:.1f} GFLOP.",
            "",
            "| | images/s | |",
            "|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"`imret ingest` of {min(THOUSAND, given.files):,} files, whole processes until they can be "
            f"found: {middle(warm, 1)} s (goal 10); {first:.1f} s the first time that a model is used, when "
            "its weights are hashed.",
        ]
    )


def middle(values: list[float], digits: int = 0) -> str:
    """Return a median with least and most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


@torch.inference_mode()
def encode_only(
    encoder: Encoder, model: str, batch: int, rounds: int
) -> tuple[float, dict[str, list[float]]]:
    """Return GFLOP a picture, and images a second of each round by imret's tower and by open_clip's."""
    import stock

    device = encoder.device
    pixels = torch.randn(batch, 3, *encoder.preprocess.size, device=device)
    ours: Any = encoder._tower("image")
    plain, _, _ = stock.load(model, str(device))
    exact = pixels.to(torch.bfloat16 if encoder.precision == "bf16" else torch.float32)
    contenders: dict[str, Callable[[], Any]] = {
        "imret": lambda: torch.nn.functional.normalize(ours.encode_image(exact).float(), dim=-1),
        "stock": lambda: next(stock.encoded(plain, [(pixels, [""])], str(device))),
    }
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know it
    with FlopCounterMode(display=False) as counter:
        ours.encode_image(exact[:1])
    torch.backends.mha.set_fastpath_enabled(True)
    alone: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            synchronize(device)
            began = time.perf_counter()
            for _ in range(20):
                run()
            synchronize(device)
            alone[name].append(20 * batch / (time.perf_counter() - began))
    return counter.get_total_flops() / 1e9, alone


def ingested(photos: Path, encoder: Encoder, work: Path, n: int) -> float:
    """Return images a second of an ingest into an empty store, from the first look to the index."""
    shutil.rmtree(work / "db", ignore_errors=True)
    with open_store(str(work / "db")) as store:
        began = time.perf_counter()
        done = ingest(store, [FolderSource(photos)], encoder=encoder)
        taken = time.perf_counter() - began
    assert done.added == n
    return n / taken


def of_stock(photos: Path, model: Path, work: Path) -> float:
    """Return images a second of the stock script, without its start."""
    shutil.rmtree(work / "stock", ignore_errors=True)
    script = [sys.executable, str(HERE / "stock.py"), "ingest", str(model), str(photos)]
    options = ["--db", str(work / "stock"), "--batch-size", str(BATCH), "--workers", str(os.cpu_count())]
    done = subprocess.run([*script, *options], capture_output=True, text=True, check=True)
    return len(list(photos.rglob("*.jpg"))) / float(json.loads(done.stderr.splitlines()[-1])["ingest"])


def cold(photos: Path, model: Path, work: Path) -> float:
    """Return the seconds of a whole `imret ingest` into an empty store."""
    shutil.rmtree(work / "few", ignore_errors=True)
    env = {**os.environ, "IMRET_HOME": str(work / "home")}
    program = [sys.executable, "-m", "imret.cli", "ingest", str(photos), "--model", str(model)]
    began = time.perf_counter()
    subprocess.run([*program, "--db", str(work / "few")], capture_output=True, text=True, check=True, env=env)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
