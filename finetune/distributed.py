"""The processes that train one model together: which rows each takes, and how their gradients are summed.

Every process holds the whole model, encodes its shard of a batch, and gathers the features of all: the loss
of each is the loss of the whole batch. Its gradient with respect to a feature is exact for the process that
encoded it, so the gradients of the weights need only be added up. With one process all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Longer than it takes the first process to score a model or to write a checkpoint of it.
_TIMEOUT = timedelta(hours=2)
# 256 MiB of float32 in each all-reduce, so that little memory is needed beside the weights.
_BUCKET_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class World:
    """One of `size` processes, each with one device.

    Attributes:
        rank: Number of this process; 0 writes files and messages.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> World:
        """Return this process's place among those that torchrun started, or the world of one process."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # else every process would open a context on the first one too
        if not dist.is_initialized():
            # With a backend for the CPU, flags and a checkpoint's state never go through a GPU: sent by NCCL,
            # they would lie on the current device, which is not always this process's, and beside the model.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_TIMEOUT)
        return cls(dist.get_rank(), dist.get_world_size())

    def destroy(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def shard(self, n: int) -> slice:
        """Return which of n rows this process takes; shards differ by one row at most and may be empty."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """Return the (n, D) rows of all processes in order, of which each gives its shard; no gradient."""
        if self.size == 1:
            return rows
        bounds = [World(rank, self.size).shard(n) for rank in range(self.size)]
        longest = max(bound.stop - bound.start for bound in bounds)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in bounds]
        dist.all_gather(parts, padded)
        return torch.cat(
            [part[: bound.stop - bound.start] for part, bound in zip(parts, bounds, strict=True)]
        )

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes; a parameter without one counts as zero."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        elements = 0
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            elements += parameter.grad.numel()
            if elements >= _BUCKET_ELEMENTS:
                _sum(bucket)
                bucket, elements = [], 0
        if bucket:
            _sum(bucket)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags: list[Any] = [None] * self.size
        dist.all_gather_object(flags, flag)
        return any(flags)

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value, in all of them."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Return once every process has called this."""
        if self.size > 1:
            dist.barrier()


def _sum(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
