"""Which device and precision to compute with."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from imret.errors import ModelError


def pick_device(device: str | torch.device) -> torch.device:
    """Return a device that works: "auto" is cuda, else mps, else cpu.

    Raises:
        ModelError: If the device named is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError) as error:  # torch names two dozen kinds, most of which are not here
        raise ModelError(
            f"there is no device {str(device)!r}. Use cpu, cuda, cuda:0 (the first of several), mps or auto."
        ) from error
    try:
        chosen = named
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"Device '{device}' cannot be used: {str(error).splitlines()[0]}. Use --device cpu, or auto."
        ) from error
    return chosen


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and sys.platform == "linux":
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
        except OSError:
            return False
        return bool({"avx512_bf16", "amx_bf16"} & set(flags))
    return False


def compute_alone() -> None:
    """Let the operators that this thread calls run in it alone; those of others keep their threads."""
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # what torch sets for a thread, it sets at the thread's first call
    threadpool_limits(1, user_api="openmp")
