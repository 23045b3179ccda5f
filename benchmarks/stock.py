"""The script that a user would write instead of imret: open_clip, a DataLoader, a loop, qdrant-client.

    python benchmarks/stock.py ingest MODEL PICTURES [--db FOLDER|URL] [--batch-size 32] [--workers 2]
    python benchmarks/stock.py search MODEL "a mushroom on a log" [--db FOLDER|URL] [--limit 10]

The peer of the other benchmarks, written once and without handicap: batches decoded ahead in worker
processes, inference mode, bfloat16 autocast on a GPU (float32 on a CPU, as open_clip makes models there), one
upsert a batch without waiting for the index. What a process spent on import, load, encode and store goes to
stderr as one line of JSON. MODEL is a name as in open_clip or a folder of its `local-dir:` layout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

_BEGUN = time.perf_counter()

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from qdrant_client import QdrantClient, models  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

IMPORT_S = time.perf_counter() - _BEGUN

COLLECTION = "stock"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


def load(model: str, device: str = "cpu") -> tuple[Any, Any, Any]:
    """Return open_clip's (model in eval mode, transform, tokenizer)."""
    name, pretrained = model, None
    if Path(model).is_dir():
        name = f"local-dir:{model}"
    elif not model.startswith("hf-hub:"):
        name, _, pretrained = model.partition("/")
    clip, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
    return clip.eval(), transform, open_clip.get_tokenizer(name)


def files_below(folder: str | os.PathLike[str]) -> list[str]:
    """Return the pictures below a folder, sorted."""
    return sorted(
        os.path.join(at, name)
        for at, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(EXTENSIONS)
    )


class Pictures(Dataset):  # type: ignore[type-arg]
    """Files -> (C, H, W) float tensors by open_clip's transform."""

    def __init__(self, files: Sequence[str], transform: Any) -> None:
        self.files, self.transform = list(files), transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        with Image.open(self.files[index]) as image:
            return self.transform(image), self.files[index]


def loader(
    files: Sequence[str], transform: Any, *, batch_size: int, workers: int, device: str = "cpu"
) -> Any:
    """Return a DataLoader of (B, C, H, W) batches and their files, decoded ahead in `workers` processes."""
    return DataLoader(
        Pictures(files, transform),
        batch_size=batch_size,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.startswith("cuda"),
    )


def _autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else nullcontext()


def encoded(model: Any, batches: Any, device: str = "cpu") -> Iterator[tuple[np.ndarray, Sequence[str]]]:
    """Yield ((B, D) float32 unit vectors, files) of each batch."""
    for pixels, files in batches:
        with torch.inference_mode(), _autocast(device):
            vectors = model.encode_image(pixels.to(device, non_blocking=True), normalize=True)
        yield vectors.float().cpu().numpy(), files


def encode_text(model: Any, tokenizer: Any, text: str, device: str = "cpu") -> np.ndarray:
    """Return the (D,) float32 unit vector of a text."""
    with torch.inference_mode(), _autocast(device):
        vectors = model.encode_text(tokenizer([text]).to(device), normalize=True)
    row: np.ndarray = vectors[0].float().cpu().numpy()
    return row


def connect(db: str) -> QdrantClient:
    """Return a client of a server (a URL) or of qdrant-client's local mode (a folder)."""
    return QdrantClient(url=db) if db.startswith(("http://", "https://")) else QdrantClient(path=db)


def ingest(
    folder: str | os.PathLike[str],
    db: str,
    *,
    loaded: tuple[Any, Any, Any],
    batch_size: int = 32,
    workers: int = 2,
    device: str = "cpu",
) -> int:
    """Encode every picture below a folder into a new collection; return how many."""
    model, transform, _ = loaded
    files = files_below(folder)
    client = connect(db)
    if client.collection_exists(COLLECTION):
        client.delete_collection(COLLECTION)
    total = 0
    batches = loader(files, transform, batch_size=batch_size, workers=workers, device=device)
    for vectors, names in encoded(model, batches, device):
        if total == 0:
            size = vectors.shape[1]
            client.create_collection(
                COLLECTION, vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE)
            )
        client.upsert(
            COLLECTION,
            models.Batch(
                ids=[str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in names],
                vectors=vectors.tolist(),
                payloads=[{"path": name, "category": Path(name).parent.name} for name in names],
            ),
            wait=False,
        )
        total += len(names)
    client.close()
    return total


def search(client: QdrantClient, vector: np.ndarray, *, limit: int = 10) -> list[tuple[float, str]]:
    """Return the (score, path) of the best hits."""
    response = client.query_points(COLLECTION, query=vector.tolist(), limit=limit, with_payload=True)
    return [(point.score, (point.payload or {})["path"]) for point in response.points]


def main() -> None:
    """Ingest or search, and say on stderr where the time went."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("action", choices=("ingest", "search"))
    parser.add_argument("model")
    parser.add_argument("what", help="the folder of pictures, or the text")
    parser.add_argument("--db", default="stock.db")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    spent = {"import": IMPORT_S}
    mark = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal mark
        spent[name], mark = time.perf_counter() - mark, time.perf_counter()

    loaded = load(arguments.model, arguments.device)
    lap("load")
    if arguments.action == "ingest":
        total = ingest(
            arguments.what,
            arguments.db,
            loaded=loaded,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            device=arguments.device,
        )
        lap("ingest")
        print(f"{total} pictures, {total / spent['ingest']:.1f} a second")
    else:
        vector = encode_text(loaded[0], loaded[2], arguments.what, arguments.device)
        lap("encode")
        client = connect(arguments.db)
        for score, path in search(client, vector, limit=arguments.limit):
            print(f"{score:.3f} {path}")
        client.close()
        lap("search")
    print(json.dumps({name: round(seconds, 4) for name, seconds in spent.items()}), file=sys.stderr)


if __name__ == "__main__":
    main()
