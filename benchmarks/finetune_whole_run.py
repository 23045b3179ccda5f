"""A whole `imret finetune`, from JPEG files to the model folder: where the minutes go.

    python benchmarks/finetune_whole_run.py [--pictures 10000] [--arch ViT-H-14] [--work build/whole-run] \
        -- --recipe light [other options of imret finetune]

Draws JPEG files (smooth noise, 500 x 375 at quality 90, a folder per category), writes a model of random
weights and runs the command on them, noting when it says what. Reading, decoding and looking for
copies, scoring, training, the blend and writing the model are all in it; what they cost is printed, and what
the command said. Nothing that is measured depends on what the weights and pictures are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from finetune_throughput import CATEGORIES
from PIL import Image

from finetune.checkpoint import save_model
from finetune.model.base_model import find_base

IMRET = (sys.executable, "-c", "from imret.cli.main import main; main()")


def main() -> None:
    """Prepare, run, and tell the time of every line that the command prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--arch", default="ViT-H-14")
    parser.add_argument("--work", type=Path, default=Path("build/whole-run"))
    parser.add_argument("options", nargs="*", help="Options of imret finetune, after --.")
    arguments = parser.parse_args()
    photos, model = arguments.work / "photos", arguments.work / "base"
    began = time.monotonic()
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw, [(photos, i) for i in range(arguments.pictures)], chunksize=64))
    write_model(model, arguments.arch)
    print(f"{arguments.pictures:,} pictures and a model after {time.monotonic() - began:.0f} s", flush=True)
    command = [
        *(*IMRET, "finetune", str(photos), "--model", str(model)),
        *("--output", str(arguments.work / "tuned"), "--overwrite", *arguments.options),
    ]
    began = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            print(f"{time.monotonic() - began:7.1f} s  {line.rstrip()}", flush=True)
    print(f"{time.monotonic() - began:7.1f} s  ended with {process.returncode}", flush=True)
    sys.exit(process.returncode)


def draw(job: tuple[Path, int]) -> None:
    """Write one JPEG file, unless it is there."""
    photos, number = job
    file = photos / CATEGORIES[number % len(CATEGORIES)] / f"{number}.jpg"
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.BICUBIC)
    grain = rng.integers(-12, 13, (375, 500, 1))
    pixels = np.clip(np.asarray(coarse, dtype=np.int64) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, quality=90)


def write_model(folder: Path, arch: str) -> None:
    """Write a model folder of random weights, unless it is there."""
    if (folder / "open_clip_config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    base = find_base(arch, from_scratch=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:  # draws the weights there
        model = base.build(device, seed=0)
    save_model(
        folder,
        model,
        model_cfg=base.model_cfg,
        preprocess=base.preprocess,
        training={},
        tokenizer=base.tokenizer,
    )


if __name__ == "__main__":
    main()
