"""Ingest with ViT-H/14 on a GPU: from JPEG files on disk to searchable, beside the encode alone.

    python benchmarks/ingest_gpu.py [--files 20000] [--rounds 3] [--arch ViT-H-14] [--work build/ingest-gpu] \
        [--results FILE.md]

Draws JPEG files (smooth noise, 500 x 375 at quality 90) and writes a model of random weights, which changes
no time. Then: what a large matrix product reaches; encode-only, a loop over pictures that lie on the GPU in
the model's precision, by the tower that `imret ingest` uses and by stock open_clip under autocast; the ingest
of all files into an empty embedded store, model loaded, until all is indexed; benchmarks/stock.py on some of
them; and whole processes of `imret ingest` on a thousand. Files and model are in the page cache.
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
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import torch
from finetune_throughput import device_name, matmul_rate, synchronize
from finetune_whole_run import draw, write_model
from ingest_cpu import middle
from machine import cores
from torch.utils.flop_counter import FlopCounterMode

from imret.images.decode import MAX_PIXELS
from imret.models.device import pick_device
from imret.models.encoder import Encoder
from imret.store import open_store
from ingest.decode_workers import Decoders
from ingest.pipeline import ingest
from ingest.prefetch import in_lists
from ingest.sources import FolderSource

HERE = Path(__file__).resolve().parent
BATCH = 256
THOUSAND = 1_000
FOR_STOCK = 5_000  # files: its embedded store takes ever longer


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
    files = sorted(photos.rglob("*.jpg"))
    few, some = (part(files, given.work / str(n), n) for n in (THOUSAND, FOR_STOCK))
    encoder = Encoder(str(model.resolve()))
    whole = [ingested(photos, encoder, given.work, given.files) for _ in range(given.rounds)]
    decoded = [decode_only(files, encoder) for _ in range(given.rounds)]
    told(f"decode-only: {decoded}")
    gflop, alone = encode_only(encoder, str(model), given.batch, given.rounds)
    peak = matmul_rate(encoder.device)
    told(f"encode-only: {alone}, product: {peak:.3g}")
    del encoder
    torch.cuda.empty_cache()
    # The first reads the weights once more, for their fingerprint.
    first, *warm = [cold(few, model, given.work) for _ in range(given.rounds + 1)]
    told(f"a thousand, whole processes: {first}, {warm}")
    stock = of_stock(some, model, given.work)
    rate = {name: statistics.median(runs) for name, runs in alone.items()}
    share = {name: f"{rate[name] * gflop * 1e9 / peak:.0%}" for name in rate}
    done = statistics.median(whole)
    rows = [
        ("decode-only, processes", middle(decoded), ""),
        ("encode-only, imret", middle(alone["imret"]), f"{share['imret']} of the product's (goal 60 %)"),
        ("encode-only, stock", middle(alone["stock"]), f"{share['stock']}"),
        ("ingest, to the index", middle(whole), f"{done / rate['imret']:.0%} of encode-only (goal 80 %)"),
        ("ingest, stock script, without its start", f"{stock:.0f}", f"imret: {done / stock:.1f} times"),
    ]
    page = "\n".join(
        [
            f"# Ingest with {given.arch} on a GPU",
            "",
            f"{date.today()}; one {device_name(pick_device('auto'))}, {cores()}, Python "
            f"{platform.python_version()}, torch {torch.__version__}; batches of {given.batch}; random "
            "weights, JPEG files of smooth noise, 500 x 375. `python benchmarks/ingest_gpu.py --files "
            f"{given.files} --rounds {given.rounds}`; medians of the rounds, least and most. A large product "
            f"in bfloat16 runs at {peak / 1e12:.0f} TFLOP/s; a picture takes {gflop:.1f} GFLOP. The stock "
            f"script: {min(FOR_STOCK, given.files):,} files, one run.",
            "",
            "| | images/s | |",
            "|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"`imret ingest` of {min(THOUSAND, given.files):,} files, whole processes until they can be "
            f"found: {middle(warm)} s (goal 10); {first:.1f} s the first time that a model is used, when "
            "its weights are hashed.",
        ]
    )
    print(page)
    if given.results is not None:
        given.results.write_text(page + "\n", encoding="utf-8")


def part(files: list[Path], folder: Path, n: int) -> Path:
    """Return a folder with links to n of the files."""
    for file in files[:: max(1, len(files) // n)][:n]:
        link = folder / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            os.link(file, link)
    return folder


def told(text: str) -> None:
    """Print at once: a machine that is lent may go back before the end."""
    print(text, flush=True)


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
    with FlopCounterMode(display=False) as counter:
        ours.encode_image(exact[:1])
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
    marks: list[str] = []
    with open_store(str(work / "db")) as store:
        began, worked = time.perf_counter(), time.process_time()
        done = ingest(
            store,
            [FolderSource(photos)],
            encoder=encoder,
            on_stage=lambda stage: marks.append(f"{stage} after {time.perf_counter() - began:.1f} s"),
        )
        taken, busy = time.perf_counter() - began, time.process_time() - worked
    told(f"ingest: {n / taken:.0f} a second, {taken:.1f} s ({busy:.1f} of this process): {marks}")
    assert done.added == n
    return n / taken


def decode_only(files: list[Path], encoder: Encoder) -> float:
    """Return images a second that as many processes decode as there are cores, once they run."""
    n = os.cpu_count() or 1
    names = [str(file) for file in files[:6000]]
    with closing(Decoders(encoder.preprocess, max_pixels=MAX_PIXELS)) as decoders:
        decoders.spread(n)
        while not all(line.has_begun() for line in decoders._starting):
            time.sleep(0.05)
        with ThreadPoolExecutor(n) as pool:
            began = time.perf_counter()
            for _ in pool.map(decoders.decode, in_lists(names, lambda: decoders.at_once)):
                pass
            return len(names) / (time.perf_counter() - began)


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
    program = [sys.executable, "-m", "imret", "ingest", str(photos), "--model", str(model)]
    began = time.perf_counter()
    subprocess.run([*program, "--db", str(work / "few")], capture_output=True, text=True, check=True, env=env)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
