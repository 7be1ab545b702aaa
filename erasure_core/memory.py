"""How much memory a device can still give, and giving back what was used."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PREDICTING = 20_000
"""Bytes for each latent pixel of a picture at the peak of a prediction without gradients, in 16 bits."""
USABLE = 0.85
"""Share of the free memory that is planned with; the rest is for what libraries take and for fragments."""
_CGROUP = Path("/sys/fs/cgroup")
CONTAINER_LIMITS = (
    (_CGROUP / "memory.max", _CGROUP / "memory.current"),
    (_CGROUP / "memory" / "memory.limit_in_bytes", _CGROUP / "memory" / "memory.usage_in_bytes"),
)
"""Where containers tell their limit and what they use, in the second and the first version of control groups."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device can still give; ``None`` where it does not tell."""
    if device.type in ("cuda", "xpu"):
        return _of_card(getattr(torch, device.type), device)
    if device.type == "mps" and hasattr(torch.mps, "recommended_max_memory"):
        return max(0, int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()))
    if device.type == "cpu" and Path("/proc/meminfo").exists():
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        computer = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        container = _left_in_container()
        return computer if container is None else min(computer, container)
    return None


def _of_card(module: Any, device: torch.device) -> int | None:
    """What the driver can give, and what torch holds without using it."""
    if not hasattr(module, "mem_get_info"):  # Intel's has it since torch 2.6
        return None
    cached = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + cached)


def _left_in_container(limits: Sequence[tuple[Path, Path]] = CONTAINER_LIMITS) -> int | None:
    """Bytes that a container may still take, which the computer's own figures do not tell; ``None`` without a limit."""
    for limit, used in limits:
        if limit.exists() and used.exists():
            most = limit.read_text(encoding="ascii").strip()
            return max(0, int(most) - int(used.read_text(encoding="ascii"))) if most.isdecimal() else None
    return None


def predicted_at_once(device: torch.device, dtype: torch.dtype, pixels: int) -> int | None:
    """How many pictures of so many latent pixels a card has room to predict at once, at least one; ``None`` where it
    does not tell.

    Asked beforehand: some drivers put what does not fit into the computer's memory, without an error, where it takes
    many times as long.
    """
    free = None if device.type == "cpu" else free_memory(device)
    each = PREDICTING * dtype.itemsize // 2 * pixels
    return None if free is None else max(1, int(USABLE * free) // each)


@contextmanager
def giving_back() -> Iterator[None]:
    """Afterwards, what was freed inside is the system's again. After a training on the CPU glibc keeps gigabytes of it,
    which a host that stays open would hold until it ends."""
    try:
        yield
    finally:
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none and keep little
            if trim is not None:
                trim(0)
