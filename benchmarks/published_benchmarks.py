"""Whether `imret benchmark` gives the figures of the programs that benchmarks are published with.

    pip install --no-deps clip-benchmark==1.6.2 webdataset==1.0.2 braceexpand
    pip install scikit-learn
    python benchmarks/published_benchmarks.py MODEL CAPTIONS.csv

MODEL is a folder that open_clip loads, CAPTIONS.csv (path,caption) names photos. They are packed as those of
CLIP_benchmark are; it and imret read the same tar files, in fp32 on the CPU. Judged lists are random ones,
scored by what INQUIRE's metrics are made of: average precision and nDCG of scikit-learn. Prints Markdown.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import cores

from imret import Encoder
from imret.datasets.captions_csv import read_captioned
from imret.datasets.webdataset import Shards
from imret.evaluation.benchmark import benchmark_captions, find_benchmark
from imret.evaluation.metrics import ap_at_k, ndcg_at_k, reciprocal_rank_at_k

LISTS, SEED = 500, 0
SHARDS = 2


def main() -> None:
    """Compare captions, then judged lists."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("captions", type=Path)
    arguments = parser.parse_args()
    print("# Published benchmarks: imret beside the published programs\n")
    libraries = ("clip-benchmark", "webdataset", "open_clip_torch", "scikit-learn")
    versions = ", ".join(f"{library} {version(library)}" for library in libraries)
    print(f"{date.today()}, {cores()}, fp32. {versions}.\n")
    with tempfile.TemporaryDirectory() as folder:
        n_images, n_captions = pack(arguments.captions, Path(folder))
        ours = captions_by_imret(arguments.model, folder)
        theirs = captions_by_theirs(arguments.model, folder)
    print(f"Captions: {n_images} photos, {n_captions:,} captions.\n")
    print("| figure | clip_benchmark | imret |\n|---|---|---|")
    for key, value in theirs.items():
        print(f"| {key} | {value:.4f} | {ours[key]:.4f} |")
    print(f"\nJudged lists: {LISTS} random ones of 2 to 119 pictures, seed {SEED}, whole and at a random k;")
    print(f"the largest difference in AP, nDCG and reciprocal rank is {largest_difference():.1e}.")


def pack(captions: Path, folder: Path) -> tuple[int, int]:
    """Write photos and captions as a retrieval set; return how many there are."""
    root, said = read_captioned(captions)
    (folder / "test").mkdir()
    paths = list(said)
    each = -(-len(paths) // SHARDS)
    for shard in range(SHARDS):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for number, path in enumerate(paths[shard * each : (shard + 1) * each], start=shard * each):
                for kind, data in (
                    ("jpg", (root / path).read_bytes()),
                    ("txt", "\n".join(said[path]).encode()),
                ):
                    info = tarfile.TarInfo(f"s{number:07d}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text(f"{SHARDS}\n")
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return len(paths), sum(map(len, said.values()))


def captions_by_imret(model: str, folder: str) -> dict[str, float]:
    """Return imret's figures."""
    shards = find_benchmark([folder])
    assert isinstance(shards, Shards)
    report = benchmark_captions(shards, encoder=Encoder(model, device="cpu", precision="fp32"))
    return {key: figure.value for key, figure in report.figures.items()}


def captions_by_theirs(model: str, folder: str) -> dict[str, float]:
    """Return the figures of clip_benchmark, without mixed precision, which is its default on a CPU, too."""
    import open_clip
    from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate
    from torch.utils.data import DataLoader

    name = f"local-dir:{model}"
    clip, _, transform = open_clip.create_model_and_transforms(name)
    clip.eval()
    data = build_wds_dataset("captions", transform=transform, split="test", data_dir=folder)
    loader: Any = DataLoader(data, batch_size=64, collate_fn=image_captions_collate_fn)
    figures: dict[str, float] = evaluate(
        clip, loader, open_clip.get_tokenizer(name), "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    return figures


def largest_difference() -> float:
    """Return how far figures of random judged lists are from those of scikit-learn."""
    from sklearn.metrics import average_precision_score, ndcg_score

    rng = np.random.default_rng(SEED)
    largest = 0.0
    for _ in range(LISTS):
        n = int(rng.integers(2, 120))
        relevant, scores = rng.random(n) < rng.random(), rng.normal(size=n).astype(np.float32)
        relevant[rng.integers(n)] = True
        best = np.argsort(-scores)
        for k in (n, int(rng.integers(2, n + 1))):
            hits, top = relevant[best][:k], scores[best][:k]
            rank = int(hits.argmax()) + 1 if hits.any() else 0
            within = average_precision_score(hits, top) * hits.sum() if hits.any() else 0.0
            # The relevant that are not among the k best count for the ideal order: as if they were last.
            beyond = int(relevant.sum() - hits.sum())
            labels, ordered = [*hits, *[True] * beyond], [*top, *[-100.0] * beyond]
            expected = (
                within / min(relevant.sum(), k),
                ndcg_score([labels], [ordered], k=k),
                1 / rank if rank else 0.0,
            )
            listed = scores[None, :], relevant[None, :], k
            got = (ap_at_k(*listed)[0], ndcg_at_k(*listed)[0], reciprocal_rank_at_k(*listed)[0])
            largest = max(largest, float(np.abs(np.array(got) - np.array(expected)).max()))
    return largest


if __name__ == "__main__":
    main()
