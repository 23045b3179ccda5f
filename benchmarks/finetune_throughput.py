"""How fast a model is fine-tuned, and in how much memory: recipes, batch sizes, and what saves memory.

    python benchmarks/finetune_throughput.py [--arch ViT-H-14] [--device cuda] [--limit-gib 24]

Weights are random and pictures are noise, which changes neither time nor memory; nothing is downloaded. What
is timed are whole steps of finetune.trainer, optimizer and anchors included, with pictures that are decoded
already. "Useful" are the operations that the objective asks for, without those that checkpointing or parts
of a batch repeat; they are counted by torch as they are executed, and their rate is given as a share of what
a large matrix product reaches on the same device in the same run. Memory is what tensors held at most, in GiB
of 2**30 bytes; on a CPU, what the whole process held so far, over all runs.

Writes benchmarks/results/finetune_throughput-DEVICE-DATE.md and .json.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.config import FinetuneConfig
from finetune.data.pixels import ImageSet, training_size
from finetune.data.records import Record
from finetune.memory import peak_memory_mib
from finetune.model.base_model import Base, find_base
from finetune.trainer import Trainer
from imret.datasets.phrases import read_phrases
from imret.errors import ModelError

CATEGORIES = (
    *("actinopterygii", "amphibia", "arachnida", "aves", "fungi"),
    *("insecta", "mammalia", "mollusca", "plantae", "reptilia"),
)
# Of the made-up training set that times are quoted for.
PICTURES, EPOCHS = 10_000, 8
GIB = 1 << 30


@dataclass(frozen=True)
class Run:
    """A recipe with its memory savers.

    Attributes:
        recipe: One of imret's.
        batch: Pictures a step.
        changes: To the recipe.
        limit: Whether it is meant to fit the card that --limit-gib stands for, and is run under that limit.
    """

    recipe: str
    batch: int
    changes: dict[str, Any]
    limit: bool = False


def runs() -> Iterator[Run]:
    """Yield what is measured, what matters most first."""
    plain: dict[str, Any] = {}
    compiled, checkpointed = {"compile": True}, {"checkpointing": True}
    both = {**compiled, **checkpointed}
    yield Run("full", 100, plain)
    yield Run("full", 100, compiled)
    yield Run("full", 200, compiled)
    yield Run("full", 100, checkpointed, limit=True)
    yield Run("full", 100, both, limit=True)
    yield Run("lora", 100, plain)
    yield Run("lora", 100, checkpointed, limit=True)
    yield Run("light", 64, plain, limit=True)
    yield Run("light", 64, compiled, limit=True)
    yield Run("light", 256, compiled, limit=True)
    yield Run("names", 64, plain, limit=True)
    yield Run("plain", 100, compiled)
    yield Run("full", 256, both)
    yield Run("full", 512, both)
    yield Run("full", 32, compiled)
    yield Run("full", 256, {**compiled, "micro_batch": 128})


class Noise(ImageSet):
    """Pictures that are decoded already: ten categories of uniform noise, 64 different ones in all."""

    def __init__(self, n: int, size: tuple[int, int]) -> None:
        self.records = [Record(f"{i}.jpg", CATEGORIES[i % len(CATEGORIES)], 0) for i in range(n)]
        self._noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, *size, 3), np.uint8))

    def batch(self, positions: Any) -> Tensor:
        """Return (B, H, W, 3) uint8."""
        return self._noise[torch.as_tensor(np.asarray(positions)) % len(self._noise)]


@dataclass(frozen=True)
class Ready(Base):
    """A base whose model has been built once, with random weights, and is copied from then on."""

    built: nn.Module | None = None

    def build(self, device: torch.device, *, seed: int) -> nn.Module:
        """Return a copy of the model; `seed` does nothing."""
        if self.built is None:
            raise RuntimeError("not built")
        return copy.deepcopy(self.built)


def ready(arch: str, device: torch.device) -> Ready:
    """Return an architecture with random weights that counts as a pretrained model."""
    scratch = find_base(arch, from_scratch=True)
    with device:  # draws them there: 986 M numbers take a CPU a while
        model = scratch.build(device, seed=0)
    fields = {field.name: getattr(scratch, field.name) for field in dataclasses.fields(scratch)}
    # Any value but None says that there is a base to be anchored to; nothing reads it.
    return Ready(**{**fields, "files": "random weights", "built": model.to(device)})


def main() -> None:
    """Measure, print as it goes, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--arch", default="ViT-H-14")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit-gib", type=float, default=24.0, help="Memory of the smaller card.")
    parser.add_argument("--budget-s", type=float, default=3600.0, help="Begin no run after so long.")
    parser.add_argument("--batches", type=float, default=1.0, help="Scale of all batch sizes; for a CPU.")
    parser.add_argument("--seconds", type=float, default=5.0, help="Time each run so long at least.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device(arguments.device)
    began = time.monotonic()
    peak = matmul_rate(device)
    print(f"{device_name(device)}: a large matrix product runs at {peak / 1e12:.2f} TFLOP/s", flush=True)
    base = ready(arguments.arch, device)
    per_picture, per_text = operations(base, device)
    print(
        f"{arguments.arch}: {per_picture / 1e9:.1f} GFLOP a picture, {per_text / 1e9:.1f} a text, forward; "
        f"built after {time.monotonic() - began:.0f} s",
        flush=True,
    )
    measured = []
    for run in runs():
        if time.monotonic() - began > arguments.budget_s:
            print(f"not run, out of time: {run}", flush=True)
            continue
        run = scaled(run, arguments.batches)
        limit = arguments.limit_gib if run.limit else 0.0
        result = measure(run, base, device, limit_gib=limit, seconds=arguments.seconds)
        if "step_s" in result:
            useful = useful_operations(run, result["texts"], per_picture, per_text)
            result["useful_tflops"] = round(useful / result["step_s"] / 1e12, 2)
            result["share_of_peak"] = round(useful / result["step_s"] / peak, 3)
        print({**dataclasses.asdict(run), **result}, flush=True)
        measured.append({**dataclasses.asdict(run), **result})
    about = {
        "date": date.today().isoformat(),
        "device": device_name(device),
        "memory_gib": round(_memory(device), 1),
        "arch": arguments.arch,
        "matmul_tflops": round(peak / 1e12, 2),
        "gflop_per_picture": round(per_picture / 1e9, 1),
        "gflop_per_text": round(per_text / 1e9, 1),
        "limit_gib": arguments.limit_gib,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    name = about["device"].lower().replace(" ", "-").replace("(", "").replace(")", "")
    stem = arguments.output / f"finetune_throughput-{name}-{date.today().isoformat()}"
    text = table(about, measured)
    Path(f"{stem}.md").write_text(text, encoding="utf-8")
    Path(f"{stem}.json").write_text(json.dumps({**about, "runs": measured}, indent=1) + "\n")
    print(text)


def scaled(run: Run, factor: float) -> Run:
    """Return a run with smaller batches."""
    if factor == 1:
        return run
    changes = dict(run.changes)
    if "micro_batch" in changes:
        changes["micro_batch"] = max(1, round(changes["micro_batch"] * factor))
    return dataclasses.replace(run, batch=max(2, round(run.batch * factor)), changes=changes)


def matmul_rate(device: torch.device) -> float:
    """Return the operations a second of a large matrix product, in the precision that training has there."""
    cuda = device.type == "cuda"
    n = 8192 if cuda else 2048
    dtype = torch.bfloat16 if cuda else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    rates = []
    for _ in range(10):
        synchronize(device)
        began = time.perf_counter()
        a @ b
        synchronize(device)
        rates.append(2 * n**3 / (time.perf_counter() - began))
    return statistics.median(rates)


def operations(base: Ready, device: torch.device) -> tuple[float, float]:
    """Return the operations of one picture and of one text, forward, as torch counts them."""
    model: Any = base.built
    model.train()  # not the fast path, which is not counted
    height, width = base.preprocess.size
    counts = []
    for encode, inputs in (
        (model.encode_image, torch.zeros(2, 3, height, width, device=device)),
        (model.encode_text, torch.zeros(2, base.context_length, device=device, dtype=torch.long)),
    ):
        with FlopCounterMode(display=False) as counter:
            encode(inputs)
        counts.append(counter.get_total_flops() / len(inputs))
    return counts[0], counts[1]


def useful_operations(run: Run, texts: int, per_picture: float, per_text: float) -> float:
    """Return the operations that a step's objective asks for.

    Forward is 1, the gradient of activations 1 more, that of weights another 1. Adapters and a token table
    need the gradient of activations and next to nothing for weights of their own.
    """
    config = config_of(run)
    anchored = max(config.anchor_images, config.anchor_phrases, config.anchor_replay) > 0
    image = {"both": 3.0, "lora": 2.0, "text": 1.0}[config.tune]
    if config.image_layers == 1:
        image, anchored = 1.0, False  # one pass serves model and base
    text = 2.0 if config.tune == "lora" or config.names_only else 3.0
    return run.batch * per_picture * (image + anchored) + texts * per_text * text


def config_of(run: Run) -> FinetuneConfig:
    """Return a run's configuration."""
    return FinetuneConfig.of(run.recipe, **{"batch_size": run.batch, **run.changes})


def measure(
    run: Run, base: Ready, device: torch.device, *, limit_gib: float, seconds: float
) -> dict[str, Any]:
    """Take steps until they last no different; return their times and the most memory."""
    cuda = device.type == "cuda"
    gc.collect()
    kept = 0
    if cuda:
        torch.cuda.empty_cache()
        kept = torch.cuda.memory_allocated(device)  # the model that others are copied from
        torch.cuda.reset_peak_memory_stats(device)
        share = (limit_gib + kept / GIB) / _memory(device) if limit_gib else 1.0
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    torch.compiler.reset()
    began = time.monotonic()
    try:
        trainer = Trainer(
            base,
            Noise(PICTURES, training_size(base.preprocess.size)),
            config=config_of(run),
            device=device,
            phrases=read_phrases(),
        )
        texts = 0
        prepared = trainer.prepare(0)
        texts = sum(len(text_set.captions) for text_set in prepared.batch.text_sets)
        texts += 32 if config_of(run).anchor_texts else 0
        for number in range(3):
            trainer.step(number, prepared)
        synchronize(device)
        first_s = time.monotonic() - began
        times: list[float] = []
        while sum(times) < seconds or len(times) < 4:
            prepared = trainer.prepare(len(times) + 3)
            synchronize(device)
            start = time.perf_counter()
            trainer.step(len(times) + 3, prepared)
            synchronize(device)
            times.append(time.perf_counter() - start)
    except (ModelError, torch.OutOfMemoryError) as error:
        return {"error": str(error).splitlines()[0][:160]}
    step_s = statistics.median(times)
    result = {
        "texts": texts,
        "steps": len(times),
        "step_s": round(step_s, 4),
        "spread_s": [round(min(times), 4), round(max(times), 4)],
        "pairs_per_s": round(run.batch / step_s, 1),
        "ready_after_s": round(first_s, 1),
        "peak_gib": round(peak_memory_mib(device) / 1024 - kept / GIB, 2),
        "minutes": round(EPOCHS * PICTURES / run.batch * step_s / 60, 1),
    }
    if cuda:
        result["reserved_gib"] = round((torch.cuda.max_memory_reserved(device) - kept) / GIB, 2)
    return result


def table(about: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        f"# Fine-tuning {about['arch']}: pairs a second and memory on one {about['device']}",
        "",
        f"{about['date']}; Python {about['python']}, torch {about['torch']}; "
        f"{about['memory_gib']:g} GiB of memory; a large matrix product runs at {about['matmul_tflops']:g} "
        "TFLOP/s.",
        "Command: `python benchmarks/finetune_throughput.py`. Random weights, decoded pictures of noise; "
        "medians of whole steps.",
        f"A picture takes {about['gflop_per_picture']:g} GFLOP forward, a text {about['gflop_per_text']:g}.",
        f"Runs marked * were held to {about['limit_gib']:g} GiB, reserve of torch's allocator included.",
        f"Minutes are for {EPOCHS} epochs of {PICTURES:,} pictures, steps alone; ready is the time from the "
        "built base to the end of the third step, compiling included.",
        "",
        "| recipe | batch | savers | pairs/s | step, s (least to most) | share of peak | peak GiB | reserved "
        "| ready s | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in measured:
        savers = ", ".join(
            f"{name.replace('_', '-')} {value}" if value is not True else name
            for name, value in result["changes"].items()
        )
        row = f"| {result['recipe']}{' *' if result['limit'] else ''} | {result['batch']} | {savers} | "
        if "error" in result:
            lines.append(f"{row}{result['error']} | | | | | | |")
            continue
        low, high = result["spread_s"]
        lines.append(
            f"{row}{result['pairs_per_s']:.0f} | {result['step_s']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {100 * result['share_of_peak']:.0f} % | {result['peak_gib']:.1f} "
            f"| {result.get('reserved_gib', '')} | {result['ready_after_s']:.0f} | {result['minutes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def synchronize(device: torch.device) -> None:
    """Wait for what a device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Return what a device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {processor()}"


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


if __name__ == "__main__":
    main()
